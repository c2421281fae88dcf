//! What a service says of itself: logs on standard error, metrics for Prometheus, traces for OpenTelemetry.

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub mod metric;
pub mod traces;

/// Where spans go when the configuration does not say: OpenTelemetry's own variable.
const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Which spans leave: ours, not those of the libraries that send them.
const TRACED: &str = "off,inheritune=info,inheritune_runtime=info,inheritune_scheduler=info,inheritune_slicer=info,\
                      inheritune_trainer=info,inheritune_evaluator=info,inheritune_store=info";
/// At the end, spans that did not leave yet get so long.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// What is logged, counted and traced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is logged: `info`, `info,inheritune_store=debug`. The variable RUST_LOG wins over it.
    pub filter: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served over HTTP; nowhere when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// Where traces go, over OTLP and gRPC: `http://host:4317`. When absent, where OTEL_EXPORTER_OTLP_ENDPOINT says;
    /// nowhere when that is absent too.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned(), metrics_listen: None, otlp_endpoint: None }
    }
}

impl TelemetryConfig {
    /// The same for the process of a job: its worker serves the metrics.
    pub(crate) fn of_a_job(&self) -> Self {
        Self { metrics_listen: None, ..self.clone() }
    }
}

/// For whom logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line an event.
    Pretty,
    /// One JSON object an event.
    Json,
}

/// Why a service cannot say anything of itself.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Traces cannot be sent.
    #[error("telemetry.otlp_endpoint `{endpoint}`: {source}")]
    Traces {
        /// Where to.
        endpoint: String,
        /// Why not.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Metrics cannot be counted.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// What has to be kept until a process ends: spans leave in batches.
#[must_use = "the last spans leave when it is dropped"]
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.traces.take().map(|traces| traces.shutdown_with_timeout(FLUSH_LIMIT)) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Starts logging to standard error, counting where metrics are served, and tracing where an endpoint is set, which
/// needs a tokio runtime. `service` names the process in traces. A process calls it once; further calls change nothing.
///
/// # Errors
/// The endpoint for traces is none.
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

/// Starts logging alone: for a process that is a part of another one's job.
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
    // An error means that a subscriber is set already: a second service in the same process, or a test.
    let _already_set =
        tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(filter))).with(spans).try_init();
}
