//! The gRPC server: health, reflection, TLS, tokens, limits, graceful shutdown.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::calls::{Calls, OPEN_SERVICES, around};
use crate::listen::Gate;
use crate::security::Security;

/// Pings on an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// A ping that is not answered for so long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one connection.
const MAX_CALLS_PER_CONNECTION: usize = 128;
/// HTTP/2 streams at once on one connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Headers of one call in bytes, all together.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Streams that a client opened and reset before we looked at them; more end the connection ("rapid reset").
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we had to reset for what the client sent; more end the connection.
const MAX_LOCAL_RESETS: usize = 256;
/// Calls that still run when the server stops get so long to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// What a process serves. Messages are at most 4 MiB: tonic's default, which our services keep.
pub struct GrpcServices {
    /// The services' routes.
    pub routes: Routes,
    /// Their full names, `inheritune.v1.RunService`: what reflection lists and health reports.
    pub names: Vec<&'static str>,
}

impl GrpcServices {
    /// The services of both: one process may serve what several crates offer.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        let router = std::mem::take(self.routes.axum_router_mut());
        // Both answer unknown paths in the same way, and a router has one fallback.
        *self.routes.axum_router_mut() = router.merge(other.routes.into_axum_router().reset_fallback());
        self.names.extend(other.names);
        self
    }
}

/// Why a server could not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is not free or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The descriptors do not decode.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("grpc server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Binds `address`; port 0 takes any free one.
///
/// # Errors
/// The address is in use or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves `services` with health (each service and `""`) and reflection (v1 and v1alpha) until `stop`; then reports
/// NOT_SERVING, takes no new calls, and gives running ones 10 s. Long-lived streams must end on `stop` themselves.
///
/// # Errors
/// The descriptors do not decode, the certificate cannot be used, or the transport fails.
pub async fn serve(
    gate: impl Into<Gate>,
    services: GrpcServices,
    security: Security,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let GrpcServices { routes, names } = services;
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in &names {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let mut routes = routes
        .add_service(health_service)
        .add_service(reflection(&names).build_v1()?)
        .add_service(reflection(&names).build_v1alpha()?);
    let calls = Arc::new(Calls::new(security.token().cloned(), methods(&names)));
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.layer(axum::middleware::from_fn_with_state(calls, around));
    let stopped = stop.clone();
    let told = async move {
        stopped.cancelled().await;
        for name in names.into_iter().chain([""]) {
            health.set_service_status(name, ServingStatus::NotServing).await;
        }
    };
    let mut server = tonic::transport::Server::builder();
    if let Some(tls) = security.tls() {
        server = server.tls_config(tls)?;
    }
    let incoming = futures::stream::unfold(gate.into(), |mut gate| async {
        let connection = gate.next().await;
        Some((Ok::<_, io::Error>(connection), gate))
    });
    let server = server
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .concurrency_limit_per_connection(MAX_CALLS_PER_CONNECTION)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, told);
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        ended = server => Ok(ended?),
        () = drained => {
            tracing::warn!(limit_s = DRAIN_LIMIT.as_secs(), "calls still run; closing their connections");
            Ok(())
        }
    }
}

/// What may be served, as it was compiled.
const DESCRIPTORS: [&[u8]; 4] = [
    inheritune_api::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// The methods of the services that are served, `inheritune.v1.RunService/GetRun`: the only ones that have metrics.
fn methods(names: &[&'static str]) -> HashSet<Arc<str>> {
    let is_served = |service: &str| OPEN_SERVICES.iter().chain(names).any(|name| *name == service);
    let methods = DESCRIPTORS.into_iter().flat_map(inheritune_api::methods);
    methods
        .filter(|(service, _)| is_served(service))
        .map(|(service, name)| format!("{service}/{name}").into())
        .collect()
}

fn reflection(names: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure().include_reflection_service(false);
    let builder =
        DESCRIPTORS.into_iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
    OPEN_SERVICES.iter().chain(names).fold(builder, |builder, name| builder.with_service_name(*name))
}
