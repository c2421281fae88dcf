//! `inheritune-trainer`: runs tokenize and train jobs until SIGTERM, or runs one rank of a
//! training.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use inheritune_runtime::service::{JobProgram, report_end, run_worker_service};
use inheritune_runtime::telemetry::{self, TelemetryConfig};
use inheritune_runtime::worker::{be_part_of_a_job, run_job, this_program};
use inheritune_runtime::{config, shutdown};
use inheritune_trainer::TrainerConfig;
use inheritune_trainer::process_group::{self, Ranks};

/// Makes token sets and trains checkpoints: runs the tokenize and train jobs of an Inheritune
/// deployment.
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
    /// Number of processes per training, including this one; they share its micro-batches, and each
    /// has worker.threads threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    ranks: u32,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the one job given on standard input; the trainer starts this
    #[command(hide = true)]
    RunJob {
        /// The trainer's own --ranks
        #[arg(long, default_value_t = 1)]
        ranks: u32,
    },
    /// Run one worker rank of a training; a trainer with --ranks starts this
    #[command(hide = true)]
    Rank {
        /// The file in which rank 0 describes the training
        #[arg(long)]
        config: PathBuf,
        /// Number of this rank, from 1
        #[arg(long)]
        rank: u32,
        /// Port of rank 0 on 127.0.0.1
        #[arg(long)]
        port: u16,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        // A rank runs no asynchronous code.
        Some(Command::Rank { config, rank, port }) => {
            be_part_of_a_job();
            telemetry::init_logs(&TelemetryConfig::default());
            report_end(process_group::run_rank(&config, rank, port))
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
