//! `inheritune-evaluator`: works evaluate jobs until SIGTERM.

use std::path::PathBuf;

use clap::Parser;
use inheritune_evaluator::EvaluatorConfig;
use inheritune_runtime::{config, service, shutdown, telemetry};

/// Measures checkpoints: works the evaluate jobs of an Inheritune deployment.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; deploy/config/evaluator.toml is a sample.
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: EvaluatorConfig = config::load(&arguments.config)?;
    let _telemetry = telemetry::init("inheritune-evaluator", &config.telemetry)?;
    let stop = shutdown::stop_on_signals();
    let build = |store: &_| (inheritune_evaluator::handler(), inheritune_evaluator::services(store));
    service::run_worker_service(config, build, stop).await?;
    Ok(())
}
