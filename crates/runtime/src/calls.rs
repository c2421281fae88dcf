//! What happens around every gRPC call: its token is checked, it is counted and timed, and its span goes on with the
//! caller's trace.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use inheritune_api::status;
use tonic::{Code, Status};
use tracing::Instrument as _;

use crate::security::BearerToken;
use crate::telemetry::{metric, traces};

/// Services that anyone may call: a probe has no token, and neither tells more than the API's definition does.
pub(crate) const OPEN_SERVICES: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// What the calls of one server have in common.
pub(crate) struct Calls {
    pub(crate) token: Option<BearerToken>,
    /// Full names of the services that are served: others are counted together, whatever names callers make up.
    pub(crate) names: Vec<&'static str>,
}

/// Lets one call through, or not.
pub(crate) async fn around(State(calls): State<Arc<Calls>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let service = path.split('/').next().unwrap_or_default();
    let is_open = OPEN_SERVICES.contains(&service);
    let method = if is_open || calls.names.contains(&service) { path.clone() } else { "unknown".to_owned() };
    if !is_open && !calls.admits(&request) {
        let refused = status::unauthenticated();
        count(method, refused.code());
        return refused.into_http::<axum::body::Body>();
    }
    let span = tracing::info_span!("call", otel.name = path, otel.kind = "server", rpc.system = "grpc");
    traces::continue_from(&span, request.headers().get(traces::HEADER).and_then(|header| header.to_str().ok()));
    let started = Instant::now();
    let response = next.run(request).instrument(span).await;
    metrics::histogram!(metric::GRPC_REQUEST_SECONDS, "method" => method.clone())
        .record(started.elapsed().as_secs_f64());
    // A failed call says so in its headers; one that streams and fails later was a good one so far.
    count(method, Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code()));
    response
}

impl Calls {
    fn admits(&self, request: &Request) -> bool {
        self.token
            .as_ref()
            .is_none_or(|token| token.is_in(request.headers().get("authorization").map(|header| header.as_bytes())))
    }
}

fn count(method: String, code: Code) {
    // As other gRPC servers call them: OK, NotFound, ….
    let code = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
    metrics::counter!(metric::GRPC_REQUESTS, "method" => method, "code" => code).increment(1);
}
