//! Fault injection: a deployment survives failures of services, workers, the database, the object
//! store and disks. The services are real processes, which are killed, cut off or run out of space.
//! The long versions run under `make test-slow`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod faulty_s3;
mod jobs;

mod disks;
mod evaluation;
mod failover;
mod isolation;
mod kills;
mod memory;
mod object_store;
mod postgres;
mod schedulers;
