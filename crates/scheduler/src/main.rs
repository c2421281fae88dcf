//! `inheritune-scheduler`: serves the API and advances runs until SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inheritune_runtime::service::{Parts, WaysIn, report_end};
use inheritune_runtime::{config, shutdown, telemetry};
use inheritune_scheduler::config::ServiceConfig;
use inheritune_store::Store;

/// Accepts runs and jobs over gRPC, and advances runs.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; see deploy/config/scheduler.toml for a sample.
    #[arg(long, global = true, default_value = "deploy/config/scheduler.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Migrates the database schema and exits; run it before starting new versions of the services.
    Migrate,
    /// Serves until SIGTERM (the default).
    Serve,
}

fn main() -> ExitCode {
    report_end(run(Arguments::parse()))
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config: ServiceConfig = config::load(&arguments.config)?;
    let _telemetry = telemetry::init("inheritune-scheduler", &config.telemetry)?;
    let store = Store::connect(&config.database.store_config(config.objects.clone())?).await?;
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Migrate => {
            store.migrate().await?;
            tracing::info!("the schema is up to date");
            Ok(())
        }
        Command::Serve => serve_until_stopped(config, store).await,
    }
}

async fn serve_until_stopped(config: ServiceConfig, store: Store) -> anyhow::Result<()> {
    let mut parts = Parts::<anyhow::Error>::new(&shutdown::stop_on_signals());
    let services = inheritune_scheduler::services(&store, config.scheduler.ceilings, &parts.stop());
    let ways_in = WaysIn {
        listen: config.listen,
        metrics_listen: config.telemetry.metrics_listen,
        security: &config.security,
        limits: &config.limits,
    };
    ways_in.bind().await?.open(&mut parts, services, &store).await?;
    parts.add(inheritune_scheduler::run(store, config.scheduler, parts.stop()));
    parts.run().await
}
