//! The scheduler: serves the API of the platform and advances runs.
//!
//! Owns: `RunService`, `JobService` and `ArtifactService` ([`services`], thin layers over the
//! store), the run driver (turns an event in a run's inbox into the run's next state and next job),
//! the reaper (handles expired leases), and the gauges of queued work.
//!
//! Entry point: [`run`], together with [`services`] in a `serve`. Any number of schedulers may run
//! at the same time: every step is one transaction that locks the rows it changes.
//!
//! Must never: run a job, call another service, or decide what a run does next
//! (`inheritune_domain::run` does).

use std::time::Duration;

use inheritune_domain::spec::Ceilings;
use inheritune_store::Store;
use inheritune_store::notify::Wakeups;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod config;
mod gauges;
mod grpc;
mod reaper;
mod run_driver;

pub use grpc::{SERVICE_NAMES, services};

/// The section `[scheduler]` of the scheduler's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// Interval of the reaper in milliseconds, at least 1.
    pub sweep_ms: u64,
    /// Longest wait of the run driver for a notification in milliseconds, at least 1.
    pub poll_ms: u64,
    /// Maximum size of runs and jobs. Should match the ceilings of the workers.
    pub ceilings: Ceilings,
    /// How long a job waits for an external resource (disk space, the object store, the database)
    /// before it fails, in seconds.
    pub wait_limit_s: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { sweep_ms: 1000, poll_ms: 1000, ceilings: Ceilings::default(), wait_limit_s: 24 * 3600 }
    }
}

impl SchedulerConfig {
    fn sweep(&self) -> Duration {
        Duration::from_millis(self.sweep_ms.max(1))
    }

    fn wait_limit(&self) -> Duration {
        Duration::from_secs(self.wait_limit_s)
    }

    fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms.max(1))
    }
}

/// Errors that end the scheduler.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// One of its loops panicked.
    #[error("a scheduler task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Drives runs and expires leases until `stop`. Waits while the database does not answer.
///
/// # Errors
/// One of the loops panicked.
pub async fn run(store: Store, config: SchedulerConfig, stop: CancellationToken) -> Result<(), SchedulerError> {
    let Some(wakeups) = listen(&store, &config, &stop).await else { return Ok(()) };
    let mut loops = JoinSet::new();
    loops.spawn(run_driver::drive(store.clone(), wakeups, config.poll(), stop.clone()));
    loops.spawn(reaper::reap(store.clone(), config, stop.clone()));
    loops.spawn(gauges::watch(store, stop));
    while let Some(ended) = loops.join_next().await {
        ended?;
    }
    Ok(())
}

/// Starts to listen as soon as the database answers. Returns `None` if it is told to stop first.
async fn listen(store: &Store, config: &SchedulerConfig, stop: &CancellationToken) -> Option<Wakeups> {
    loop {
        match store.listen().await {
            Ok(wakeups) => return Some(wakeups),
            Err(error) => tracing::warn!(%error, "cannot listen for notifications yet; retrying"),
        }
        tokio::select! {
            () = tokio::time::sleep(config.poll()) => {}
            () = stop.cancelled() => return None,
        }
    }
}
