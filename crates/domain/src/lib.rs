//! The vocabulary of Inheritune and every decision that needs no I/O.
//!
//! Owns: ids, artifacts, specs and their validation, the run and job state machines, checkpoint
//! families, layer maps and slice plans. Everything here is a pure function of its arguments.
//!
//! Start reading at [`spec::RunSpec`] (what a user asks for), then [`run::Run::advance`] (what happens
//! next) and [`job`] (how one unit of work lives and dies).
//!
//! Must never: read a clock, an RNG, a file, a socket or an environment variable; know about tokio,
//! sqlx, tonic or tch.

pub mod names;
pub mod id;
pub mod violation;
pub mod artifact;
pub mod spec;
pub mod job;
pub mod run;
pub mod report_data;
pub mod checkpoint;
pub mod benchmark;
pub mod model_card;
pub mod comparison;
