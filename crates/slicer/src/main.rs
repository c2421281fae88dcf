//! `inheritune-slicer --config slicer.toml`: runs slice jobs and serves `SlicingService`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use inheritune_runtime::service::{JobProgram, ServiceConfig, report_end, run_worker_service};
use inheritune_runtime::worker::run_job;
use inheritune_runtime::{config, shutdown, telemetry};

/// The slicer service
#[derive(Debug, Parser)]
#[command(name = "inheritune-slicer", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Args)]
struct Serve {
    /// The service's configuration file; see deploy/config/slicer.toml for a sample
    #[arg(long, required = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the one job given on standard input; the slicer starts this
    #[command(hide = true)]
    RunJob,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::RunJob) => run_job(inheritune_slicer::handler),
        None => report_end(serve(arguments.serve)),
    }
}

#[tokio::main]
async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let config: ServiceConfig = config::load(&arguments.config.unwrap_or_default())?;
    let _telemetry = telemetry::init("inheritune-slicer", &config.telemetry)?;
    let program = JobProgram {
        service: "inheritune-slicer",
        kinds: &inheritune_slicer::KINDS,
        arguments: vec!["run-job".to_owned()],
    };
    run_worker_service(config, program, inheritune_slicer::services, shutdown::stop_on_signals()).await?;
    Ok(())
}
