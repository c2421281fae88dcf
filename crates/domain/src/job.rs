//! How one job lives and dies, as a pure function.
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
//! Three things are counted, each for itself and each only in a row: failures, deaths of the process that ran the job, and waits
//! for something outside ([`Counts`], ADR 16). An attempt that made durable progress ends every row, however it ended.
//!
//! `store` says the same in SQL; a property test there holds the two together.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::id::{JobId, LeaseToken, RunId, WorkerId};
use crate::spec::{JobOutcome, JobSpec, defaults};
use inheritune_ids::named;

/// What its owner wants of a job that a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Go on.
    Run,
    /// Save, give the job back, and let it wait.
    Pause,
    /// Stop; nothing more is wanted.
    Cancel,
}

/// A job's state. Data that only one state has lives in that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Waits for a worker, from `not_before` on.
    Queued {
        /// Earliest claim, by the database's clock.
        not_before: OffsetDateTime,
    },
    /// A worker holds it until `lease_until`.
    Leased {
        /// The fence of this claim.
        token: LeaseToken,
        /// The holder.
        worker: WorkerId,
        /// The claim is void from here on, by the database's clock.
        lease_until: OffsetDateTime,
        /// What the worker is told at its next heartbeat.
        directive: Directive,
    },
    /// Waits for a resume.
    Paused,
    /// Done; its outcome is kept.
    Succeeded,
    /// Given up; its error is kept.
    Failed,
    /// No longer wanted.
    Cancelled,
}

impl JobState {
    /// Nothing happens to it any more.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Leased { .. } | Self::Paused => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The public name.
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
    /// The state as users and dashboards see it; also used for runs.
    pub enum JobStatus {
        /// Waits for a worker.
        Queued = "QUEUED",
        /// Being worked on.
        Running = "RUNNING",
        /// Told to pause, not there yet.
        Pausing = "PAUSING",
        /// Waits for a resume.
        Paused = "PAUSED",
        /// Told to cancel, not there yet.
        Cancelling = "CANCELLING",
        /// Done.
        Succeeded = "SUCCEEDED",
        /// Given up.
        Failed = "FAILED",
        /// No longer wanted.
        Cancelled = "CANCELLED",
    }
}

impl JobStatus {
    /// Nothing happens any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How often, and after what waits, a job is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts that may fail, with no progress in between, before the job fails for good. Deaths of workers and waits are
    /// counted apart.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each further one. There is none after an attempt whose worker died:
    /// noticing that took a lease already.
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
    /// The wait after `failed_attempts` attempts have failed (1 for the first failure).
    pub fn backoff(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(32);
        let wait_ms = self.backoff_ms.saturating_mul(1 << doublings).min(self.backoff_max_ms);
        Duration::milliseconds(wait_ms.min(i64::MAX as u64) as i64)
    }
}

/// Deaths of its own doing, with no progress in between, after which a job is given up.
pub const MAX_CRASHES: u32 = 2;
/// Deaths of any kind, with no progress in between, after which a job is given up. Workers are killed and preempted for
/// reasons that are not the job's, several times in a row at times; a job that kills whatever runs it does so every time.
pub const MAX_DEATHS: u32 = 10;
/// Wait before the next attempt where something outside is missing; doubles with each further wait.
const FIRST_WAIT: Duration = Duration::milliseconds(500);
/// Longest such wait: what is back is used within it.
const LONGEST_WAIT: Duration = Duration::seconds(30);

/// What a job's attempts came to since it last made durable progress: since an attempt published a newer training state, or
/// finished a unit of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attempts that failed.
    pub failed: u32,
    /// Attempts whose worker fell silent or was killed from outside.
    pub lost: u32,
    /// Attempts whose process died by its own doing.
    pub crashed: u32,
    /// Attempts that ended because something outside was missing.
    pub waits: u32,
    /// When the first of these waits began; none when nothing is waited for.
    pub waiting_since: Option<OffsetDateTime>,
}

impl Counts {
    /// Deaths of the process that ran the job.
    pub fn deaths(&self) -> u32 {
        self.lost.saturating_add(self.crashed)
    }

    /// Whether the job kills what runs it, and is to be given up.
    pub fn is_killer(&self) -> bool {
        self.crashed >= MAX_CRASHES || self.deaths() >= MAX_DEATHS
    }
}

/// The wait before the next attempt after `waits` of them.
fn wait(waits: u32) -> Duration {
    (FIRST_WAIT * 2_i32.pow(waits.saturating_sub(1).min(10))).min(LONGEST_WAIT)
}

/// Why an attempt ended without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Another attempt may do better.
    Retryable,
    /// No attempt can: bad input.
    Permanent,
    /// What the job needs from outside is missing for now: space on a disk, the object store, the database. Waited for,
    /// and never counted as a failure.
    Unavailable,
    /// The process that ran the job died by its own doing: a segmentation fault, an abort, memory beyond its limit.
    Crashed,
    /// The process that ran the job was killed from outside, by SIGKILL. The job may have nothing to do with it.
    Killed,
}

