//! What a deployment survives: services, workers, the database, the object store and disks that fail while it works. The
//! services are processes; what fails is killed, cut off or full. The long versions run under `make test-slow`.
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
