//! A whole process: its parts, the ways into it, and what the mains of slicer, trainer and evaluator share.

use std::net::SocketAddr;
use std::process::ExitCode;

use inheritune_domain::spec::JobKind;
use inheritune_objects::ObjectsConfig;
use inheritune_store::{Store, StoreConfig, StoreError};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, DatabaseConfig, Settings};
use crate::listen::{Gate, ListenLimits, raise_descriptor_limit};
use crate::operations::serve_operations;
use crate::security::{Security, SecurityConfig};
use crate::serve::{GrpcServices, ServeError, bind, serve};
use crate::telemetry::TelemetryConfig;
use crate::worker::{JobProcesses, WorkerConfig, WorkerError, run_worker};

/// Database connections of a job's process: its own writes, and one beside them.
pub const CONNECTIONS_PER_JOB: u32 = 2;

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

/// Which jobs a service works, and how its program is started to do one.
#[derive(Debug, Clone)]
pub struct JobProgram {
    /// `inheritune-trainer`.
    pub service: &'static str,
    /// The jobs.
    pub kinds: &'static [JobKind],
    /// `run-job`, and what else the process has to know.
    pub arguments: Vec<String>,
}

/// Connects, serves and works until `stop`, or until one of the parts fails.
///
/// # Errors
/// The store cannot be reached, an address is taken or not allowed, or a part fails.
pub async fn run_worker_service(
    config: ServiceConfig,
    program: JobProgram,
    services: impl FnOnce(&Store) -> GrpcServices,
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    let ways_in = WaysIn {
        listen: config.listen,
        metrics_listen: config.telemetry.metrics_listen,
        security: &config.security,
        limits: &config.limits,
    };
    let listeners = ways_in.bind().await?;
    let store_config = config.database.store_config(config.objects)?;
    let store = Store::connect(&store_config).await?;
    let mut parts = Parts::<ServiceError>::new(&stop);
    listeners.open(&mut parts, services(&store), &store).await?;
    let processes = JobProcesses {
        kinds: program.kinds.to_vec(),
        arguments: program.arguments,
        store: StoreConfig { max_connections: CONNECTIONS_PER_JOB, ..store_config },
        worker: config.worker.clone(),
        service: program.service.to_owned(),
        telemetry: config.telemetry,
        settings: Settings::File,
    };
    parts.add(run_worker(store, processes, config.worker, parts.stop()));
    parts.run().await
}

/// Says how a process ended: an error in one line on standard error, whatever RUST_BACKTRACE says.
pub fn report_end<E: Into<anyhow::Error>>(ended: Result<(), E>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error.into()));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each said once: most of our messages hold their cause's already.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
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

impl WaysIn<'_> {
    /// Takes the addresses: before anything else is started, so that one that is in use costs nothing.
    ///
    /// # Errors
    /// An address is taken, not ours, or not to be served like this; a file of the security section cannot be read.
    pub async fn bind(&self) -> Result<Listeners, ServiceError> {
        let security = self.security.load()?;
        security.check_grpc(self.listen)?;
        self.limits.check()?;
        let grpc = take("listen", self.listen).await?;
        let metrics = match self.metrics_listen {
            Some(address) => {
                security.check_plaintext("telemetry.metrics_listen", address)?;
                Some(take("telemetry.metrics_listen", address).await?)
            }
            None => None,
        };
        Ok(Listeners { grpc, metrics, security, limits: self.limits.clone() })
    }
}

async fn take(field: &'static str, address: SocketAddr) -> Result<TcpListener, ServiceError> {
    bind(address).await.map_err(|error| match error {
        ServeError::Bind { address, source } => {
            let problem = format!("{address}: {source}; stop what listens there, or take another address");
            ConfigError::Field { field, problem }.into()
        }
        error @ (ServeError::Reflection(_) | ServeError::Transport(_)) => error.into(),
    })
}

/// Addresses that are taken, and not served yet.
pub struct Listeners {
    grpc: TcpListener,
    metrics: Option<TcpListener>,
    security: Security,
    limits: ListenLimits,
}

impl Listeners {
    /// Adds the servers of a process to its parts; says where gRPC is served.
    ///
    /// # Errors
    /// The database's schema is too old.
    pub async fn open<E>(
        self,
        parts: &mut Parts<E>,
        services: GrpcServices,
        store: &Store,
    ) -> Result<SocketAddr, ServiceError>
    where
        E: From<ServeError> + From<std::io::Error> + From<JoinError> + Send + 'static,
    {
        store.check_schema().await?;
        let address = self.grpc.local_addr()?;
        let descriptors = raise_descriptor_limit();
        let gate = Gate::new(self.grpc, "grpc", self.limits);
        let max_connections = gate.max_connections();
        tracing::info!(%address, security = ?self.security, max_connections, descriptors, "serving gRPC");
        if let Some(listener) = self.metrics {
            tracing::info!(address = %listener.local_addr()?, "serving /metrics, /livez and /readyz");
            parts.add(serve_operations(listener, store.clone(), parts.stop()));
        }
        parts.add(serve(gate, services, self.security, parts.stop()));
        Ok(address)
    }
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
