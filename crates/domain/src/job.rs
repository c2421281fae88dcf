//! The life cycle of one job, as a pure function.
//!
//! ```text
//!            claim                      complete ─► Succeeded
//!  Queued ──────────► Leased ───────────► fail ───► Queued (backoff) | Failed
//!    ▲  │               │ │
//!    │  │ pause         │ └─ release, expire ─► Queued | Paused (pause asked) | Cancelled (cancel asked) | Failed
//!    │  ▼               │
//!  Paused ◄─────────────┘
//!  Queued, Paused ── cancel ─► Cancelled
//!  Queued ── give up waiting ─► Failed
//!  Failed, Cancelled ── retry ─► Queued
//! ```
//! Three things are counted separately, and only while they are consecutive: failures, deaths of
//! the process that ran the job, and waits for external resources ([`Counts`], ADR 16). An attempt
//! that made durable progress resets all counts, however it ended.
//!
//! `store` implements the same in SQL; a property test there compares the two.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::id::{JobId, LeaseToken, RunId, WorkerId};
use crate::spec::{JobOutcome, JobSpec, defaults};
use inheritune_ids::named;

/// The owner's instruction for a job that a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Continue.
    Run,
    /// Save, release the job, and pause it.
    Pause,
    /// Stop; the job is no longer wanted.
    Cancel,
}

/// The state of a job. Data that belongs to one state is stored in that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Waiting for a worker, from `not_before` on.
    Queued {
        /// Earliest claim, by the clock of the database.
        not_before: OffsetDateTime,
    },
    /// Held by a worker until `lease_until`.
    Leased {
        /// The fencing token of this claim.
        token: LeaseToken,
        /// The holder.
        worker: WorkerId,
        /// When the lease expires, by the clock of the database.
        lease_until: OffsetDateTime,
        /// The instruction that the worker receives at its next heartbeat.
        directive: Directive,
    },
    /// Paused until it is resumed.
    Paused,
    /// Done; the outcome is stored.
    Succeeded,
    /// Given up; the error is stored.
    Failed,
    /// Cancelled by its owner.
    Cancelled,
}

impl JobState {
    /// Returns whether the state is final.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Leased { .. } | Self::Paused => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// Returns the public status.
    pub fn status(&self) -> JobStatus {
        match self {
            Self::Queued { .. } => JobStatus::Queued,
            Self::Leased { directive, .. } => match directive {
                Directive::Run => JobStatus::Running,
                Directive::Pause => JobStatus::Pausing,
                Directive::Cancel => JobStatus::Cancelling,
            },
            Self::Paused => JobStatus::Paused,
            Self::Succeeded => JobStatus::Succeeded,
            Self::Failed => JobStatus::Failed,
            Self::Cancelled => JobStatus::Cancelled,
        }
    }
}

named! {
    /// The status shown to users and dashboards; also used for runs.
    pub enum JobStatus {
        /// Waiting for a worker.
        Queued = "QUEUED",
        /// Held by a worker.
        Running = "RUNNING",
        /// Asked to pause, but not paused yet.
        Pausing = "PAUSING",
        /// Paused until it is resumed.
        Paused = "PAUSED",
        /// Asked to cancel, but not cancelled yet.
        Cancelling = "CANCELLING",
        /// Done.
        Succeeded = "SUCCEEDED",
        /// Given up.
        Failed = "FAILED",
        /// Cancelled by its owner.
        Cancelled = "CANCELLED",
    }
}

impl JobStatus {
    /// Returns whether the status is final.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How often a job is attempted, and how long to wait between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Number of consecutive attempts without progress that may fail before the job fails. Deaths
    /// of workers and waits are counted separately.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each further one. There is no wait after an
    /// attempt whose worker died: detecting the death already took a lease.
    pub backoff_ms: u64,
    /// Longest wait.
    pub backoff_max_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: defaults::max_attempts(),
            backoff_ms: defaults::backoff_ms(),
            backoff_max_ms: defaults::backoff_max_ms(),
        }
    }
}

impl RetryPolicy {
    /// Returns the wait after `failed_attempts` failed attempts (1 for the first failure).
    pub fn backoff(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(32);
        let wait_ms = self.backoff_ms.saturating_mul(1 << doublings).min(self.backoff_max_ms);
        Duration::milliseconds(wait_ms.min(i64::MAX as u64) as i64)
    }
}

