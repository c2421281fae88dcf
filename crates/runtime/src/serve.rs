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

/// Interval between pings on an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// A connection is closed if a ping is not answered within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent calls per connection.
const MAX_CALLS_PER_CONNECTION: usize = 128;
/// Concurrent HTTP/2 streams per connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Total size of the headers of one call, in bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Streams that a client may open and reset before the server accepts them. More close the
/// connection ("rapid reset").
const MAX_PENDING_RESETS: usize = 20;
/// Streams that the server may reset because of client errors. More close the connection.
const MAX_LOCAL_RESETS: usize = 256;
/// How long running calls may take to finish after the server is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The gRPC services of a process. Messages are limited to 4 MiB, tonic's default.
pub struct GrpcServices {
    /// The services' routes.
    pub routes: Routes,
    /// Their full names, such as `inheritune.v1.RunService`, for reflection and health.
    pub names: Vec<&'static str>,
}

impl GrpcServices {
    /// Combines the services of several crates into one process.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        let router = std::mem::take(self.routes.axum_router_mut());
        // A router can only have one fallback, and both handle unknown paths in the same way.
        *self.routes.axum_router_mut() = router.merge(other.routes.into_axum_router().reset_fallback());
        self.names.extend(other.names);
        self
    }
}

/// Errors of starting or running a server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is in use or does not belong to this machine.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The descriptors cannot be decoded.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("grpc server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Binds `address`; port 0 selects any free port.
///
/// # Errors
/// The address is in use or does not belong to this machine.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves `services` with health (each service and `""`) and reflection (v1 and v1alpha) until
/// `stop`. Then it reports NOT_SERVING, accepts no new calls, and gives running calls 10 s to finish. Long-lived streams must end on `stop`
/// themselves.
///
/// # Errors
/// The descriptors cannot be decoded, the certificate is not valid, or the transport fails.
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
            tracing::warn!(limit_s = DRAIN_LIMIT.as_secs(), "calls are still running; closing their connections");
            Ok(())
        }
    }
}

/// Compiled descriptors of every service that may be served.
const DESCRIPTORS: [&[u8]; 4] = [
    inheritune_api::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Returns the methods of the served services, such as `inheritune.v1.RunService/GetRun`. Only
/// these have metrics.
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
