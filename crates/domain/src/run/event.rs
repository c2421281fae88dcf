//! What happens to a run, and what it makes of it.

use serde::{Deserialize, Serialize};

use super::{Note, Run, RunState};
use crate::spec::{JobOutcome, JobSpec};

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// It was created.
    Created,
    /// Its current job is done.
    JobSucceeded {
        /// With this.
        outcome: JobOutcome,
    },
    /// Its current job failed for good.
    JobFailed {
        /// Which, and why.
        message: String,
    },
    /// Its current job was cancelled, by the run's owner or on its own.
    JobCancelled,
    /// Its owner wants it paused.
    PauseRequested,
    /// Its owner wants it to go on.
    ResumeRequested,
    /// Its owner no longer wants it.
    CancelRequested,
    /// Its owner wants it to go on from where it failed.
    RetryRequested {
        /// The step whose job failed.
        step: RunState,
    },
}

impl RunEvent {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Created => "a second creation",
            Self::JobSucceeded { .. } => "a finished job",
            Self::JobFailed { .. } => "a failed job",
            Self::JobCancelled => "a cancelled job",
            Self::PauseRequested => "a pause",
            Self::ResumeRequested => "a resume",
            Self::CancelRequested => "a cancel",
            Self::RetryRequested { .. } => "a retry",
        }
    }
}

/// What an event makes of a run. Written in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run from now on.
    pub run: Run,
    /// A job to submit.
    pub submit: Option<Submission>,
    /// What its unfinished jobs are told.
    pub request: Option<JobsRequest>,
    /// What was decided, for people; in order.
    pub notes: Vec<Note>,
}

/// A job to submit.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// For people: `round 2: train 6 layers`.
    pub label: String,
    /// The job.
    pub spec: JobSpec,
}

/// What to do about the run's unfinished jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobsRequest {
    /// Pause them.
    Pause,
    /// Let them go on.
    Resume,
    /// Cancel them.
    Cancel,
    /// Put the last one, which failed, back into the queue.
    Retry,
}

/// An event that cannot happen to a run in its state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event} is not possible while {state}")]
pub struct InvalidRunEvent {
    /// The event.
    pub event: String,
    /// The state.
    pub state: String,
}
