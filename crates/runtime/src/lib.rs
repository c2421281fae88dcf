//! How any service of ours lives and dies.
//!
//! Owns: configuration files ([`config`]), logs ([`telemetry`]), stopping on signals ([`shutdown`]), the gRPC server
//! with health and reflection ([`serve`]), what a failed store call means to a caller ([`store_status`]), and the
//! claim loop that works jobs ([`worker`]).
//!
//! Entry point: a `main` loads its configuration with [`config::load`], calls [`telemetry::init`] and
//! [`shutdown::stop_on_signals`], and then runs [`serve::serve`] beside [`worker::run_worker`];
//! [`service::run_worker_service`] does all of that for a service that works one handler's jobs.
//!
//! Must never: know what a job does (that is its handler), decide what happens to a job (that is `inheritune_domain`
//! and `inheritune_store`), or let a handler's thread carry the heartbeat.

pub mod config;
pub mod telemetry;
pub mod shutdown;
pub mod serve;
pub mod worker;
pub mod service;
pub mod store_status;