/// Number of crashes without progress in between after which a job is given up.
pub const MAX_CRASHES: u32 = 2;
/// Number of deaths of any kind without progress in between after which a job is given up. Workers
/// are sometimes killed or preempted several times in a row for reasons unrelated to the job. A job
/// that kills its worker does so every time.
pub const MAX_DEATHS: u32 = 10;
/// First wait for a missing external resource; doubles with each further wait.
const FIRST_WAIT: Duration = Duration::milliseconds(500);
/// Longest such wait. A resource that is available again is used within this time.
const LONGEST_WAIT: Duration = Duration::seconds(30);

/// How the attempts of a job ended since it last made durable progress: since an attempt published
/// a newer training state or finished a unit of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attempts that failed.
    pub failed: u32,
    /// Attempts whose worker stopped responding or was killed externally.
    pub lost: u32,
    /// Attempts whose process crashed.
    pub crashed: u32,
    /// Attempts that ended because an external resource was unavailable.
    pub waits: u32,
    /// When the first of these waits began; `None` if the job is not waiting for a resource.
    pub waiting_since: Option<OffsetDateTime>,
}

impl Counts {
    /// Returns the number of deaths of the process that ran the job.
    pub fn deaths(&self) -> u32 {
        self.lost.saturating_add(self.crashed)
    }

    /// Returns whether the job kills the processes that run it and must be given up.
    pub fn is_killer(&self) -> bool {
        self.crashed >= MAX_CRASHES || self.deaths() >= MAX_DEATHS
    }
}

/// Returns the wait before the next attempt, after `waits` waits.
fn wait(waits: u32) -> Duration {
    (FIRST_WAIT * 2_i32.pow(waits.saturating_sub(1).min(10))).min(LONGEST_WAIT)
}

/// Why an attempt ended without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Another attempt may succeed.
    Retryable,
    /// No attempt can succeed: the input is bad.
    Permanent,
    /// An external resource is temporarily unavailable: disk space, the object store, the database.
    /// The job waits for it, which never counts as a failure.
    Unavailable,
    /// The process that ran the job crashed: a segmentation fault, an abort, or too much memory.
    Crashed,
    /// The process that ran the job was killed externally by SIGKILL, possibly for reasons
    /// unrelated to the job.
    Killed,
}

impl FailureClass {
    /// Classifies an I/O error of a job. This is the only place that decides it.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::BrokenPipe
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
            // EAGAIN: the user's limit of threads or processes is reached.
            | ErrorKind::WouldBlock => Self::Unavailable,
            // Invalid content does not change.
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => Self::Permanent,
            _ if error.raw_os_error().is_some_and(|code| DESCRIPTORS_USED_UP.contains(&code)) => Self::Unavailable,
            _ => error.get_ref().and_then(|inner| Self::of_cause(inner)).unwrap_or(Self::Retryable),
        }
    }

    /// Returns the class of the I/O error in the source chain of `error`, or `None` if there is
    /// none.
    pub fn of_cause(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(io) = cause.downcast_ref() {
                return Some(Self::of_io(io));
            }
            next = cause.source();
        }
        None
    }
}

/// EMFILE and ENFILE, which have no [`std::io::ErrorKind`]. Their numbers are the same on every
/// Unix.
const DESCRIPTORS_USED_UP: [i32; 2] = [24, 23];

/// What happened to a job. `now` is the time of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// A worker claimed the job.
    Claim {
        /// The new fencing token.
        token: LeaseToken,
        /// The worker.
        worker: WorkerId,
        /// Duration of the lease.
        lease: Duration,
    },
    /// The holder renews the lease.
    Heartbeat {
        /// The fencing token of the holder.
        token: LeaseToken,
        /// Duration of the lease from now.
        lease: Duration,
    },
    /// The holder completed the job.
    Complete {
        /// The fencing token of the holder.
        token: LeaseToken,
    },
    /// The attempt failed.
    Fail {
        /// The fencing token of the holder.
        token: LeaseToken,
        /// The class of the failure, which decides about a retry.
        class: FailureClass,
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// The holder releases the unfinished job: it was asked to stop, or it is shutting down. This
    /// does not count as a lost attempt.
    Release {
        /// The fencing token of the holder.
        token: LeaseToken,
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// The lease expired: the holder is dead.
    Expire {
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// An external resource has been unavailable for longer than the configured limit.
    GiveUpWaiting {
        /// The longest wait.
        limit: Duration,
    },
    /// The owner asked for a retry.
    RequestRetry,
    /// The owner asked for a pause.
    RequestPause,
    /// The owner asked to resume.
    RequestResume,
    /// The owner asked to cancel.
    RequestCancel,
}

/// The part of a job that the state machine decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLife {
    /// The state.
    pub state: JobState,
    /// How its attempts ended.
    pub counts: Counts,
    /// The retry policy.
    pub retry: RetryPolicy,
}

/// An event that is invalid in the state of the job, because of a stale fencing token or a final
/// state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJobEvent {
    /// The token of the event does not match the lease, or the lease expired.
    #[error("the lease was lost")]
    StaleLease,
    /// The event is not possible in the state of the job.
    #[error("not possible in this state")]
    WrongState,
}

