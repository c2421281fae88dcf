//! The scheduler: the front door of the platform, and what keeps runs moving.
//!
//! Owns: `RunService`, `JobService` and `ArtifactService` ([`services`]: thin shells over the store), the run driver
//! (an event in a run's inbox becomes its next state and its next job), the reaper (leases that have run out) and the gauges of
//! what waits.
//!
//! Entry point: [`run`], beside [`services`] in a `serve`. Any number of schedulers may run at once: every step is one
//! transaction that locks what it changes.
//!
//! Must never: work a job, call another service, or decide what a run does next (that is `inheritune_domain::run`).

use std::time::Duration;

use inheritune_domain::spec::Ceilings;
use inheritune_store::{Store, StoreError};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod config;
mod gauges;
mod grpc;
mod reaper;
mod run_driver;

pub use grpc::{SERVICE_NAMES, services};

/// How often the scheduler looks on its own, whatever it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// The reaper's interval in milliseconds, at least 1.
    pub sweep_ms: u64,
    /// The run driver's longest wait for a notification in milliseconds, at least 1.
    pub poll_ms: u64,
    /// What runs and jobs may ask for at most: as much as the workers take.
    pub ceilings: Ceilings,
    /// Seconds that a job waits for something outside (space on a disk, the object store, the database) before it fails.
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

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The store could not be listened to at the start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One of its loops panicked.
    #[error("a scheduler task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Drives runs and reaps leases until `stop`. A database that does not answer is waited for, not an error.
///
/// # Errors
/// The store cannot be listened to at the start, or a loop panics.
pub async fn run(store: Store, config: SchedulerConfig, stop: CancellationToken) -> Result<(), SchedulerError> {
    let wakeups = store.listen().await?;
    let mut loops = JoinSet::new();
    loops.spawn(run_driver::drive(store.clone(), wakeups, config.poll(), stop.clone()));
    loops.spawn(reaper::reap(store.clone(), config, stop.clone()));
    loops.spawn(gauges::watch(store, stop));
    while let Some(ended) = loops.join_next().await {
        ended?;
    }
    Ok(())
}
