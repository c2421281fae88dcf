//! The state of a run, and what it knows about each of its models.

use inheritune_ids::named;
use serde::{Deserialize, Serialize};

use crate::artifact::Location;
use crate::comparison::Difference;
use crate::id::{ArtifactId, LayerCount};
use crate::spec::Score;

/// The state of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Created; no job submitted yet.
    Created,
    /// The corpus is tokenized.
    Tokenizing,
    /// A model is sliced or created.
    Slicing(Model),
    /// A model is trained.
    Training(Model),
    /// A model is measured. The loss of the reference is the benchmark.
    Evaluating(Model),
    /// Finished with a target.
    Finished {
        /// The target.
        winner: Model,
        /// Whether it matches the reference; `None` without a benchmark.
        matched: Option<bool>,
    },
    /// Failed without a target.
    Failed {
        /// The reason.
        message: String,
    },
    /// Cancelled by its owner.
    Cancelled,
}

impl RunState {
    /// Returns whether a job of the run is queued or running.
    pub fn has_job(&self) -> bool {
        match self {
            Self::Tokenizing | Self::Slicing(_) | Self::Training(_) | Self::Evaluating(_) => true,
            Self::Created | Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled => false,
        }
    }

    /// Returns whether the state is final.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Created | Self::Tokenizing | Self::Slicing(_) | Self::Training(_) | Self::Evaluating(_) => false,
            Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled => true,
        }
    }
}

/// Identifies a model of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Model {
    /// The model that layers are inherited from.
    Reference,
    /// The target of one round, counted from 1.
    Candidate {
        /// The round.
        round: u32,
        /// Its number of layers.
        layers: LayerCount,
    },
    /// `spec.controls[index]`.
    Control {
        /// The index in the recipe.
        index: u32,
    },
    /// `spec.arms[index]`.
    Arm {
        /// The index in the recipe.
        index: u32,
    },
}

/// What the owner of the run wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Continue.
    #[default]
    Run,
    /// Wait in the current state.
    Pause,
    /// Stop for good.
    Cancel,
}

/// The token set of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSetRef {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Training tokens, if a tokenize job of this run counted them.
    pub train_tokens: Option<u64>,
    /// Entries of the tokenizer, if a tokenize job of this run counted them.
    pub vocab_size: Option<u32>,
}

named! {
    /// The decision that followed from the loss of a candidate.
    pub enum ModelDecision {
        /// A larger candidate is next.
        Grow = "grow",
        /// It matches the reference.
        Match = "match",
        /// Growth ended without a match.
        Settle = "settle",
    }
}

/// What is known about one model of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The model. Not flattened: the `layers` of a candidate would clash with the field below.
    pub model: Model,
    /// Its number of layers.
    pub layers: Option<LayerCount>,
    /// The checkpoint before training.
    pub initial: Option<ArtifactId>,
    /// The current checkpoint: after training, or the given reference.
    pub checkpoint: Option<Location>,
    /// Optimizer steps of its training.
    pub steps: Option<u64>,
    /// Tokens of its training.
    pub tokens_seen: Option<u64>,
    /// Passes over the training tokens.
    pub epochs: Option<f64>,
    /// Wall time of its training in seconds.
    pub wall_s: Option<f64>,
    /// Loss before the first update in nats.
    pub first_loss_nats: Option<f64>,
    /// Number of parameters, with tied ones counted once.
    pub parameters: Option<u64>,
    /// Its validation loss in nats.
    pub validation: Option<Score>,
    /// That loss minus the reference's loss, paired by sequence; `None` for the reference.
    #[serde(default)]
    pub difference: Option<Difference>,
    /// The decision that followed from its loss; `None` for models other than candidates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<ModelDecision>,
    /// Its scores on the recipe's benchmarks.
    #[serde(default)]
    pub benchmarks: Vec<Score>,
    /// The artifact with all of its measurements.
    #[serde(default)]
    pub scores: Option<ArtifactId>,
    /// Why the recipe's benchmarks were left out of its evaluation, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmarks_problem: Option<String>,
    /// Why the run continued without this model, if it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

impl ModelRecord {
    pub(super) fn new(model: Model) -> Self {
        Self {
            model,
            layers: None,
            initial: None,
            checkpoint: None,
            steps: None,
            tokens_seen: None,
            epochs: None,
            wall_s: None,
            first_loss_nats: None,
            parameters: None,
            validation: None,
            difference: None,
            decision: None,
            benchmarks: Vec::new(),
            scores: None,
            benchmarks_problem: None,
            given_up: None,
        }
    }
}