impl FailureClass {
    /// What an error of a file or a socket means for the job that met it. The only place where this is decided.
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
            // No more threads or processes for this account: EAGAIN.
            | ErrorKind::WouldBlock => Self::Unavailable,
            // Broken content stays broken.
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => Self::Permanent,
            _ if error.raw_os_error().is_some_and(|code| DESCRIPTORS_USED_UP.contains(&code)) => Self::Unavailable,
            _ => error.get_ref().and_then(|inner| Self::of_cause(inner)).unwrap_or(Self::Retryable),
        }
    }

    /// The class of the system's error that `error` is, or that is behind it; none where there is no such error.
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

/// EMFILE and ENFILE, which have no [`std::io::ErrorKind`]; the same numbers on every Unix.
const DESCRIPTORS_USED_UP: [i32; 2] = [24, 23];

/// What happened to a job. `now` is the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// A worker took it.
    Claim {
        /// The new fence.
        token: LeaseToken,
        /// The taker.
        worker: WorkerId,
        /// Length of the lease.
        lease: Duration,
    },
    /// The holder is alive.
    Heartbeat {
        /// The holder's fence.
        token: LeaseToken,
        /// Length of the lease from now.
        lease: Duration,
    },
    /// The holder is done.
    Complete {
        /// The holder's fence.
        token: LeaseToken,
    },
    /// The holder could not.
    Fail {
        /// The holder's fence.
        token: LeaseToken,
        /// Whether to try again.
        class: FailureClass,
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// The holder gives it back unfinished: it was told to stop, or it is shutting down. Not a lost attempt.
    Release {
        /// The holder's fence.
        token: LeaseToken,
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// The lease ran out: the holder is dead.
    Expire {
        /// Whether the attempt made durable progress.
        advanced: bool,
    },
    /// Something outside has been missing for longer than the site waits.
    GiveUpWaiting {
        /// So long is waited.
        limit: Duration,
    },
    /// Its owner wants it tried anew.
    RequestRetry,
    /// Its owner wants it paused.
    RequestPause,
    /// Its owner wants it to go on.
    RequestResume,
    /// Its owner no longer wants it.
    RequestCancel,
}

/// A job as the state machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLife {
    /// The state.
    pub state: JobState,
    /// What its attempts came to.
    pub counts: Counts,
    /// The policy.
    pub retry: RetryPolicy,
}

/// An event that cannot happen to a job in its state: a stale fence, or a final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJobEvent {
    /// The event's token is not the lease's, or the lease ran out.
    #[error("the lease was lost")]
    StaleLease,
    /// The job is not in a state where this can happen.
    #[error("not possible in this state")]
    WrongState,
}

impl JobLife {
    /// A new job.
    pub fn new(now: OffsetDateTime, retry: RetryPolicy) -> Self {
        Self { state: JobState::Queued { not_before: now }, counts: Counts::default(), retry }
    }

    /// What `event` at `now` makes of the job.
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
                        // Its lease was the wait: what killed the worker is over by now, or will kill the next one as slowly.
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
                // The time it stood still is not one that it waited.
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

    /// After an attempt that ended with an error. One that made progress counts for nothing: there is an end to progress.
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

/// How far a job has come. Field names follow Kubeflow Trainer's `trainerStatus`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all; 0 while unknown.
    pub total: u64,
    /// What is counted: `tokens`, `bytes`, `sequences`.
    pub unit: String,
    /// Units a second, lately.
    pub per_second: f64,
    /// Estimated time to the end; none while unknown.
    pub estimated_remaining_seconds: Option<f64>,
    /// What is going on, for people: `step 120/400 loss 4.31`.
    pub message: String,
}

impl Progress {
    /// Done as a percentage, 0 to 100; none while the total is unknown.
    pub fn percentage(&self) -> Option<f64> {
        (self.total > 0).then(|| (self.done as f64 / self.total as f64 * 100.0).min(100.0))
    }
}

/// A job as its rows say, for clients and dashboards.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// The run it belongs to, if any.
    pub run: Option<RunId>,
    /// What it is for, in people's words: `round 2: train 6 layers`.
    pub label: String,
    /// What it is to do.
    pub spec: JobSpec,
    /// Where it stands.
    pub status: JobStatus,
    /// Higher first.
    pub priority: i32,
    /// Claims so far.
    pub attempts: u32,
    /// What they came to since it last made progress.
    pub counts: Counts,
    /// How far it is.
    pub progress: Progress,
    /// What it made.
    pub outcome: Option<JobOutcome>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The last holder.
    pub worker: Option<WorkerId>,
    /// When it was submitted.
    pub created_at: OffsetDateTime,
    /// When it was first claimed.
    pub started_at: Option<OffsetDateTime>,
    /// When it reached its final state.
    pub finished_at: Option<OffsetDateTime>,
    /// When anything about it last changed.
    pub updated_at: OffsetDateTime,
}

/// One point of a job's curves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricPoint {
    /// Optimizer step; of an evaluation, documents so far.
    pub step: u64,
    /// Tokens seen.
    pub tokens_seen: u64,
    /// One of [`METRICS`], or of an evaluation `TASK.METRIC`.
    pub name: String,
    /// The value.
    pub value: f64,
}

/// The curves of a training: losses in nats, memory of the process in bytes, utilization as a share of the device's matrix
/// product peak, epochs as passes over the training tokens.
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
