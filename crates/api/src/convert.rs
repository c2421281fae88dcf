//! Messages to domain values and back.
//!
//! Towards the domain every bad field is noted, by its path in the message, before anything is refused: what a message
//! cannot say (a bad id, an unknown enum value, a missing part) and what the domain's own validation finds come in one
//! [`Violations`](inheritune_domain::violation::Violations). Towards messages nothing can fail.

pub mod artifact;
pub mod evaluation;
mod fields;
pub mod job;
mod names;
pub mod page;
pub mod run;
pub mod slicing;
#[cfg(test)]
mod tests;
pub mod time;
pub mod training;

pub use fields::{id, request_id};
