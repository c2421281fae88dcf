//! Where a run stands, and what it knows of each of its models.

use inheritune_ids::named;
use serde::{Deserialize, Serialize};

use crate::artifact::Location;
use crate::comparison::Difference;
use crate::id::{ArtifactId, LayerCount};
use crate::spec::Score;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Created; nothing submitted yet.
    Created,
    /// Text becomes tokens.
    Tokenizing,
    /// A model is cut or made.
    Slicing(Model),
    /// A model is trained.
    Training(Model),
    /// A model is measured; of the reference, the benchmark.
    Evaluating(Model),
    /// Over, with a target.
    Finished {
        /// The target.
        winner: Model,
        /// Whether it matches the reference; none without a benchmark.
        matched: Option<bool>,
    },
    /// Over, without.
    Failed {
        /// Why.
        message: String,
    },
    /// Over: no longer wanted.
    Cancelled,
}

impl RunState {
    /// A job of the run is under way or waits.
    pub fn has_job(&self) -> bool {
        match self {
            Self::Tokenizing | Self::Slicing(_) | Self::Training(_) | Self::Evaluating(_) => true,
            Self::Created | Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled => false,
        }
    }

    /// Nothing happens any more.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Created | Self::Tokenizing | Self::Slicing(_) | Self::Training(_) | Self::Evaluating(_) => false,
            Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled => true,
        }
    }
}

/// Which of a run's models something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Model {
    /// The model inherited from.
    Reference,
    /// The target of one round, counted from 1.
    Candidate {
        /// The round.
        round: u32,
        /// Its depth.
        layers: LayerCount,
    },
    /// `spec.controls[index]`.
    Control {
        /// Position in the recipe.
        index: u32,
    },
    /// `spec.arms[index]`.
    Arm {
        /// Position in the recipe.
        index: u32,
    },
}

/// What the run's owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Go on.
    #[default]
    Run,
    /// Wait where it is.
    Pause,
    /// Stop for good.
    Cancel,
}

/// The token set of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSetRef {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Training tokens, where a tokenize job of this run counted them.
    pub train_tokens: Option<u64>,
    /// Entries of the tokenizer, likewise.
    pub vocab_size: Option<u32>,
}

named! {
    /// What followed from a candidate's loss.
    pub enum ModelDecision {
        /// A larger candidate is next.
        Grow = "grow",
        /// It matches the reference.
        Match = "match",
        /// Growth ended without a match.
        Settle = "settle",
    }
}

/// What is known of one model of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Which. Not flattened: a candidate's own `layers` would clash with the field below.
    pub model: Model,
    /// Its depth.
    pub layers: Option<LayerCount>,
    /// Before training.
    pub initial: Option<ArtifactId>,
    /// What it is now: after training, or the given reference.
    pub checkpoint: Option<Location>,
    /// Optimizer steps of its training.
    pub steps: Option<u64>,
    /// Tokens of its training.
    pub tokens_seen: Option<u64>,
    /// Passes over the data.
    pub epochs: Option<f64>,
    /// Wall time of its training.
    pub wall_s: Option<f64>,
    /// Loss before the first update.
    pub first_loss_nats: Option<f64>,
    /// Parameters, tied ones counted once.
    pub parameters: Option<u64>,
    /// Its validation loss in nats.
    pub validation: Option<Score>,
    /// That loss less the reference's, sequence by sequence; none for the reference.
    #[serde(default)]
    pub difference: Option<Difference>,
    /// What followed from its loss; none for models that are no candidates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<ModelDecision>,
    /// Its scores on the recipe's benchmarks.
    #[serde(default)]
    pub benchmarks: Vec<Score>,
    /// All that was measured of it.
    #[serde(default)]
    pub scores: Option<ArtifactId>,
    /// Why the recipe's benchmarks were left out of its evaluation; none where they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmarks_problem: Option<String>,
    /// Why the run went on without it; none for a model that was not given up.
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
