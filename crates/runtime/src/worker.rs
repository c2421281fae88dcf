//! The claim loop: claims jobs, renews their leases, runs the handler, and reports the outcome.
//!
//! ```text
//!  claim (on NOTIFY, and by polling in case a notification is lost)
//!    └─► attempt ─┬─ heartbeat, in its own task: sends progress, receives directives, tracks the lease
//!                 └─ handler, stopped by StopSignal ─► complete | fail | release
//! ```
//! Services use [`JobProcesses`] as their handler. It runs each job in its own process, in which
//! [`run_job`] calls the actual handler.
//!
//! A worker that cannot reach the database continues until the lease would expire by its own
//! monotonic clock. Then it stops the job, because another worker may have claimed it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use inheritune_domain::id::WorkerId;
use inheritune_domain::spec::{Ceilings, JobKind, JobOutcome};
use inheritune_objects::FileCache;
use inheritune_store::Store;
use inheritune_store::jobs::Lease;
use inheritune_store::notify::{Topic, Wakeups};
use serde::Deserialize;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::telemetry::metric;

mod attempt;
mod context;
mod heartbeat;
mod process;
mod scratch;

pub use context::{JobContext, JobError, ProgressSender, StopReason, StopSignal};
pub use process::{JobProcesses, be_part_of_a_job, run_job, this_program};

/// Runs the jobs of a service.
pub trait JobHandler: Send + Sync + 'static {
    /// The kinds of jobs that it runs.
    fn kinds(&self) -> &[JobKind];

    /// Runs one job. It checks `context.stop` often. When asked to stop, it saves what is worth
    /// saving and returns [`JobError::Stopped`]. Long computations belong on their own thread: see
    /// [`JobContext::run_blocking`].
    fn run(&self, job: Lease, context: JobContext) -> impl Future<Output = Result<JobOutcome, JobError>> + Send;
}

/// The section `[worker]` of a service's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Time between heartbeats.
    pub heartbeat_ms: u64,
    /// Duration of a lease, which is also how long it takes to notice a dead worker.
    pub lease_ms: u64,
    /// Longest time between two polls of the queue.
    pub poll_ms: u64,
    /// Maximum number of concurrent jobs.
    pub concurrency: u32,
    /// Folder for the files of running jobs, and for files fetched from a store that later jobs can
    /// reuse. Workers may share it.
    pub cache_dir: PathBuf,
    /// Maximum size of the cached files. The least recently used files are removed first. Zero
    /// disables the cache.
    pub cache_max_bytes: u64,
    /// Number of threads of a job's computation. If absent, the library decides.
    pub threads: Option<usize>,
    /// An attempt fails if it makes no progress for this long.
    pub stall_ms: u64,
    /// Time that running jobs get to save when the process is told to stop.
    pub shutdown_grace_ms: u64,
    /// Maximum private writable memory of a job's process, and of each rank of a training. If
    /// absent, the memory of the machine or of this process's control group.
    pub job_memory_max_bytes: Option<u64>,
    /// Maximum size of a job's files in `cache_dir`. If absent, the disk is the limit.
    pub job_disk_max_bytes: Option<u64>,
    /// Maximum size of a job on this machine.
    pub ceilings: Ceilings,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 1000,
            lease_ms: 5000,
            poll_ms: 1000,
            concurrency: 1,
            cache_dir: std::env::temp_dir().join("inheritune"),
            cache_max_bytes: 16 << 30,
            threads: None,
            stall_ms: 3_600_000,
            shutdown_grace_ms: 30_000,
            job_memory_max_bytes: None,
            job_disk_max_bytes: None,
            ceilings: Ceilings::default(),
        }
    }
}