impl JobLife {
    /// Creates a new job.
    pub fn new(now: OffsetDateTime, retry: RetryPolicy) -> Self {
        Self { state: JobState::Queued { not_before: now }, counts: Counts::default(), retry }
    }

    /// Returns the job after `event` at `now`.
    ///
    /// # Errors
    /// [`InvalidJobEvent`]; the job is unchanged.
    pub fn advance(self, now: OffsetDateTime, event: JobEvent) -> Result<Self, InvalidJobEvent> {
        use InvalidJobEvent::WrongState;
        let with = |state| Ok(Self { state, ..self });
        match event {
            JobEvent::Claim { token, worker, lease } => match self.state {
                JobState::Queued { not_before } if not_before <= now => {
                    with(JobState::Leased { token, worker, lease_until: now + lease, directive: Directive::Run })
                }
                _ => Err(WrongState),
            },
            JobEvent::Heartbeat { token, lease } => {
                let held = self.held(now, token)?;
                with(JobState::Leased {
                    token,
                    worker: held.worker,
                    lease_until: now + lease,
                    directive: held.directive,
                })
            }
            JobEvent::Complete { token } => {
                self.held(now, token)?;
                with(JobState::Succeeded)
            }
            JobEvent::Fail { token, class, advanced } => {
                let held = self.held(now, token)?;
                Ok(self.ended(now, held.directive, (class, advanced)))
            }
            JobEvent::Release { token, advanced } => {
                let held = self.held(now, token)?;
                Ok(Self { state: waiting(held.directive, now), counts: self.counts_after(advanced), ..self })
            }
            JobEvent::Expire { advanced } => match self.state {
                JobState::Leased { lease_until, directive, .. } if lease_until <= now => {
                    let ended = self.ended(now, directive, (FailureClass::Killed, advanced));
                    Ok(match ended.state {
                        // No backoff: the lease was already a wait. Whatever killed the worker is
                        // over by now, or kills the next worker just as slowly.
                        JobState::Queued { .. } => Self { state: JobState::Queued { not_before: now }, ..ended },
                        _ => ended,
                    })
                }
                _ => Err(WrongState),
            },
            JobEvent::GiveUpWaiting { limit } => match (self.state, self.counts.waiting_since) {
                (JobState::Queued { .. }, Some(since)) if since + limit <= now => with(JobState::Failed),
                _ => Err(WrongState),
            },
            JobEvent::RequestRetry => match self.state {
                JobState::Failed | JobState::Cancelled => Ok(Self::new(now, self.retry)),
                _ => Err(WrongState),
            },
            JobEvent::RequestPause => match self.state {
                JobState::Queued { .. } | JobState::Paused => with(JobState::Paused),
                JobState::Leased { token, worker, lease_until, directive: Directive::Run | Directive::Pause } => {
                    with(JobState::Leased { token, worker, lease_until, directive: Directive::Pause })
                }
                _ => Err(WrongState),
            },
            JobEvent::RequestResume => match self.state {
                // Time spent paused does not count as waiting.
                JobState::Paused => Ok(Self {
                    state: JobState::Queued { not_before: now },
                    counts: Counts { waiting_since: None, ..self.counts },
                    ..self
                }),
                JobState::Queued { .. } => Ok(self),
                JobState::Leased { token, worker, lease_until, directive: Directive::Run | Directive::Pause } => {
                    with(JobState::Leased { token, worker, lease_until, directive: Directive::Run })
                }
                _ => Err(WrongState),
            },
            JobEvent::RequestCancel => match self.state {
                JobState::Queued { .. } | JobState::Paused | JobState::Cancelled => with(JobState::Cancelled),
                JobState::Leased { token, worker, lease_until, .. } => {
                    with(JobState::Leased { token, worker, lease_until, directive: Directive::Cancel })
                }
                JobState::Succeeded | JobState::Failed => Err(WrongState),
            },
        }
    }

