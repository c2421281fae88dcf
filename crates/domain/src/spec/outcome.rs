//! The outcome of a job, as read by the next step of a run and by the report.

use serde::{Deserialize, Serialize};

use super::corpus_facts::CorpusFacts;
use crate::benchmark;
use crate::comparison::Difference;
use crate::id::{ArtifactId, LayerCount};
use inheritune_checkpoint::decoder_config::DecoderConfig;

/// The outcome of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobOutcome {
    /// A token set.
    Tokenized(Tokenized),
    /// An untrained target.
    Sliced(Sliced),
    /// A trained checkpoint.
    Trained(Trained),
    /// Scores.
    Evaluated(Evaluated),
    /// Some units of another job's scores.
    Helped(Helped),
}

/// A token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    /// The artifact.
    pub tokens: ArtifactId,
    /// Number of training tokens.
    pub train_tokens: u64,
    /// Number of validation tokens.
    pub validation_tokens: u64,
    /// Number of entries of the tokenizer.
    pub vocab_size: u32,
    /// Number of documents.
    pub documents: u64,
    /// Size of the text in bytes.
    pub text_bytes: u64,
    /// How the corpus was read; absent for jobs of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<CorpusFacts>,
}

/// An untrained target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sliced {
    /// The artifact.
    pub checkpoint: ArtifactId,
    /// Its shape.
    pub config: DecoderConfig,
    /// Number of layers of the source checkpoint; its own number of layers for a fresh model.
    pub reference_layers: LayerCount,
    /// Number of parameters, with tied ones counted once.
    pub parameters: u64,
    /// Number of tensors copied from the reference or the previous candidate.
    pub copied_tensors: u32,
    /// Number of freshly initialized tensors.
    pub fresh_tensors: u32,
    /// Number of bytes copied.
    pub copied_bytes: u64,
}

/// A trained checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The artifact.
    pub checkpoint: ArtifactId,
    /// Number of optimizer steps.
    pub steps: u64,
    /// Number of tokens seen.
    pub tokens_seen: u64,
    /// Passes over the training tokens.
    pub epochs: f64,
    /// Loss of the first micro-batches, before any update, in nats.
    pub first_loss_nats: f64,
    /// Training loss of the last logged step, in nats.
    pub last_loss_nats: f64,
    /// Seconds spent training, over all attempts.
    pub wall_s: f64,
}

/// Scores of one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Per-sequence and per-document results.
    pub scores_artifact: ArtifactId,
    /// One per task and metric.
    pub scores: Vec<Score>,
    /// The shape of the model that was measured.
    pub config: DecoderConfig,
    /// Number of parameters, with tied ones counted once.
    pub parameters: u64,
    /// Differences from the scores of the baseline, over the sequences or documents that both
    /// models were measured on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<ScoreDifference>,
}

/// The paired difference of one score from another model's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreDifference {
    /// The task's name.
    pub task: String,
    /// The metric that differs: `acc`, `loss_nats`, `bits_per_byte`. A perplexity has no mean
    /// difference, so its logarithm is compared instead: `nats`.
    pub metric: String,
    /// This model's value minus the other model's.
    #[serde(flatten)]
    pub difference: Difference,
}

/// The outcome of a job that helped another job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helped {
    /// Number of units that it measured.
    pub units: u32,
}

/// The task that decides about growth.
const VALIDATION_LOSS: &str = "validation_loss";

impl Evaluated {
    /// Returns the validation loss, if it was among the tasks.
    pub fn validation_loss(&self) -> Option<&Score> {
        self.scores.iter().find(|score| score.task == VALIDATION_LOSS)
    }

    /// Returns the difference of the validation loss from that of the baseline.
    pub fn validation_difference(&self) -> Option<Difference> {
        self.differences.iter().find(|found| found.task == VALIDATION_LOSS).map(|found| found.difference)
    }

    /// Returns the scores on benchmarks and groups of benchmarks.
    pub fn benchmark_scores(&self) -> Vec<Score> {
        let is_benchmark = |score: &&Score| benchmark::select(&score.task).is_ok();
        self.scores.iter().filter(is_benchmark).cloned().collect()
    }
}

/// One score with its standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The task's name.
    pub task: String,
    /// The metric's name: `loss_nats`, `word_perplexity`, …
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Standard error of the mean over sequences or documents, where it is defined.
    pub stderr: Option<f64>,
    /// Number of sequences or documents.
    pub n: u64,
    /// Expected score of guessing among the choices, if the task has choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// Score of the best constant answer, if every document has the same choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority: Option<f64>,
    /// Probability that guessing deviates from `chance` at least this much, in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance_p_value: Option<f64>,
}

impl Score {
    /// Creates a score without a chance level, such as a mean or a perplexity.
    pub fn plain(task: &str, metric: &str, (value, stderr): (f64, Option<f64>), n: u64) -> Self {
        let (task, metric) = (task.to_owned(), metric.to_owned());
        Self { task, metric, value, stderr, n, chance: None, majority: None, chance_p_value: None }
    }
}
