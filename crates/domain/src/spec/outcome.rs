//! What one job made: the four kinds, as the next step of a run and the report read them.

use serde::{Deserialize, Serialize};

use crate::checkpoint::decoder_config::DecoderConfig;
use crate::id::{ArtifactId, LayerCount};

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
}

impl Evaluated {
    /// The validation loss, when it was among the tasks.
    pub fn validation_loss(&self) -> Option<&Score> {
        self.scores.iter().find(|score| score.task == "validation_loss")
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
}
