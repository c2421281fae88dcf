//! The messages between a worker and the process of a job: one JSON object per line.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use inheritune_domain::job::Progress;
use inheritune_domain::spec::{Ceilings, JobOutcome};
use inheritune_objects::FileCache;
use inheritune_store::StoreConfig;
use inheritune_store::jobs::Lease;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::super::{JobError, StopReason};
use crate::telemetry::TelemetryConfig;

/// The first line to a process: everything it needs to run its job. It contains secrets, so it does
/// not implement `Debug`.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) lease: Lease,
    pub(super) lease_until: MonotonicTime,
    pub(super) store: StoreConfig,
    pub(super) cache_dir: PathBuf,
    pub(super) fetched: FileCache,
    pub(super) threads: Option<usize>,
    pub(super) ceilings: Ceilings,
    pub(super) memory_max_bytes: Option<u64>,
    /// How long the job may take to stop once the lease has expired.
    pub(super) grace_ms: u64,
    pub(super) trace_parent: Option<String>,
    pub(super) service: String,
    pub(super) telemetry: TelemetryConfig,
}

/// Every other line to a process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToJob {
    Stop(StopReason),
    LeaseUntil(MonotonicTime),
}

/// Every line from a process. `Ended` is the last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromJob {
    Progress(Progress),
    Counted(Vec<Count>),
    Ended(Result<JobOutcome, JobError>),
}

/// The increment of a counter.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) by: u64,
}

/// A time on the machine's monotonic clock, which all its processes share. A message therefore
/// stays valid even if it waited in a pipe while both processes were frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MonotonicTime {
    monotonic_ns: u64,
}

impl MonotonicTime {
    pub(super) fn of(instant: Instant) -> Self {
        let (now, clock) = (Instant::now(), monotonic());
        let at = match instant.checked_duration_since(now) {
            Some(ahead) => clock + ahead,
            None => clock.saturating_sub(now - instant),
        };
        Self { monotonic_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Returns the time left until then; zero if it has passed.
    pub(super) fn remaining(self) -> Duration {
        Duration::from_nanos(self.monotonic_ns).saturating_sub(monotonic())
    }
}

fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_time_is_the_same_after_passing_through_a_pipe() {
        let ahead = MonotonicTime::of(Instant::now() + Duration::from_secs(60));
        let read: MonotonicTime = serde_json::from_str(&serde_json::to_string(&ahead).unwrap()).unwrap();
        assert_eq!(read, ahead);
        let remaining = read.remaining();
        assert!(remaining > Duration::from_secs(50) && remaining <= Duration::from_secs(60), "{remaining:?}");
        assert_eq!(MonotonicTime::of(Instant::now() - Duration::from_millis(1)).remaining(), Duration::ZERO);
    }

    #[test]
    fn the_end_of_a_job_keeps_its_class() {
        for error in [JobError::Retryable("a".to_owned()), JobError::Permanent("b".to_owned()), JobError::Stopped] {
            let line = serde_json::to_string(&FromJob::Ended(Err(error.clone()))).unwrap();
            let FromJob::Ended(Err(read)) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
            assert_eq!(read, error);
        }
    }
}
