//! The tasks: what can be measured, and how each goes from its input to scores.

use std::path::Path;

use inheritune_domain::spec::{EvaluationTask, Score};
use inheritune_runtime::worker::{JobError, StopSignal};
use serde::Serialize;

use crate::metrics::{SequenceLoss, TextLength};
use crate::scorer::Scorer;

mod rolling_perplexity;
mod validation_loss;

use rolling_perplexity::RollingPerplexity;
use validation_loss::ValidationLoss;

/// A task, as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskDescription {
    /// Its name in specs and scores.
    pub name: &'static str,
    /// What it measures.
    pub description: &'static str,
    /// What it needs to be given.
    pub input: &'static str,
    /// What it brings.
    pub metrics: &'static [MetricDescription],
}

/// A metric, as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDescription {
    /// Its name in scores.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
}

/// Every task, by name.
pub const CATALOGUE: [TaskDescription; 2] = [rolling_perplexity::DESCRIPTION, validation_loss::DESCRIPTION];

/// What one task found.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// One per metric, the main one first.
    pub scores: Vec<Score>,
    /// One per sequence or document.
    pub rows: Vec<Row>,
}

/// One line of `scores.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The task's name.
    pub task: &'static str,
    /// The sequence's or document's place, from 0.
    pub index: u64,
    /// `tokens` and `sum_nats`.
    #[serde(flatten)]
    pub loss: SequenceLoss,
    /// `words` and `bytes` of a document.
    #[serde(flatten)]
    pub length: Option<TextLength>,
}

/// A task that is ready to be scored: its input is read and found good.
pub enum Task {
    /// [`EvaluationTask::ValidationLoss`].
    ValidationLoss(ValidationLoss),
    /// [`EvaluationTask::RollingPerplexity`].
    RollingPerplexity(RollingPerplexity),
}

/// The model that a task is prepared for.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// Its folder, with its tokenizer.
    pub dir: &'a Path,
    /// Rows of its embedding.
    pub vocab_size: u32,
    /// Longest sequence it takes.
    pub max_positions: u32,
}

impl Task {
    /// Reads the input of `task` from the folder `input`.
    ///
    /// # Errors
    /// The input is empty, too short, or not for this model; [`JobError::Stopped`].
    pub fn prepare(
        task: &EvaluationTask,
        input: &Path,
        model: ModelFacts,
        stop: &StopSignal,
    ) -> Result<Self, JobError> {
        match task {
            EvaluationTask::ValidationLoss { tokens, block_size, max_sequences } => {
                ValidationLoss::prepare(input, *block_size, *max_sequences, model)
                    .map(Self::ValidationLoss)
                    .map_err(|e| name_input(e, &format!("token set {tokens}")))
            }
            EvaluationTask::RollingPerplexity { source } => RollingPerplexity::prepare(input, model, stop)
                .map(Self::RollingPerplexity)
                .map_err(|e| name_input(e, &source.to_string())),
        }
    }

    /// Tokens that will be scored.
    pub fn tokens(&self) -> u64 {
        match self {
            Self::ValidationLoss(task) => task.tokens(),
            Self::RollingPerplexity(task) => task.tokens(),
        }
    }

    /// Measures.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn score(&self, scorer: &mut Scorer) -> Result<TaskResult, JobError> {
        match self {
            Self::ValidationLoss(task) => task.score(scorer),
            Self::RollingPerplexity(task) => task.score(scorer),
        }
    }
}

/// Errors of the input's files name paths in a folder that is gone when a user reads them: say what it was.
fn name_input(error: JobError, input: &str) -> JobError {
    match error {
        JobError::Retryable(message) => JobError::Retryable(format!("{input}: {message}")),
        JobError::Permanent(message) => JobError::Permanent(format!("{input}: {message}")),
        JobError::Stopped => JobError::Stopped,
    }
}
