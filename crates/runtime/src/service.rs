//! A whole service that works one handler's jobs: what the mains of slicer, trainer and evaluator share.

use std::net::SocketAddr;

use inheritune_store::objects::ObjectsConfig;
use inheritune_store::{Store, StoreError};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, DatabaseConfig};
use crate::serve::{GrpcServices, ServeError, bind, serve};
use crate::telemetry::TelemetryConfig;
use crate::worker::{JobHandler, WorkerConfig, WorkerError, run_worker};

/// The configuration file of such a service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// The tables.
    pub database: DatabaseConfig,
    /// The objects.
    pub objects: ObjectsConfig,
    /// How jobs are worked.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Logs.
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
    /// Its server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Its worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Connects, serves and works until `stop`, or until one of the parts fails.
///
/// # Errors
/// The store cannot be reached, the address is taken, or a part fails.
pub async fn run_worker_service<H: JobHandler>(
    config: ServiceConfig,
    build: impl FnOnce(&Store) -> (H, GrpcServices),
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    let store = Store::connect(&config.database.store_config(config.objects)?).await?;
    let listener = bind(config.listen).await?;
    tracing::info!(address = %config.listen, "serving");
    let (handler, services) = build(&store);
    let stop_all = stop.child_token();
    // Whichever part ends first takes the other with it, but both are waited for: the worker gives its leases back.
    let (served, worked) = tokio::join!(
        async {
            let served = serve(listener, services, stop_all.clone()).await;
            stop_all.cancel();
            served
        },
        async {
            let worked = run_worker(store, handler, config.worker, stop_all.clone()).await;
            stop_all.cancel();
            worked
        },
    );
    worked?;
    served?;
    Ok(())
}
