//! Data-parallel training: several processes (ranks) on one machine that sum their gradients.
//!
//! Rank 0 is the trainer itself. It holds the lease, and it alone evaluates, records and saves. It
//! starts the worker ranks, which read the same local files, and every step's exchange tells them
//! whether to stop. If a rank is lost, the next exchange fails on all others and the attempt ends.
//! The next attempt resumes from the newest training state.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inheritune_lm::group::{Group, Patience, Rendezvous};
use inheritune_lm::{LmError, Parameter};
use inheritune_runtime::worker::{JobError, ProgressSender, StopSignal};
use serde::{Deserialize, Serialize};

use crate::data_order::StepShape;
use crate::inputs::Inputs;
use crate::recorder::Recorder;
use crate::resume::Saved;
use crate::training_loop::{Interrupted, Training};
use crate::{file_error, lm_error};

/// Ranks start quickly, but rank 0 evaluates and saves between two exchanges.
const PATIENCE: Patience = Patience { join: Duration::from_secs(60), exchange: Duration::from_secs(1800) };
/// How long a worker rank may take to exit after the last step.
const END_LIMIT: Duration = Duration::from_secs(60);
const CONFIG_FILE: &str = "ranks.json";

/// How many processes share a training, and which program they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// Number of processes; 1 means the trainer alone.
    pub size: u32,
    /// Path of `inheritune-trainer`.
    pub program: PathBuf,
}

impl Ranks {
    /// A single process: the trainer itself.
    pub fn alone() -> Self {
        Self { size: 1, program: PathBuf::new() }
    }
}

/// What a worker rank needs to take part in a training. Rank 0 writes it to a file that all worker
/// ranks read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankConfig {
    inputs: Inputs,
    scratch: PathBuf,
    saved: Option<Saved>,
    shape: StepShape,
    threads: Option<usize>,
    size: u32,
}

/// The processes of one training, seen from one of them.
#[derive(Debug)]
pub struct ProcessGroup {
    rank: u32,
    size: u32,
    /// `None` if this is the only process.
    group: Option<Group>,
    worker_ranks: WorkerRanks,
}

/// The processes that rank 0 has started. Dropping this kills them.
#[derive(Debug, Default)]
struct WorkerRanks(Vec<Child>);

impl Drop for WorkerRanks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that the process has already exited.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl ProcessGroup {
    /// Starts the worker ranks of the training `job` and joins them as rank 0.
    ///
    /// # Errors
    /// There are more ranks than micro-batches per step, or a worker rank cannot be started or does
    /// not join in time.
    pub fn launch(job: &Training, ranks: &Ranks) -> Result<Self, Interrupted> {
        if ranks.size <= 1 {
            return Ok(Self { rank: 0, size: 1, group: None, worker_ranks: WorkerRanks::default() });
        }
        if job.shape.gradient_accumulation < ranks.size {
            return Err(JobError::Permanent(format!(
                "training.gradient_accumulation {} cannot be split over the trainer's {} ranks: lower micro_batch and \
                 raise gradient_accumulation",
                job.shape.gradient_accumulation, ranks.size
            ))
            .into());
        }
        let config = RankConfig {
            inputs: job.inputs.clone(),
            scratch: job.scratch.clone(),
            saved: job.saved.clone(),
            shape: job.shape,
            threads: job.threads,
            size: ranks.size,
        };
        let path = job.scratch.join(CONFIG_FILE);
        let json =
            serde_json::to_vec(&config).map_err(|error| JobError::Permanent(format!("{CONFIG_FILE}: {error}")))?;
        std::fs::write(&path, json).map_err(|error| file_error(&path, error))?;
        let rendezvous = Rendezvous::open(PATIENCE.join)?;
        let mut worker_ranks = WorkerRanks::default();
        for rank in 1..ranks.size {
            worker_ranks.0.push(spawn_rank(ranks, &path, (rank, rendezvous.port()))?);
        }
        let group = Group::join(rendezvous, (0, ranks.size), PATIENCE)?;
        tracing::info!(ranks = ranks.size, "all ranks have joined");
        Ok(Self { rank: 0, size: ranks.size, group: Some(group), worker_ranks })
    }

