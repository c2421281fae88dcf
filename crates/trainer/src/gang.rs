//! A training spread over several processes of one machine: data-parallel ranks, which add up their gradients.
//!
//! Rank 0 is the trainer itself: it holds the lease, and alone measures, records and saves. It starts the others, which
//! read the same local files, and tells them through every exchange whether to go on. A rank that is lost breaks the next
//! exchange of all others, so the attempt ends, and the next one goes on from the newest training state.

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

/// A rank starts in a moment; between two exchanges, rank 0 measures and saves.
const PATIENCE: Patience = Patience { join: Duration::from_secs(60), exchange: Duration::from_secs(1800) };
/// Longest time for a rank to end by itself after the last step.
const END_LIMIT: Duration = Duration::from_secs(60);
const ORDERS_FILE: &str = "ranks.json";

/// How many processes a training is spread over, and which program they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// 1: the trainer alone.
    pub size: u32,
    /// `inheritune-trainer`.
    pub program: PathBuf,
}

impl Ranks {
    /// The trainer alone.
    pub fn alone() -> Self {
        Self { size: 1, program: PathBuf::new() }
    }
}

/// What a rank is to do; all of them read the same file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    inputs: Inputs,
    scratch: PathBuf,
    saved: Option<Saved>,
    shape: StepShape,
    threads: Option<usize>,
    size: u32,
}

/// This process among those of its training.
#[derive(Debug)]
pub struct Gang {
    rank: u32,
    size: u32,
    /// None where the process is alone.
    group: Option<Group>,
    others: Others,
}

/// The processes that rank 0 has started; they end with it.
#[derive(Debug, Default)]
struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended already gives an error, which is as good.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Gang {
    /// Rank 0 of `ranks`, with the others started for the same training as `job`.
    ///
    /// # Errors
    /// The others cannot be started, or do not find their way here.
    pub fn lead(job: &Training, ranks: &Ranks) -> Result<Self, Interrupted> {
        if ranks.size <= 1 {
            return Ok(Self { rank: 0, size: 1, group: None, others: Others::default() });
        }
        if job.shape.gradient_accumulation < ranks.size {
            return Err(JobError::Permanent(format!(
                "training.gradient_accumulation {} cannot be shared by the trainer's {} ranks: make micro_batch smaller and \
                 gradient_accumulation larger",
                job.shape.gradient_accumulation, ranks.size
            ))
            .into());
        }
        let orders = Orders {
            inputs: job.inputs.clone(),
            scratch: job.scratch.clone(),
            saved: job.saved.clone(),
            shape: job.shape,
            threads: job.threads,
            size: ranks.size,
        };
        let path = job.scratch.join(ORDERS_FILE);
        let json =
            serde_json::to_vec(&orders).map_err(|error| JobError::Permanent(format!("{ORDERS_FILE}: {error}")))?;
        std::fs::write(&path, json).map_err(|error| file_error(&path, error))?;
        let rendezvous = Rendezvous::open(PATIENCE.join)?;
        let mut others = Others::default();
        for rank in 1..ranks.size {
            others.0.push(start(ranks, &path, (rank, rendezvous.port()))?);
        }
        let group = Group::join(rendezvous, (0, ranks.size), PATIENCE)?;
        tracing::info!(ranks = ranks.size, "ranks have joined");
        Ok(Self { rank: 0, size: ranks.size, group: Some(group), others })
    }

    /// Whether this is rank 0.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// How many processes there are, this one included.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether there are others.
    pub fn is_shared(&self) -> bool {
        self.group.is_some()
    }

    /// Which of a step's micro-batches are this rank's.
    pub fn micro_batches(&self, of_step: u32) -> impl Iterator<Item = u64> + Clone + use<> {
        (u64::from(self.rank)..u64::from(of_step)).step_by(self.size as usize)
    }

    /// `numbers` added up over all ranks.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>, LmError> {
        match &self.group {
            Some(group) => group.sum(numbers),
            None => Ok(numbers.to_vec()),
        }
    }

    /// Adds the gradients up over all ranks.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn sum_gradients(&self, parameters: &[Parameter]) -> Result<(), LmError> {
        self.group.as_ref().map_or(Ok(()), |group| group.sum_gradients(parameters))
    }

    /// Waits for the others to end, after the last step.
    ///
    /// # Errors
    /// One of them failed: its weights may differ.
    pub fn dismiss(mut self) -> Result<(), JobError> {
        self.group = None;
        for (child, rank) in self.others.0.iter_mut().zip(1..) {
            let failed = |problem: String| JobError::Retryable(format!("rank {rank}: {problem}"));
            let started = Instant::now();
            let status = loop {
                match child.try_wait() {
                    Ok(Some(status)) => break status,
                    Ok(None) if started.elapsed() < END_LIMIT => std::thread::sleep(Duration::from_millis(10)),
                    Ok(None) => return Err(failed("did not end after the last step".to_owned())),
                    Err(error) => return Err(failed(error.to_string())),
                }
            };
            if !status.success() {
                return Err(failed(format!("ended with {status}; its log says why")));
            }
        }
        Ok(())
    }
}

fn start(ranks: &Ranks, orders: &Path, (rank, port): (u32, u16)) -> Result<Child, JobError> {
    let started = Command::new(&ranks.program)
        .args(["rank", "--rank", &rank.to_string(), "--port", &port.to_string(), "--orders"])
        .arg(orders)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    started.map_err(|error| JobError::io(format!("{} (rank {rank})", ranks.program.display()), &error))
}

/// A rank other than 0, from beginning to end; blocks. The process must have nothing else to do.
///
/// # Errors
/// As [`Training::run`].
pub fn follow(orders: &Path, rank: u32, port: u16) -> Result<(), JobError> {
    let json = std::fs::read(orders).map_err(|error| file_error(orders, error))?;
    let orders: Orders =
        serde_json::from_slice(&json).map_err(|error| JobError::Permanent(format!("{ORDERS_FILE}: {error}")))?;
    let scratch = orders.scratch.join(format!("rank-{rank}"));
    std::fs::create_dir_all(&scratch).map_err(|error| file_error(&scratch, error))?;
    let group = Rendezvous::reach(port, PATIENCE.join)
        .and_then(|rendezvous| Group::join(rendezvous, (rank, orders.size), PATIENCE))
        .map_err(lm_error)?;
    let gang = Gang { rank, size: orders.size, group: Some(group), others: Others::default() };
    let training = Training {
        inputs: orders.inputs,
        scratch,
        saved: orders.saved,
        shape: orders.shape,
        threads: orders.threads,
        stop: StopSignal::default(),
        progress: ProgressSender::default(),
        recorder: Recorder::nowhere(),
    };
    training.run_as(gang).map(drop).map_err(Into::into)
}
