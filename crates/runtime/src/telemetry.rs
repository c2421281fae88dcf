//! Telemetry of a service: logs on standard error, metrics for Prometheus, traces for
//! OpenTelemetry.

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub mod metric;
pub mod traces;

/// OpenTelemetry's environment variable for the endpoint, used if the configuration has none.
const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Filter for exported spans: only our own, not those of the libraries that export them.
const TRACED: &str = "off,inheritune=info,inheritune_runtime=info,inheritune_scheduler=info,inheritune_slicer=info,\
                      inheritune_trainer=info,inheritune_evaluator=info,inheritune_store=info";
/// Time limit for exporting the remaining spans at exit.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// The section `[telemetry]` of every service's file: logs, metrics and traces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The log format.
    pub format: LogFormat,
    /// The log filter, such as `info` or `info,inheritune_store=debug`. The environment variable
    /// RUST_LOG overrides it.
    pub filter: String,
    /// Address on which `/metrics`, `/livez` and `/readyz` are served over HTTP. Not served if
    /// absent.
    pub metrics_listen: Option<SocketAddr>,
    /// Endpoint for traces, over OTLP and gRPC: `http://host:4317`. If absent,
    /// OTEL_EXPORTER_OTLP_ENDPOINT is used. If both are absent, there are no traces.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned(), metrics_listen: None, otlp_endpoint: None }
    }
}

impl TelemetryConfig {
    /// Returns the configuration for the process of a job, whose metrics are served by its worker.
    pub(crate) fn of_a_job(&self) -> Self {
        Self { metrics_listen: None, ..self.clone() }
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One human-readable line per event.
    Pretty,
    /// One JSON object per event.
    Json,
}

/// Errors of setting up telemetry.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Traces cannot be exported.
    #[error("telemetry.otlp_endpoint `{endpoint}`: {source}")]
    Traces {
        /// The endpoint.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Metrics cannot be collected.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// A guard that must be kept until the process ends. Spans are exported in batches, and the last
/// batch is exported on drop.
#[must_use = "the last spans are exported when it is dropped"]
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.traces.take().map(|traces| traces.shutdown_with_timeout(FLUSH_LIMIT)) {
            tracing::warn!(%error, "cannot export the last traces");
        }
    }
}

/// Starts logging to standard error, collects metrics if they are served, and exports traces if an
/// endpoint is set, which needs a tokio runtime. `service` names the process in traces. A process
/// calls this once; further calls have no effect.
///
/// # Errors
/// The endpoint for traces is not valid.
pub fn init(service: &str, config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    if config.metrics_listen.is_some() {
        metric::install()?;
    }
    let endpoint = config.otlp_endpoint.clone().or_else(|| std::env::var(ENDPOINT_VARIABLE).ok());
    let traces = endpoint
        .filter(|endpoint| !endpoint.is_empty())
        .map(|endpoint| {
            traces::provider(service, &endpoint).map_err(|source| TelemetryError::Traces { endpoint, source })
        })
        .transpose()?;
    start(config, traces.as_ref());
    Ok(Telemetry { traces })
}

/// Starts only logging, for a process that takes part in another process's job.
pub fn init_logs(config: &TelemetryConfig) {
    start(config, None);
}

fn start(config: &TelemetryConfig, traces: Option<&SdkTracerProvider>) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Pretty => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = traces.map(|provider| {
        tracing_opentelemetry::layer().with_tracer(traces::tracer(provider)).with_filter(EnvFilter::new(TRACED))
    });
    // An error means that a subscriber is already set: by another service in this process, or by a
    // test.
    let _already_set =
        tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(filter))).with(spans).try_init();
}
