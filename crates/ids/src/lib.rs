//! The basic vocabulary of Inheritune: ids, digests and counts, closed sets of names, and
//! violations.
//!
//! Owns: the newtypes that every crate uses ([`id`]), the macro that declares an enumeration
//! together with its names ([`named!`]), and validation errors that report every invalid field at
//! once ([`violation`]).
//!
//! Entry point: [`id`].
//!
//! Must never: know about models, jobs or recipes.

pub mod names;
pub mod id;
pub mod violation;
