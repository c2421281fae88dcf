//! A job in a process of its own: whatever it dies of, its worker lives.
//!
//! ```text
//!  worker: claim, lease, heartbeat, report            run-job: the handler
//!    supervisor ── order, stop reasons, the lease ──► inside ─┬─ watches the lease and the worker's end
//!               ◄── progress, counters, the end ─────         └─ JobHandler::run
//! ```
//! The process is this very program again, with a hidden subcommand. What it is to do comes over its standard input, since
//! that has secrets in it; its log goes where the worker's does. It ends with its worker, and all that it started ends
//! with it ([ADR 15](../../../../docs/adr/0015-jobs-are-processes.md)).

mod counted;
mod inside;
mod limits;
mod supervisor;
mod wire;

use std::path::PathBuf;

use inheritune_domain::spec::JobKind;
use inheritune_store::StoreConfig;

use super::WorkerConfig;
use crate::config::Settings;
use crate::telemetry::TelemetryConfig;

pub use inside::{be_part_of_a_job, run_job};
pub(super) use limits::MIN_MEMORY_BYTES;

/// A handler that has each job done by a process of its own, which calls [`run_job`].
#[derive(Debug, Clone)]
pub struct JobProcesses {
    /// The jobs it takes.
    pub kinds: Vec<JobKind>,
    /// What the program is started with: `run-job`.
    pub arguments: Vec<String>,
    /// Where the process finds tables and objects.
    pub store: StoreConfig,
    /// The same as the worker's.
    pub worker: WorkerConfig,
    /// Names the process in traces.
    pub service: String,
    /// How it logs, and where its traces go.
    pub telemetry: TelemetryConfig,
    /// What its limits are called where they are set.
    pub settings: Settings,
}

/// This very program, also after its file was replaced.
#[must_use]
pub fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { running } else { std::env::current_exe().unwrap_or(running) }
}
