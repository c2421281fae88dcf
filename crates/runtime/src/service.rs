//! A whole process: its parts, the ways into it, and what the mains of slicer, trainer and evaluator share.

use std::net::SocketAddr;

use inheritune_store::objects::ObjectsConfig;
use inheritune_store::{Store, StoreError};
use serde::Deserialize;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, DatabaseConfig};
use crate::listen::{Gate, ListenLimits, raise_descriptor_limit};
use crate::operations::serve_operations;
use crate::security::SecurityConfig;
use crate::serve::{GrpcServices, ServeError, bind, serve};
use crate::telemetry::TelemetryConfig;
use crate::worker::{JobHandler, WorkerConfig, WorkerError, run_worker};

/// The configuration file of a service that works jobs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Who may call, and over what.
    #[serde(default)]
    pub security: SecurityConfig,
    /// How many connections are taken.
    #[serde(default)]
    pub limits: ListenLimits,
    /// The tables.
    pub database: DatabaseConfig,
    /// The objects.
    pub objects: ObjectsConfig,
    /// How jobs are worked.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Logs, metrics, traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// Why a service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its gRPC server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Its metrics server.
    #[error("metrics server: {0}")]
    Operations(#[from] std::io::Error),
    /// Its worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A part of it panicked.
    #[error("a part of the service ended: {0}")]
    Part(#[from] JoinError),
}

/// Connects, serves and works until `stop`, or until one of the parts fails.
///
/// # Errors
/// The store cannot be reached, an address is taken or not allowed, or a part fails.
pub async fn run_worker_service<H: JobHandler>(
    config: ServiceConfig,
    build: impl FnOnce(&Store) -> (H, GrpcServices),
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    let store = Store::connect(&config.database.store_config(config.objects)?).await?;
    let (handler, services) = build(&store);
    let mut parts = Parts::<ServiceError>::new(&stop);
    let ways_in = WaysIn {
        listen: config.listen,
        metrics_listen: config.telemetry.metrics_listen,
        security: &config.security,
        limits: &config.limits,
    };
    open(&mut parts, &ways_in, services, &store).await?;
    parts.add(run_worker(store, handler, config.worker, parts.stop()));
    parts.run().await
}

/// Where a process is reached, and by whom.
pub struct WaysIn<'a> {
    /// gRPC.
    pub listen: SocketAddr,
    /// HTTP for those who run it.
    pub metrics_listen: Option<SocketAddr>,
    /// TLS, tokens, plaintext.
    pub security: &'a SecurityConfig,
    /// How many connections gRPC takes.
    pub limits: &'a ListenLimits,
}

/// Adds the servers of a process to its parts; says where gRPC is served.
///
/// # Errors
/// The database's schema is too old; an address is taken, not ours, or not to be served without TLS; a file of the security
/// section cannot be read.
pub async fn open<E>(
    parts: &mut Parts<E>,
    ways_in: &WaysIn<'_>,
    services: GrpcServices,
    store: &Store,
) -> Result<SocketAddr, ServiceError>
where
    E: From<ServeError> + From<std::io::Error> + From<JoinError> + Send + 'static,
{
    store.check_schema().await?;
    let security = ways_in.security.load()?;
    security.check_grpc(ways_in.listen)?;
    ways_in.limits.check()?;
    let descriptors = raise_descriptor_limit();
    let listener = bind(ways_in.listen).await?;
    let address = listener.local_addr()?;
    let gate = Gate::new(listener, "grpc", ways_in.limits.clone());
    tracing::info!(%address, ?security, max_connections = gate.max_connections(), descriptors, "serving gRPC");
    if let Some(metrics_listen) = ways_in.metrics_listen {
        security.check_plaintext("telemetry.metrics_listen", metrics_listen)?;
        let listener = bind(metrics_listen).await?;
        tracing::info!(address = %listener.local_addr()?, "serving /metrics, /livez and /readyz");
        parts.add(serve_operations(listener, store.clone(), parts.stop()));
    }
    parts.add(serve(gate, services, security, parts.stop()));
    Ok(address)
}

/// What runs side by side in one process. Whichever part ends first takes the others with it, but all are waited for:
/// workers give their leases back.
pub struct Parts<E> {
    stop: CancellationToken,
    running: JoinSet<Result<(), E>>,
}

impl<E: From<JoinError> + Send + 'static> Parts<E> {
    /// None yet; all of them will stop with `stop`.
    #[must_use]
    pub fn new(stop: &CancellationToken) -> Self {
        Self { stop: stop.child_token(), running: JoinSet::new() }
    }

    /// What every part has to end on.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a part.
    pub fn add<F>(&mut self, part: impl Future<Output = Result<(), F>> + Send + 'static)
    where
        E: From<F>,
    {
        // Also when the part panics.
        let stop_others = self.stop.clone().drop_guard();
        self.running.spawn(async move {
            let ended = part.await;
            drop(stop_others);
            ended.map_err(E::from)
        });
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// The first part that failed.
    pub async fn run(mut self) -> Result<(), E> {
        let mut first_error = Ok(());
        while let Some(part) = self.running.join_next().await {
            let ended = part.map_err(E::from).and_then(|ended| ended);
            if first_error.is_ok() {
                first_error = ended;
            }
        }
        first_error
    }
}
