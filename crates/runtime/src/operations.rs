//! The HTTP endpoints of a service for operators: `/metrics`, `/livez`, `/readyz`.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use inheritune_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::listen::{Gate, Guest, ListenLimits};
use crate::telemetry::metric;

/// A service is not ready if the database takes longer than this to respond.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// The content type that Prometheus expects.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long open connections may continue after the service is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Serves until `stop`: `/livez` succeeds while the process lives, `/readyz` while the database
/// responds, and `/metrics` returns the metrics for Prometheus.
///
/// # Errors
/// The listener fails.
pub async fn serve_operations(listener: TcpListener, store: Store, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(async || ([(CONTENT_TYPE, METRICS_TYPE)], metric::render())))
        .layer(from_fn(seen))
        .with_state(store)
        .into_make_service_with_connect_info::<Guest>();
    let gate = Gate::new(listener, "operations", ListenLimits::of_operations());
    let served = axum::serve(gate, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let upkeep = async {
        let mut ticks = tokio::time::interval(metric::UPKEEP_INTERVAL);
        while !stop.is_cancelled() {
            tokio::select! {
                _ = ticks.tick() => metric::upkeep(),
                () = stop.cancelled() => {}
            }
        }
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        served = served => served,
        () = upkeep => Ok(()),
    }
}

/// Registers the request with its connection, because connections without requests are closed.
async fn seen(ConnectInfo(guest): ConnectInfo<Guest>, request: Request, next: Next) -> Response {
    let _call = guest.call(false);
    next.run(request).await
}

async fn ready(State(store): State<Store>) -> impl IntoResponse {
    match tokio::time::timeout(READY_LIMIT, store.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n"),
        // The reason goes only to the log: the response may be read by strangers.
        Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}