    fn held(&self, now: OffsetDateTime, token: LeaseToken) -> Result<Held, InvalidJobEvent> {
        match self.state {
            JobState::Leased { token: current, worker, lease_until, directive }
                if current == token && lease_until > now =>
            {
                Ok(Held { worker, directive })
            }
            _ => Err(InvalidJobEvent::StaleLease),
        }
    }

    fn counts_after(&self, advanced: bool) -> Counts {
        if advanced { Counts::default() } else { self.counts }
    }

    /// Returns the job after an attempt that ended with an error. An attempt that made progress is
    /// not counted, because progress is finite.
    fn ended(self, now: OffsetDateTime, directive: Directive, (class, advanced): (FailureClass, bool)) -> Self {
        let mut counts = self.counts_after(advanced);
        let one = u32::from(!advanced);
        let (given_up, pause) = match class {
            FailureClass::Permanent => {
                counts.failed += one;
                return Self { state: JobState::Failed, counts, ..self };
            }
            FailureClass::Retryable => {
                counts.failed += one;
                (counts.failed >= self.retry.max_attempts, self.retry.backoff(counts.failed))
            }
            FailureClass::Unavailable => {
                counts.waits += 1;
                counts.waiting_since.get_or_insert(now);
                (false, wait(counts.waits))
            }
            FailureClass::Crashed => {
                counts.crashed += one;
                (counts.is_killer(), self.retry.backoff(counts.crashed))
            }
            FailureClass::Killed => {
                counts.lost += one;
                (counts.is_killer(), self.retry.backoff(counts.lost))
            }
        };
        let state = match directive {
            Directive::Cancel => JobState::Cancelled,
            Directive::Run | Directive::Pause if given_up => JobState::Failed,
            Directive::Pause => JobState::Paused,
            Directive::Run => JobState::Queued { not_before: now + pause },
        };
        Self { state, counts, ..self }
    }
}

struct Held {
    worker: WorkerId,
    directive: Directive,
}

fn waiting(directive: Directive, now: OffsetDateTime) -> JobState {
    match directive {
        Directive::Run => JobState::Queued { not_before: now },
        Directive::Pause => JobState::Paused,
        Directive::Cancel => JobState::Cancelled,
    }
}

/// The progress of a job. Field names follow Kubeflow Trainer's `trainerStatus`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Total units; 0 while unknown.
    pub total: u64,
    /// The unit: `tokens`, `bytes`, `sequences`.
    pub unit: String,
    /// Recent units per second.
    pub per_second: f64,
    /// Estimated time to completion; `None` while unknown.
    pub estimated_remaining_seconds: Option<f64>,
    /// The current activity, for people: `step 120/400 loss 4.31`.
    pub message: String,
}

impl Progress {
    /// Returns the percentage done, 0 to 100, or `None` while the total is unknown.
    pub fn percentage(&self) -> Option<f64> {
        (self.total > 0).then(|| (self.done as f64 / self.total as f64 * 100.0).min(100.0))
    }
}

/// A job as stored in its rows, for clients and dashboards.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// The run it belongs to, if any.
    pub run: Option<RunId>,
    /// A label for people: `round 2: train 6 layers`.
    pub label: String,
    /// Its work.
    pub spec: JobSpec,
    /// Its status.
    pub status: JobStatus,
    /// Its priority; higher values run first.
    pub priority: i32,
    /// Number of claims so far.
    pub attempts: u32,
    /// How the attempts ended since the job last made progress.
    pub counts: Counts,
    /// Its progress.
    pub progress: Progress,
    /// Its outcome, once it has succeeded.
    pub outcome: Option<JobOutcome>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The last holder.
    pub worker: Option<WorkerId>,
    /// When it was submitted.
    pub created_at: OffsetDateTime,
    /// When it was first claimed.
    pub started_at: Option<OffsetDateTime>,
    /// When it reached a final state.
    pub finished_at: Option<OffsetDateTime>,
    /// When it was last changed.
    pub updated_at: OffsetDateTime,
}

/// One point of a curve of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricPoint {
    /// Optimizer step, or the number of documents so far for an evaluation.
    pub step: u64,
    /// Tokens seen.
    pub tokens_seen: u64,
    /// One of [`METRICS`], or `TASK.METRIC` for an evaluation.
    pub name: String,
    /// The value.
    pub value: f64,
}

/// The curves of a training: losses in nats, memory of the process in bytes, utilization as a
/// fraction of the device's peak matrix multiplication throughput, and epochs as passes over the
/// training tokens.
pub const METRICS: [&str; 8] = [
    "train_loss",
    "validation_loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "model_flops_utilization",
    "memory_bytes",
    "data_epoch",
];

#[cfg(test)]
mod tests;
