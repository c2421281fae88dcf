//! Logs: `tracing` to standard error, pretty or JSON.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// How logs are written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is logged: `info`, `info,inheritune_store=debug`. The variable RUST_LOG wins over it.
    pub filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned() }
    }
}

/// For whom logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line an event.
    Pretty,
    /// One JSON object an event.
    Json,
}

/// Starts logging to standard error. A process calls it once; further calls change nothing.
pub fn init(config: &TelemetryConfig) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_span_events(FmtSpan::NONE)
        .with_writer(std::io::stderr);
    // An error means that a subscriber is set already: a second service in the same process, or a test.
    let _already_set = match config.format {
        LogFormat::Pretty => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
