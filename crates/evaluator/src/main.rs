//! `inheritune-evaluator`: runs evaluate jobs until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use inheritune_evaluator::EvaluatorConfig;
use inheritune_runtime::service::{JobProgram, report_end, run_worker_service};
use inheritune_runtime::worker::run_job;
use inheritune_runtime::{config, shutdown, telemetry};

/// Measures checkpoints: runs the evaluate jobs of an Inheritune deployment.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration file; deploy/config/evaluator.toml is a sample.
    #[arg(long, required = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the one job given on standard input; the evaluator starts this
    #[command(hide = true)]
    RunJob,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::RunJob) => run_job(|_| inheritune_evaluator::handler()),
        None => report_end(serve(arguments.serve)),
    }
}

#[tokio::main]
async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let config: EvaluatorConfig = config::load(&arguments.config.unwrap_or_default())?;
    let _telemetry = telemetry::init("inheritune-evaluator", &config.telemetry)?;
    let program = JobProgram {
        service: "inheritune-evaluator",
        kinds: &inheritune_evaluator::KINDS,
        arguments: vec!["run-job".to_owned()],
    };
    run_worker_service(config, program, inheritune_evaluator::services, shutdown::stop_on_signals()).await?;
    Ok(())
}