    /// Whether this process is rank 0.
    pub fn is_rank_zero(&self) -> bool {
        self.rank == 0
    }

    /// The number of processes, including this one.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether there is more than one process.
    pub fn is_distributed(&self) -> bool {
        self.group.is_some()
    }

    /// The micro-batches that this rank computes, out of the `per_step` micro-batches of a step.
    pub fn micro_batches(&self, per_step: u32) -> impl Iterator<Item = u64> + Clone + use<> {
        (u64::from(self.rank)..u64::from(per_step)).step_by(self.size as usize)
    }

    /// Sums each of `numbers` over all ranks.
    ///
    /// # Errors
    /// A rank was lost.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>, LmError> {
        match &self.group {
            Some(group) => group.sum(numbers),
            None => Ok(numbers.to_vec()),
        }
    }

    /// Sums the gradients over all ranks.
    ///
    /// # Errors
    /// A rank was lost.
    pub fn sum_gradients(&self, parameters: &[Parameter]) -> Result<(), LmError> {
        self.group.as_ref().map_or(Ok(()), |group| group.sum_gradients(parameters))
    }

    /// Waits for the worker ranks to exit after the last step.
    ///
    /// # Errors
    /// A worker rank failed, so its weights may differ, or did not exit in time.
    pub fn shutdown(mut self) -> Result<(), JobError> {
        self.group = None;
        for (child, rank) in self.worker_ranks.0.iter_mut().zip(1..) {
            let failed = |problem: String| JobError::Retryable(format!("rank {rank}: {problem}"));
            let started = Instant::now();
            let status = loop {
                match child.try_wait() {
                    Ok(Some(status)) => break status,
                    Ok(None) if started.elapsed() < END_LIMIT => std::thread::sleep(Duration::from_millis(10)),
                    Ok(None) => return Err(failed("did not exit after the last step".to_owned())),
                    Err(error) => return Err(failed(error.to_string())),
                }
            };
            if !status.success() {
                return Err(failed(format!("exited with {status}; see its log")));
            }
        }
        Ok(())
    }
}

fn spawn_rank(ranks: &Ranks, config: &Path, (rank, port): (u32, u16)) -> Result<Child, JobError> {
    let started = Command::new(&ranks.program)
        .args(["rank", "--rank", &rank.to_string(), "--port", &port.to_string(), "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    started.map_err(|error| JobError::io(format!("{} (rank {rank})", ranks.program.display()), &error))
}

/// Runs a worker rank until the training ends; blocks. The process must do nothing else.
///
/// # Errors
/// Same as [`Training::run`].
pub fn run_rank(config: &Path, rank: u32, port: u16) -> Result<(), JobError> {
    let json = std::fs::read(config).map_err(|error| file_error(config, error))?;
    let config: RankConfig =
        serde_json::from_slice(&json).map_err(|error| JobError::Permanent(format!("{CONFIG_FILE}: {error}")))?;
    let scratch = config.scratch.join(format!("rank-{rank}"));
    std::fs::create_dir_all(&scratch).map_err(|error| file_error(&scratch, error))?;
    let group = Rendezvous::reach(port, PATIENCE.join)
        .and_then(|rendezvous| Group::join(rendezvous, (rank, config.size), PATIENCE))
        .map_err(lm_error)?;
    let group = ProcessGroup { rank, size: config.size, group: Some(group), worker_ranks: WorkerRanks::default() };
    let training = Training {
        inputs: config.inputs,
        scratch,
        saved: config.saved,
        shape: config.shape,
        threads: config.threads,
        stop: StopSignal::default(),
        progress: ProgressSender::default(),
        recorder: Recorder::nowhere(),
    };
    training.run_as(group).map(drop).map_err(Into::into)
}
