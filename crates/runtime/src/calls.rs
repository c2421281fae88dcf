//! Middleware around every gRPC call: checks the bearer token, counts and times the call, limits
//! how long the request may take to arrive, and continues the caller's trace.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use inheritune_api::status;
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tracing::Instrument as _;

use crate::listen::{Call, Guest};
use crate::security::BearerToken;
use crate::telemetry::{metric, traces};

/// Services that need no token: probes have none, and these services reveal nothing beyond the API
/// definition.
pub(crate) const OPEN_SERVICES: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
/// Time limit for receiving a complete request, counted from its headers. It also limits the
/// request streams of reflection.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Concurrent requests per process; each may take 4 MiB. A watch counts until its first response.
const MAX_CALLS: usize = 256;
/// Longest wait for one of these slots.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// Metric label for every unknown method, so that callers cannot create new series.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// State shared by all calls of one server.
pub(crate) struct Calls {
    token: Option<BearerToken>,
    /// Served methods, such as `inheritune.v1.RunService/GetRun`: only these have their own metrics
    /// and spans.
    methods: HashSet<Arc<str>>,
    at_once: Semaphore,
}

/// Admits or rejects one call, and records its metrics.
pub(crate) async fn around(State(calls): State<Arc<Calls>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    let is_open = path.split('/').next().is_some_and(|service| OPEN_SERVICES.contains(&service));
    let method = calls.methods.get(path).unwrap_or_else(|| &UNKNOWN).clone();
    let started = Instant::now();
    let response = match calls.admit(&request, is_open) {
        Ok(call) => {
            let response = calls.carry_out(request, next, (&method, is_open)).await;
            metrics::histogram!(metric::GRPC_REQUEST_SECONDS, "method" => method.clone())
                .record(started.elapsed().as_secs_f64());
            // The call lasts until its response body is dropped.
            response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _lasts = &call;
                    frame
                }))
            })
        }
        Err(refused) => refused.into_http(),
    };
    // A failed call has its status in the headers. A stream that fails later counts as OK.
    count(method, Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code()));
    response
}

impl Calls {
    pub(crate) fn new(token: Option<BearerToken>, methods: HashSet<Arc<str>>) -> Self {
        Self { token, methods, at_once: Semaphore::new(MAX_CALLS) }
    }

    /// Returns the guard that the call holds while it lasts. A rejected call does not count as
    /// activity of its connection.
    fn admit(&self, request: &Request, is_open: bool) -> Result<Option<Call>, Status> {
        if let Some(token) = self.token.as_ref().filter(|_| !is_open) {
            match request.headers().get("authorization") {
                None => return Err(status::no_token()),
                Some(header) if !token.is_in(header.as_bytes()) => return Err(status::wrong_token()),
                Some(_) => {}
            }
        }
        let Some(guest) = request.extensions().get::<Guest>() else { return Ok(None) };
        let too_many =
            || status::resource_exhausted("calls", "too many concurrent probes on this connection; end some of them");
        guest.call(is_open).map(Some).ok_or_else(too_many)
    }

    async fn carry_out(&self, request: Request, next: Next, (method, is_open): (&Arc<str>, bool)) -> Response {
        let span = tracing::info_span!("call", otel.name = %method, otel.kind = "server", rpc.system = "grpc");
        traces::continue_from(&span, request.headers().get(traces::HEADER).and_then(|header| header.to_str().ok()));
        let request = request.map(|body| Body::from_stream(in_time(body)));
        let answer = next.run(request).instrument(span);
        if is_open {
            return answer.await;
        }
        match tokio::time::timeout(CALL_WAIT, self.at_once.acquire()).await {
            // The semaphore is never closed.
            Ok(_permit) => answer.await,
            Err(_) => {
                let limit = format!("this service handles at most {MAX_CALLS} concurrent calls; try again");
                status::resource_exhausted("calls", &limit).into_http()
            }
        }
    }
}

/// The request body, which fails once [`REQUEST_LIMIT`] has passed.
fn in_time(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    let deadline = tokio::time::Instant::now() + REQUEST_LIMIT;
    futures::stream::unfold(Some(body.into_data_stream()), move |body| async move {
        let mut body = body?;
        match tokio::time::timeout_at(deadline, body.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(body))),
            Err(_) => {
                let late = format!("the request was not complete after {} s", REQUEST_LIMIT.as_secs());
                Some((Err(axum::Error::new(Status::deadline_exceeded(late))), None))
            }
        }
    })
}

fn count(method: Arc<str>, code: Code) {
    // The code names that other gRPC servers use: OK, NotFound, ….
    let code = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
    metrics::counter!(metric::GRPC_REQUESTS, "method" => method, "code" => code).increment(1);
}
