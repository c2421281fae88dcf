//! A service process: its parts, its listeners, and the shared main of slicer, trainer and
//! evaluator.

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

/// Database connections of a job's process: one for its writes and one for everything else.
pub const CONNECTIONS_PER_JOB: u32 = 2;

/// The configuration file of a service that runs jobs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Who may call, and whether over TLS.
    #[serde(default)]
    pub security: SecurityConfig,
    /// Connection limits.
    #[serde(default)]
    pub limits: ListenLimits,
    /// The database.
    pub database: DatabaseConfig,
    /// The object store.
    pub objects: ObjectsConfig,
    /// How jobs are run.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Logs, metrics and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// Errors that end a service.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The gRPC server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The metrics server failed.
    #[error("metrics server: {0}")]
    Operations(#[from] std::io::Error),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A part of the service panicked.
    #[error("a part of the service failed: {0}")]
    Part(#[from] JoinError),
}

/// Which jobs a service runs, and how its program is started to run one.
#[derive(Debug, Clone)]
pub struct JobProgram {
    /// Name of the service, such as `inheritune-trainer`.
    pub service: &'static str,
    /// The kinds of jobs that the service runs.
    pub kinds: &'static [JobKind],
    /// Arguments of a job's process: `run-job` and any options.
    pub arguments: Vec<String>,
}

/// Connects to the store, serves gRPC and runs jobs until `stop`, or until a part fails.
///
/// # Errors
/// The store cannot be reached, an address is in use or not allowed, or a part fails.
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

/// Returns the exit code of a process. Prints an error as one line on standard error, regardless of
/// RUST_BACKTRACE.
pub fn report_end<E: Into<anyhow::Error>>(ended: Result<(), E>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error.into()));
            ExitCode::FAILURE
        }
    }
}

/// Formats an error and its causes as one line. Omits causes whose text is already part of the
/// line.
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

/// The addresses of a process, and who may connect to them.
pub struct WaysIn<'a> {
    /// Address of the gRPC server.
    pub listen: SocketAddr,
    /// Address of the HTTP server for metrics and probes.
    pub metrics_listen: Option<SocketAddr>,
    /// TLS, tokens and plaintext.
    pub security: &'a SecurityConfig,
    /// Connection limits of the gRPC server.
    pub limits: &'a ListenLimits,
}

impl WaysIn<'_> {
    /// Binds the addresses. Called before anything else is started, so that an address in use fails
    /// early.
    ///
    /// # Errors
    /// An address is in use, does not belong to this machine, or is not allowed by the security
    /// section; a file of that section cannot be read.
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
            let problem = format!("{address}: {source}; stop what is listening there, or use another address");
            ConfigError::Field { field, problem }.into()
        }
        error @ (ServeError::Reflection(_) | ServeError::Transport(_)) => error.into(),
    })
}

/// Bound addresses that are not served yet.
pub struct Listeners {
    grpc: TcpListener,
    metrics: Option<TcpListener>,
    security: Security,
    limits: ListenLimits,
}

impl Listeners {
    /// Adds the servers of a process to its parts. Returns the address of the gRPC server.
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

/// The concurrent parts of one process. When the first part ends, the others are stopped too. All
/// of them are awaited, so that workers can release their leases.
pub struct Parts<E> {
    stop: CancellationToken,
    running: JoinSet<Result<(), E>>,
}

impl<E: From<JoinError> + Send + 'static> Parts<E> {
    /// Creates an empty set of parts, which all stop with `stop`.
    #[must_use]
    pub fn new(stop: &CancellationToken) -> Self {
        Self { stop: stop.child_token(), running: JoinSet::new() }
    }

    /// The token on which every part must stop.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a part.
    pub fn add<F>(&mut self, part: impl Future<Output = Result<(), F>> + Send + 'static)
    where
        E: From<F>,
    {
        // The guard also stops the others when the part panics.
        let stop_others = self.stop.clone().drop_guard();
        self.running.spawn(async move {
            let ended = part.await;
            drop(stop_others);
            ended.map_err(E::from)
        });
    }

    /// Waits for all parts to end.
    ///
    /// # Errors
    /// Returns the error of the first part that failed.
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
