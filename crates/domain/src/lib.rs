//! The vocabulary of Inheritune and every decision that needs no I/O.
//!
//! Owns: artifacts, specs and their validation, the run and job state machines, benchmarks and
//! comparisons. Everything here is a pure function of its arguments. The crate re-exports the
//! modules of `inheritune-ids`.
//!
//! Start reading at [`spec::RunSpec`] (what a user asks for), then [`run::Run::advance`] (what
//! happens next) and [`job`] (the life cycle of one unit of work).
//!
//! Must never: read a clock, an RNG, a file, a socket or an environment variable; know about tokio,
//! sqlx, tonic or tch.

pub use inheritune_ids::{id, names, violation};

pub mod artifact;
pub mod spec;
pub mod job;
pub mod run;
pub mod report_data;
pub mod benchmark;
pub mod model_card;
pub mod comparison;
