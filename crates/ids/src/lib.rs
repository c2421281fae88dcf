//! The smallest words of Inheritune: ids, digests and counts, closed sets of names, and violations.
//!
//! Owns: the newtypes that every crate passes on ([`id`]), the one declaration of an enumeration with its names
//! ([`named!`]), and errors that name every bad field at once ([`violation`]).
//!
//! Entry point: [`id`].
//!
//! Must never: know what a model, a job or a recipe is.

pub mod names;
pub mod id;
pub mod violation;
