//! Runs each job in its own process, so that the worker survives however the job dies.
//!
//! ```text
//!  worker: claim, lease, heartbeat, report              run-job: the handler
//!    supervisor ── request, stop reasons, the lease ──► inside ─┬─ watches the lease and the worker
//!               ◄── progress, counters, the result ────         └─ JobHandler::run
//! ```
//! The process runs the same program with a hidden subcommand. It receives its request over
//! standard input, because the request contains secrets. Its log goes where the worker's log goes.
//! The process ends with its worker, and everything that it started ends with it ([ADR
//! 15](../../../../docs/adr/0015-jobs-are-processes.md)).

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

/// A handler that runs each job in its own process, which calls [`run_job`].
#[derive(Debug, Clone)]
pub struct JobProcesses {
    /// The kinds of jobs that it runs.
    pub kinds: Vec<JobKind>,
    /// Arguments of the program: `run-job` and any options.
    pub arguments: Vec<String>,
    /// How the process connects to the database and the object store.
    pub store: StoreConfig,
    /// The configuration of the worker.
    pub worker: WorkerConfig,
    /// Name of the process in traces.
    pub service: String,
    /// How the process logs, and where its traces go.
    pub telemetry: TelemetryConfig,
    /// How messages name the limits of the process.
    pub settings: Settings,
}

/// Returns the path of the running program, which also works after its file was replaced.
#[must_use]
pub fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { running } else { std::env::current_exe().unwrap_or(running) }
}
