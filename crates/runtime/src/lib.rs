//! How any service of ours lives and dies.
//!
//! Owns: configuration files ([`config`]), logs, metrics and traces ([`telemetry`]), stopping on signals ([`shutdown`]),
//! who may call ([`security`]), how many may connect ([`listen`]), the gRPC server with health and reflection ([`serve`]),
//! the HTTP one for those who run it ([`operations`]), what a failed store call means to a caller ([`store_status`]), what
//! the machine has ([`machine`]), the claim loop that runs jobs ([`worker`]), and how all of these are one process
//! ([`service`]).
//!
//! Entry point: a `main` loads its configuration with [`config::load`], calls [`telemetry::init`] and
//! [`shutdown::stop_on_signals`], and then [`service::run_worker_service`], if it works one handler's jobs, or puts its
//! own [`service::Parts`] together.
//!
//! Must never: know what a job does (that is its handler), decide what happens to a job (that is `inheritune_domain`
//! and `inheritune_store`), or let a handler's thread carry the heartbeat.

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
