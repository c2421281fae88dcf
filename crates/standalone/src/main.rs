//! `inheritune-standalone`: see the library crate.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inheritune_runtime::service::report_end;
use inheritune_runtime::shutdown::stop_on_signals;
use inheritune_runtime::telemetry::{self, TelemetryConfig};
use inheritune_runtime::worker::run_job;
use inheritune_standalone::{Options, SERVICE, jobs, run};

/// Runs every Inheritune service in one process, with a private Postgres and a local folder; each
/// job runs in its own process.
///
/// On SIGTERM or Ctrl-C, training saves its state; the next start on the same folder resumes from
/// there.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the one job that is described on standard input; used by the server
    #[command(hide = true)]
    RunJob,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::RunJob) => run_job(jobs),
        None => report_end(serve(arguments.options)),
    }
}

#[tokio::main]
async fn serve(options: Options) -> anyhow::Result<()> {
    let config = TelemetryConfig { metrics_listen: options.metrics_listen, ..TelemetryConfig::default() };
    let _telemetry = telemetry::init(SERVICE, &config)?;
    run(options, config, stop_on_signals()).await
}
