//! Conversions between messages and domain values.
//!
//! Converting a message to a domain value collects every bad field, by its path in the message,
//! before rejecting the message. One [`Violations`](inheritune_domain::violation::Violations)
//! contains both what the message itself gets wrong (a bad id, an unknown enum value, a missing
//! part) and what the validation of the domain finds. Converting a domain value to a message cannot
//! fail.

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
