//! All that a report needs, in one value: `inheritune run report` draws from this alone.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::{JobId, RunId};
use crate::job::JobStatus;
use crate::run::{Model, Run};

/// One curve of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Whose.
    pub model: Model,
    /// `train_loss` or `validation_loss`.
    pub metric: String,
    /// (step, tokens seen, value), by step.
    pub points: Vec<(u64, u64, f64)>,
}

/// Where one tensor of the winner came from, as `inheritance.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorOrigin {
    /// Its name in the target.
    pub name: String,
    /// `copied`, `tied` or `fresh`.
    pub origin: String,
    /// The source's tensor name, or how it was initialised.
    pub from: String,
    /// Rows and columns.
    pub shape: Vec<u64>,
    /// SHA-256 before training; empty for a tied one.
    pub sha256: String,
}

/// One job in the report's time line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// What it was for.
    pub label: String,
    /// How it ended.
    pub status: JobStatus,
    /// Claims.
    pub attempts: u32,
    /// When it was first claimed.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// All that a report needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// The run.
    pub id: RunId,
    /// Its recipe, state and models.
    pub run: Run,
    /// What was decided, in order.
    pub notes: Vec<(OffsetDateTime, String)>,
    /// Its jobs, in order.
    pub jobs: Vec<JobSummary>,
    /// Loss curves of all models.
    pub curves: Vec<Curve>,
    /// The winner's tensors.
    pub origins: Vec<TensorOrigin>,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}
