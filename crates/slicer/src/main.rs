//! `inheritune-slicer --config slicer.toml`: works slice jobs and serves `SlicingService`.

use std::path::PathBuf;

use clap::Parser;
use inheritune_runtime::service::{ServiceConfig, run_worker_service};
use inheritune_runtime::{config, shutdown, telemetry};

/// The slicer service
#[derive(Debug, Parser)]
#[command(name = "inheritune-slicer", version)]
struct Arguments {
    /// The service's configuration; deploy/config/slicer.toml is a sample
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: ServiceConfig = config::load(&arguments.config)?;
    let _telemetry = telemetry::init("inheritune-slicer", &config.telemetry)?;
    let stop = shutdown::stop_on_signals();
    run_worker_service(config, |store| (inheritune_slicer::handler(store), inheritune_slicer::services(store)), stop)
        .await?;
    Ok(())
}
