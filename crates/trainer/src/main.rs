//! `inheritune-trainer`: works tokenize and train jobs until SIGTERM.

use std::path::PathBuf;

use clap::Parser;
use inheritune_runtime::{config, service, shutdown, telemetry};
use inheritune_trainer::TrainerConfig;

/// Makes token sets and trains checkpoints: works the tokenize and train jobs of an Inheritune deployment.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; deploy/config/trainer.toml is a sample.
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: TrainerConfig = config::load(&arguments.config)?;
    telemetry::init(&config.telemetry);
    let stop = shutdown::stop_on_signals();
    let build = |store: &_| (inheritune_trainer::handler(), inheritune_trainer::services(store));
    service::run_worker_service(config, build, stop).await?;
    Ok(())
}
