//! What every service process shares, from startup to shutdown.
//!
//! Owns: configuration files ([`config`]), logs, metrics and traces ([`telemetry`]), stopping on
//! signals ([`shutdown`]), who may call ([`security`]), how many may connect ([`listen`]), the gRPC
//! server with health and reflection ([`serve`]), the HTTP endpoints for operators
//! ([`operations`]), the mapping of store errors to gRPC statuses ([`store_status`]), the memory of
//! the machine ([`machine`]), the claim loop that runs jobs ([`worker`]), and how all of these are
//! assembled into one process ([`service`]).
//!
//! Entry point: a `main` loads its configuration with [`config::load`], then calls
//! [`telemetry::init`] and [`shutdown::stop_on_signals`]. A service that runs the jobs of one
//! handler then calls
//! [`service::run_worker_service`]. Other services assemble their own [`service::Parts`].
//!
//! Must never: know what a job does (its handler does), decide what happens to a job
//! (`inheritune_domain` and `inheritune_store` do), or send heartbeats from a handler's thread.

pub mod config;
pub mod telemetry;
pub mod shutdown;
pub mod security;
pub mod listen;
mod calls;
pub mod serve;
pub mod operations;
pub mod worker;
pub mod service;
pub mod store_status;
pub mod machine;
