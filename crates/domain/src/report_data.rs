//! All data of a report in one value: `inheritune run report` renders it without any other input.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::{JobId, RunId};
use crate::job::JobStatus;
use crate::run::{Model, Run};

/// One curve of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The model.
    pub model: Model,
    /// The metric: `train_loss` or `validation_loss`.
    pub metric: String,
    /// Points (step, tokens seen, value), sorted by step.
    pub points: Vec<(u64, u64, f64)>,
}

/// Where one tensor of the winner came from, as recorded in `inheritance.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorOrigin {
    /// Its name in the target.
    pub name: String,
    /// The origin: `copied`, `tied` or `fresh`.
    pub origin: String,
    /// The name of the source tensor, or how the tensor was initialized.
    pub from: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// SHA-256 before training; empty for a tied tensor.
    pub sha256: String,
}

/// One job in the timeline of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// What it was for.
    pub label: String,
    /// How it ended.
    pub status: JobStatus,
    /// Number of claims.
    pub attempts: u32,
    /// When it was first claimed.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// All data of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// The run.
    pub id: RunId,
    /// Its recipe, state and models.
    pub run: Run,
    /// The decisions, in order.
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
