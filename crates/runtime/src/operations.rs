//! The HTTP side of a service, for those who run it: `/metrics`, `/livez`, `/readyz`.

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

/// The database is not there for a service that waits longer for one answer.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// What Prometheus expects.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Connections that are still open when the service stops get so long.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Serves until `stop`: `/livez` while the process lives, `/readyz` while the database answers, `/metrics` for
/// Prometheus.
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

/// Connections that ask nothing are closed.
async fn seen(ConnectInfo(guest): ConnectInfo<Guest>, request: Request, next: Next) -> Response {
    let _call = guest.call(false);
    next.run(request).await
}

async fn ready(State(store): State<Store>) -> impl IntoResponse {
    match tokio::time::timeout(READY_LIMIT, store.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n"),
        // Why is in the log, which strangers do not read.
        Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}
