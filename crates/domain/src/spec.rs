//! What a user asks for: the recipe of a run and the specs of its jobs, with their validation.
//!
//! A recipe file (TOML) deserializes directly into a [`RunSpec`]; the gRPC API carries the same
//! fields. A run turns its recipe into [`JobSpec`]s, one after the other (see [`crate::run`]). Each
//! job returns a [`JobOutcome`].

pub mod architecture;
mod recipe;
mod training;
pub mod defaults;
pub mod limits;
mod ceilings;
mod validate;
mod job;
mod outcome;
mod corpus_facts;

pub use ceilings::Ceilings;
pub use corpus_facts::{CorpusFacts, FilesLeftOut, FilesOfKind};
pub use inheritune_checkpoint::layer_map::LayerMapRule;
pub use job::{
    EvaluateSpec, EvaluationTask, JobKind, JobSpec, SliceSource, SliceSpec, TokenizeSpec, TokenizerSource, TrainSpec,
};
pub use limits::MIN_MAX_SHARD_SIZE_BYTES;
pub use outcome::{Evaluated, Helped, JobOutcome, Score, ScoreDifference, Sliced, Tokenized, Trained};
pub use recipe::{
    ArmSpec, ControlSpec, CorpusSpec, EvaluationSpec, GrowthSource, MatchBy, Recipe, ReferenceSpec, RunSpec,
    TargetSpec, TokenizerSpec,
};
pub use training::{DecayOn, Precision, Sampling, Schedule, TrainingSpec, used_tokens};

#[cfg(test)]
mod tests;
