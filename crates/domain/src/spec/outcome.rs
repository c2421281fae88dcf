//! What one job made: the four kinds, as the next step of a run and the report read them.

use serde::{Deserialize, Serialize};

use super::corpus_facts::CorpusFacts;
use crate::benchmark;
use crate::comparison::Difference;
use crate::id::{ArtifactId, LayerCount};
use inheritune_checkpoint::decoder_config::DecoderConfig;

/// What a job made.
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
    /// Parts of another job's scores.
    Helped(Helped),
}

/// A token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    /// The artifact.
    pub tokens: ArtifactId,
    /// Training tokens.
    pub train_tokens: u64,
    /// Validation tokens.
    pub validation_tokens: u64,
    /// Entries of the tokenizer.
    pub vocab_size: u32,
    /// Documents.
    pub documents: u64,
    /// Bytes of text.
    pub text_bytes: u64,
    /// What the corpus was read as; jobs of earlier releases did not say.
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
    /// Layers of the checkpoint it was cut from; its own for a fresh one.
    pub reference_layers: LayerCount,
    /// Parameters, tied ones counted once.
    pub parameters: u64,
    /// Tensors copied from the reference or the previous candidate.
    pub copied_tensors: u32,
    /// Tensors made fresh.
    pub fresh_tensors: u32,
    /// Bytes copied.
    pub copied_bytes: u64,
}

/// A trained checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The artifact.
    pub checkpoint: ArtifactId,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens seen.
    pub tokens_seen: u64,
    /// Passes over the training tokens.
    pub epochs: f64,
    /// Loss of the first micro-batches, before any update, in nats.
    pub first_loss_nats: f64,
    /// Training loss of the last logged step, in nats.
    pub last_loss_nats: f64,
    /// Time spent training, over all attempts.
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
    /// Parameters, tied ones counted once.
    pub parameters: u64,
    /// How the scores differ from those of the spec's baseline, on what both were measured on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<ScoreDifference>,
}

/// How one score differs from another model's, pair by pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreDifference {
    /// The task's name.
    pub task: String,
    /// What differs: `acc`, `loss_nats`, `bits_per_byte`; for a perplexity, whose differences have no mean, its logarithm,
    /// `nats`.
    pub metric: String,
    /// This model's less the other's.
    #[serde(flatten)]
    pub difference: Difference,
}

/// What a job did that helped another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helped {
    /// Parts that it measured.
    pub units: u32,
}

/// The task that growing goes by.
const VALIDATION_LOSS: &str = "validation_loss";

impl Evaluated {
    /// The validation loss, when it was among the tasks.
    pub fn validation_loss(&self) -> Option<&Score> {
        self.scores.iter().find(|score| score.task == VALIDATION_LOSS)
    }

    /// How the validation loss differs from the baseline's.
    pub fn validation_difference(&self) -> Option<Difference> {
        self.differences.iter().find(|found| found.task == VALIDATION_LOSS).map(|found| found.difference)
    }

    /// The scores on benchmarks and their groups.
    pub fn benchmark_scores(&self) -> Vec<Score> {
        let is_benchmark = |score: &&Score| benchmark::select(&score.task).is_ok();
        self.scores.iter().filter(is_benchmark).cloned().collect()
    }
}

/// One number with its error.
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
    /// Sequences or documents.
    pub n: u64,
    /// What guessing among the choices brings, where there are choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// What the best answer brings that is always the same, where every document has the same choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority: Option<f64>,
    /// How likely guessing is to come out at least so far from `chance`, on either side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance_p_value: Option<f64>,
}

impl Score {
    /// A mean or a perplexity, which knows no chance.
    pub fn plain(task: &str, metric: &str, (value, stderr): (f64, Option<f64>), n: u64) -> Self {
        let (task, metric) = (task.to_owned(), metric.to_owned());
        Self { task, metric, value, stderr, n, chance: None, majority: None, chance_p_value: None }
    }
}
