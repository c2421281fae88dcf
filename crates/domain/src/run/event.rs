//! The events of a run, and the transitions they cause.

use serde::{Deserialize, Serialize};

use super::{Note, Run, RunState};
use crate::spec::{JobOutcome, JobSpec};

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The run was created.
    Created,
    /// The current job succeeded.
    JobSucceeded {
        /// The outcome of the job.
        outcome: JobOutcome,
    },
    /// The current job failed for good.
    JobFailed {
        /// Which job failed, and why.
        message: String,
    },
    /// The current job was cancelled, alone or together with the run.
    JobCancelled,
    /// The owner asked for a pause.
    PauseRequested,
    /// The owner asked to resume.
    ResumeRequested,
    /// The owner asked to cancel.
    CancelRequested,
    /// The owner asked to retry the step that failed.
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

/// The effect of an event on a run. It is written in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run after the event.
    pub run: Run,
    /// A job to submit.
    pub submit: Option<Submission>,
    /// The request to its unfinished jobs.
    pub request: Option<JobsRequest>,
    /// The decisions, in order, for people.
    pub notes: Vec<Note>,
}

/// A job to submit.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// A label for people: `round 2: train 6 layers`.
    pub label: String,
    /// The spec of the job.
    pub spec: JobSpec,
}

/// What to do with the unfinished jobs of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobsRequest {
    /// Pause them.
    Pause,
    /// Resume them.
    Resume,
    /// Cancel them.
    Cancel,
    /// Put the last job, which failed, back into the queue.
    Retry,
}

/// An event that is not possible in the state of the run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event} is not possible while {state}")]
pub struct InvalidRunEvent {
    /// The event.
    pub event: String,
    /// The state.
    pub state: String,
}