impl WorkerConfig {
    fn validate(&self) -> Result<(), WorkerError> {
        let check = |good: bool, field, problem| {
            if good { Ok(()) } else { Err(WorkerError::Config { field, problem }) }
        };
        check(self.heartbeat_ms >= 1, "heartbeat_ms", "must be at least 1")?;
        check(self.lease_ms / 2 >= self.heartbeat_ms, "lease_ms", "must be at least twice heartbeat_ms")?;
        check(self.poll_ms >= 1, "poll_ms", "must be at least 1")?;
        check(self.stall_ms >= 1, "stall_ms", "must be at least 1")?;
        check(self.concurrency >= 1, "concurrency", "must be at least 1")?;
        let memory_fits = self.job_memory_max_bytes.is_none_or(|bytes| bytes >= process::MIN_MEMORY_BYTES);
        check(memory_fits, "job_memory_max_bytes", "must be at least 16777216 (16 MiB)")?;
        check(self.job_disk_max_bytes != Some(0), "job_disk_max_bytes", "must be at least 1; omit it for no limit")?;
        check(self.threads != Some(0), "threads", "must be at least 1; omit it to let the library decide")
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}

/// Errors of starting a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A configuration value is not valid.
    #[error("worker.{field} {problem}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder for jobs' files cannot be used.
    #[error("worker.cache_dir {path}: {source}")]
    CacheDir {
        /// The folder, or a file in it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs jobs until `stop`. Then it gives running jobs time to save, and releases their leases.
///
/// # Errors
/// The configuration is not valid, or its cache folder cannot be used. Database errors are retried
/// indefinitely.
pub async fn run_worker<H: JobHandler>(
    store: Store,
    handler: H,
    config: WorkerConfig,
    stop: CancellationToken,
) -> Result<(), WorkerError> {
    config.validate()?;
    let id = WorkerId(Uuid::now_v7());
    let scratch = scratch::Scratch::open(&config.cache_dir, id)?;
    tracing::info!(worker = %id, kinds = ?handler.kinds(), concurrency = config.concurrency, "worker started");
    let fetched = FileCache::new(config.cache_dir.join("fetched"), config.cache_max_bytes);
    let worker = Arc::new(Worker { id, store, handler, config, scratch, fetched, stop });
    worker.claim_until_stopped().await;
    tracing::info!(worker = %worker.id, "worker stopped");
    Ok(())
}

struct Worker<H> {
    id: WorkerId,
    store: Store,
    handler: H,
    config: WorkerConfig,
    scratch: scratch::Scratch,
    fetched: FileCache,
    stop: CancellationToken,
}

impl<H: JobHandler> Worker<H> {
    async fn claim_until_stopped(self: &Arc<Self>) {
        let mut attempts = JoinSet::new();
        let mut queue = Queue { wakeups: None, failures: 0 };
        while !self.stop.is_cancelled() {
            while let Some(ended) = attempts.try_join_next() {
                note_end(ended);
            }
            let free = self.config.concurrency.saturating_sub(attempts.len() as u32);
            if free == 0 {
                tokio::select! {
                    Some(ended) = attempts.join_next() => note_end(ended),
                    () = self.stop.cancelled() => {}
                }
                continue;
            }
            let claimed_at = Instant::now();
            let leases = self.claim(free, &mut queue).await;
            if leases.is_empty() {
                tokio::select! {
                    () = queue.wait(self) => {}
                    Some(ended) = attempts.join_next() => note_end(ended),
                    () = self.stop.cancelled() => {}
                }
            }
            for lease in leases {
                let worker = Arc::clone(self);
                attempts.spawn(async move { attempt::run(&worker, lease, claimed_at).await });
            }
        }
        while let Some(ended) = attempts.join_next().await {
            note_end(ended);
        }
    }

    /// Claims up to `limit` jobs. Returns none if the database does not answer.
    async fn claim(&self, limit: u32, queue: &mut Queue) -> Vec<Lease> {
        // Wait for a claim that is in flight when the worker is stopped. Otherwise its jobs would
        // be stuck until their leases expire, and lose an attempt.
        let given_up = async {
            self.stop.cancelled().await;
            tokio::time::sleep(self.config.lease()).await;
        };
        let claimed = tokio::select! {
            claimed = self.store.claim_jobs(self.id, self.handler.kinds(), limit, self.config.lease()) => claimed,
            () = given_up => return Vec::new(),
        };
        match claimed {
            Ok(leases) => {
                if queue.failures > 0 {
                    tracing::info!(failures = queue.failures, "claiming jobs succeeds again");
                }
                queue.failures = 0;
                leases
            }
            Err(error) => {
                if queue.failures == 0 {
                    tracing::warn!(%error, "cannot claim jobs; retrying");
                }
                queue.failures += 1;
                metrics::counter!(metric::CLAIM_FAILURES).increment(1);
                Vec::new()
            }
        }
    }
}

/// How the claim loop learns that there may be something to claim.
struct Queue {
    wakeups: Option<Wakeups>,
    /// Number of failed claims since the last successful one.
    failures: u32,
}

impl Queue {
    /// Waits for a notification, for at most the poll interval. While the database does not answer,
    /// waits for the whole interval.
    async fn wait<H: JobHandler>(&mut self, worker: &Worker<H>) {
        if self.wakeups.is_none() && self.failures == 0 {
            // On an error, polling alone is enough; the next wait tries again.
            self.wakeups = worker.store.listen().await.ok();
        }
        match &mut self.wakeups {
            Some(wakeups) if self.failures == 0 => wakeups.changed(Topic::Jobs, worker.config.poll()).await,
            Some(_) | None => tokio::time::sleep(worker.config.poll()).await,
        }
    }
}

fn note_end(ended: Result<(), JoinError>) {
    // A handler's panic is caught inside the attempt, so this panic is a bug in the worker.
    if let Err(error) = ended {
        tracing::error!(%error, "an attempt ended without a report; its lease will expire");
    }
}
