//! The slicer service: target checkpoints cut from a reference.
//!
//! Owns: the slice job (a reference and a layer map become an untrained target) and
//! `SlicingService`, which inspects checkpoints and plans slices without making one.
//! `inheritune_checkpoint::slice_plan` decides which tensor is taken from where; this crate reads,
//! copies and writes.
//!
//! Entry points: [`handler`] for `inheritune_runtime::worker::run_worker`, [`services`] for a
//! server. Read [`source`] (a checkpoint by ranged reads), [`plan`] (a job's spec to a plan),
//! [`layout`] (a plan to files), [`copy`] (bytes), [`slice`] (one job from end to end).
//!
//! Must never: hold a whole tensor in memory (except one that is being transposed), read a byte of
//! a layer that is not kept, execute a pickle, or link libtorch.

pub mod copy;
pub mod error;
pub mod fresh;
pub mod grpc;
pub mod layout;
pub mod plan;
pub mod record;
pub mod slice;
pub mod source;
pub mod tokenizer;
pub mod transpose;

pub use error::SlicerError;
pub use grpc::{SERVICE_NAME, services};
pub use slice::{KINDS, SliceHandler, handler};
