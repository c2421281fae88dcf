//! `inheritune-trainer`: works tokenize and train jobs until SIGTERM, or is one rank of a training.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use inheritune_runtime::service::{JobProgram, report_end, run_worker_service};
use inheritune_runtime::telemetry::{self, TelemetryConfig};
use inheritune_runtime::worker::{be_part_of_a_job, run_job, this_program};
use inheritune_runtime::{config, shutdown};
use inheritune_trainer::TrainerConfig;
use inheritune_trainer::gang::{self, Ranks};

/// Makes token sets and trains checkpoints: works the tokenize and train jobs of an Inheritune deployment.
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
    /// The configuration file; deploy/config/trainer.toml is a sample.
    #[arg(long, required = true)]
    config: Option<PathBuf>,
    /// Processes that each training is spread over, this one included; they share its micro-batches, and each has
    /// worker.threads threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    ranks: u32,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do the one job that standard input names; a trainer starts these
    #[command(hide = true)]
    RunJob {
        /// As the trainer was told
        #[arg(long, default_value_t = 1)]
        ranks: u32,
    },
    /// Be one process of a training; a trainer with --ranks starts these
    #[command(hide = true)]
    Rank {
        /// What to do
        #[arg(long)]
        orders: PathBuf,
        /// Which one, from 1
        #[arg(long)]
        rank: u32,
        /// Where rank 0 is met, on 127.0.0.1
        #[arg(long)]
        port: u16,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        // Nothing of it is asynchronous.
        Some(Command::Rank { orders, rank, port }) => {
            be_part_of_a_job();
            telemetry::init_logs(&TelemetryConfig::default());
            report_end(gang::follow(&orders, rank, port))
        }
        Some(Command::RunJob { ranks }) => {
            let ranks = Ranks { size: ranks, program: this_program() };
            run_job(|_| inheritune_trainer::handler(ranks))
        }
        None => report_end(serve(arguments.serve)),
    }
}

#[tokio::main]
async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let path = arguments.config.unwrap_or_default();
    let config: TrainerConfig = config::load(&path)?;
    let _telemetry = telemetry::init("inheritune-trainer", &config.telemetry)?;
    let program = JobProgram {
        service: "inheritune-trainer",
        kinds: &inheritune_trainer::KINDS,
        arguments: vec!["run-job".to_owned(), format!("--ranks={}", arguments.ranks)],
    };
    run_worker_service(config, program, inheritune_trainer::services, shutdown::stop_on_signals()).await?;
    Ok(())
}
