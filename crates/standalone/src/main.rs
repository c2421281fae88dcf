//! `inheritune-standalone`: see the library.

use clap::Parser;
use inheritune_runtime::shutdown::stop_on_signals;
use inheritune_runtime::telemetry::{self, TelemetryConfig};
use inheritune_standalone::{Options, run};

/// Every Inheritune service in one process, on a private Postgres and a local folder.
///
/// SIGTERM or Ctrl-C: training saves what it has, and the next start on the same folder goes on from there.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = TelemetryConfig { metrics_listen: arguments.options.metrics_listen, ..TelemetryConfig::default() };
    let _telemetry = telemetry::init("inheritune-standalone", &config)?;
    run(arguments.options, stop_on_signals()).await
}
