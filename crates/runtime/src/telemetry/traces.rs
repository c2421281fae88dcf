//! OpenTelemetry traces: spans leave over OTLP, and a trace goes on from the caller through the tables to the worker.
//!
//! What crosses a process is a W3C `traceparent`: in the header of a call, in the row of a run or a job. Where no
//! endpoint is set there are no spans to go on from, and none of these do anything.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header, and the key, of a trace's context.
pub const HEADER: &str = "traceparent";

/// Sends spans of `service` to `endpoint`. Must be called inside a tokio runtime.
pub(super) fn provider(service: &str, endpoint: &str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

pub(super) fn tracer(provider: &SdkTracerProvider) -> Tracer {
    provider.tracer("inheritune")
}

/// Makes `span`, which was not entered yet, a part of the caller's trace; one that makes no sense is passed over.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent {
        let carrier = HashMap::from([(HEADER.to_owned(), traceparent.to_owned())]);
        // An error says that there are no traces here.
        let _no_traces = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
}

/// What the current span's part of the trace is called, for whoever goes on with it; none without traces.
#[must_use]
pub fn current() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove(HEADER)
}
