//! The decisions of a run, as data. [`Note`]'s `Display` renders them in English.

use std::fmt;

use inheritune_checkpoint::inherit_set::InheritSet;
use serde::{Deserialize, Serialize};

use crate::comparison::Difference;
use crate::id::LayerCount;
use crate::spec::Score;

/// Version of the JSON of a stored note. It increases when readers of the previous version would
/// misinterpret the JSON.
pub const NOTE_VERSION: u32 = 1;

/// A decision. Models are named as by [`super::Run::model_name`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The corpus was tokenized.
    Tokenized {
        /// Number of training tokens.
        train_tokens: u64,
        /// Number of validation tokens.
        validation_tokens: u64,
        /// Number of entries of the tokenizer.
        vocab_size: u32,
        /// A summary of the corpus; empty if the job did not report it.
        corpus: String,
    },
    /// A round begins.
    Inherited {
        /// The round, from 1.
        round: u32,
        /// Layers of its candidate.
        layers: LayerCount,
        /// The inherited parts.
        inherit: InheritSet,
    },
    /// A model's validation loss is known.
    Measured {
        /// The model.
        model: String,
        /// Its loss in nats.
        loss: Score,
    },
    /// The candidate does not match yet; the next one is larger.
    Grown {
        /// Its difference from the reference in nats, if it was measured per sequence.
        difference: Option<Difference>,
        /// Layers of the next candidate.
        layers: LayerCount,
    },
    /// The candidate matches the reference.
    Matched {
        /// Its loss in nats.
        loss_nats: f64,
        /// The reference's loss in nats.
        reference_nats: f64,
        /// How much the candidate's loss may exceed the reference's.
        tolerance_nats: f64,
        /// Its difference from the reference, if it was measured per sequence.
        difference: Option<Difference>,
    },
    /// Growth ends without a match.
    Settled {
        /// The reason.
        why: Settled,
    },
    /// The run continues without a model.
    GivenUp {
        /// The model.
        model: String,
        /// The reason.
        problem: String,
    },
    /// A model is measured without the recipe's benchmarks.
    WithoutBenchmarks {
        /// The model.
        model: String,
        /// The reason.
        problem: String,
    },
    /// The owner asked for a pause.
    PauseRequested,
    /// The owner resumed the run.
    Resumed,
    /// The owner asked to cancel the run.
    CancelRequested,
    /// The run was cancelled.
    Cancelled {
        /// Whether the run had begun.
        begun: bool,
    },
    /// The run finished with a target.
    Finished,
    /// The run failed without a target.
    Failed {
        /// The reason.
        message: String,
    },
    /// A failed run was retried.
    Retried {
        /// The state it continues from, for people.
        state: String,
    },
    /// An event was ignored because it is not possible in the state of the run.
    Ignored {
        /// The problem.
        problem: String,
    },
}

/// Why growth ended without a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Settled {
    /// The low-data recipe has one round.
    OneRound,
    /// The reference was not measured.
    NoReferenceLoss,
    /// The candidate is as deep as the reference.
    ReferenceDepth {
        /// Layers of both.
        layers: LayerCount,
    },
    /// The recipe's `max_rounds` was reached.
    MaxRounds {
        /// The number of rounds.
        rounds: u32,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokenized { train_tokens, validation_tokens, vocab_size, corpus } => {
                write!(
                    f,
                    "tokenized: {train_tokens} training and {validation_tokens} validation tokens, vocabulary {vocab_size}"
                )?;
                if corpus.is_empty() { Ok(()) } else { write!(f, "; {corpus}") }
            }
            Self::Inherited { round, layers, inherit } => {
                write!(f, "round {round}: inherit {layers} layers")?;
                if *inherit == InheritSet::ALL { Ok(()) } else { write!(f, " ({inherit})") }
            }
            Self::Measured { model, loss } => write!(f, "{model}: validation loss {} nats", with_error(loss)),
            Self::Grown { difference, layers } => {
                f.write_str("not matched yet")?;
                if let Some(difference) = difference {
                    write!(f, " ({} nats)", with_interval(difference))?;
                }
                write!(f, ": grow to {layers} layers")
            }
            Self::Matched { tolerance_nats, difference: Some(difference), .. } => {
                write!(f, "matched: {} nats from the reference, tolerance {tolerance_nats}", with_interval(difference))
            }
            Self::Matched { loss_nats, reference_nats, tolerance_nats, difference: None } => {
                write!(f, "matched: {loss_nats:.4} is at most the reference's {reference_nats:.4} + {tolerance_nats}")
            }
            Self::Settled { why } => why.fmt(f),
            Self::GivenUp { model, problem } => {
                write!(f, "{model}: given up, the run continues without it: {problem}")
            }
            Self::WithoutBenchmarks { model, problem } => write!(f, "{model}: measured without benchmarks: {problem}"),
            Self::PauseRequested => f.write_str("pause requested"),
            Self::Resumed => f.write_str("resumed"),
            Self::CancelRequested => f.write_str("cancel requested"),
            Self::Cancelled { begun: true } => f.write_str("cancelled"),
            Self::Cancelled { begun: false } => f.write_str("cancelled before it began"),
            Self::Finished => f.write_str("finished"),
            Self::Failed { message } => write!(f, "failed: {message}"),
            Self::Retried { state } => write!(f, "retried: {state}"),
            Self::Ignored { problem } => write!(f, "ignored: {problem}"),
        }
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneRound => f.write_str("one round: done growing"),
            Self::NoReferenceLoss => f.write_str("no reference loss: done growing"),
            Self::ReferenceDepth { layers } => write!(f, "not matched at the reference's own depth of {layers}"),
            Self::MaxRounds { rounds } => write!(f, "not matched after max_rounds = {rounds}"),
        }
    }
}

/// `+0.0123 (95 %: +0.0101 to +0.0145)`
fn with_interval(difference: &Difference) -> String {
    match difference.confidence_interval() {
        Some((low, high)) => format!("{:+.4} (95 %: {low:+.4} to {high:+.4})", difference.value),
        None => format!("{:+.4}", difference.value),
    }
}

fn with_error(score: &Score) -> String {
    match score.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", score.value),
        None => format!("{:.4}", score.value),
    }
}
