//! OpenTelemetry traces: spans are exported over OTLP, and a trace continues from the caller
//! through the database to the worker.
//!
//! A W3C `traceparent` carries the trace across processes: in the header of a call, and in the row
//! of a run or a job. Without an endpoint there are no spans, and these functions do nothing.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header, and the propagator's key, of a trace context.
pub const HEADER: &str = "traceparent";

/// Returns a provider that exports the spans of `service` to `endpoint`. Must be called inside a
/// tokio runtime.
pub(super) fn provider(service: &str, endpoint: &str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

pub(super) fn tracer(provider: &SdkTracerProvider) -> Tracer {
    provider.tracer("inheritune")
}

/// Makes `span` a part of the caller's trace. The span must not have been entered yet. Ignores an
/// invalid `traceparent`.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent {
        let carrier = HashMap::from([(HEADER.to_owned(), traceparent.to_owned())]);
        // An error means that tracing is off.
        let _no_traces = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
}

/// Returns the `traceparent` of the current span, so that another process can continue its trace.
/// Returns `None` if tracing is off.
#[must_use]
pub fn current() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove(HEADER)
}
