//! Runs every service in one process, with a private Postgres and a local folder.
//!
//! Owns: assembling the parts. The services run the same code as in a cluster and communicate
//! through the same tables; they only share a process.
//!
//! Entry points: [`run`]; [`jobs`] for the processes of its jobs.
//!
//! Must never: do anything that a cluster could not do, or keep its own state.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use inheritune_domain::spec::{Ceilings, JobKind};
use inheritune_objects::{Objects, ObjectsConfig, StorageConfig};
use inheritune_postgres::{LocalPostgres, LocalPostgresError, TakenFolder};
use inheritune_runtime::config::Settings;
use inheritune_runtime::listen::ListenLimits;
use inheritune_runtime::security::{Callers, Plaintext, SecurityConfig};
use inheritune_runtime::service::{CONNECTIONS_PER_JOB, Listeners, Parts, WaysIn, in_one_line};
use inheritune_runtime::telemetry::TelemetryConfig;
use inheritune_runtime::worker::{JobProcesses, WorkerConfig, run_worker};
use inheritune_scheduler::SchedulerConfig;
use inheritune_store::{Store, StoreConfig};
use tokio_util::sync::CancellationToken;

mod data_dir;
mod jobs;
mod words;

pub use jobs::{Jobs, jobs};

/// Name of the process in traces.
pub const SERVICE: &str = "inheritune-standalone";

/// Database connections of the process, which four services share.
const MAX_CONNECTIONS: u32 = 16;

/// Command-line options of the server.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Folder for the database, artifacts and caches; created if missing, accessible only to this
    /// user
    #[arg(long, default_value = "inheritune-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address of the gRPC server; port 0 selects any free port
    #[arg(long, default_value = "127.0.0.1:7600", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Address on which /metrics, /livez and /readyz are served over HTTP [default: not served]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Allow plaintext on non-loopback addresses; only if the network is protected by other means
    #[arg(long)]
    pub plaintext_anywhere: bool,
    /// Allow calls without a token on non-loopback addresses; only if access is restricted by other
    /// means
    #[arg(long)]
    pub callers_anyone: bool,
    /// Serve gRPC over TLS with this certificate (PEM); `inheritune certs init` creates one
    #[arg(long, requires = "key_file", value_name = "FILE")]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, requires = "certificate_file", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A file with the token that calls must carry
    #[arg(long, value_name = "FILE")]
    pub bearer_token_file: Option<PathBuf>,
    /// Write the server's URL to this file once it accepts calls
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Folder with `postgres` and `initdb` [default: search for it]
    #[arg(long, env = "INHERITUNE_PG_BIN", value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// Use this database instead of a private one
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Threads per training or evaluation [default: all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Maximum number of parameters of a model [default: 200 billion]
    #[arg(long, value_name = "N")]
    pub max_parameters: Option<u64>,
    /// Maximum number of bytes that a job may fetch or write [default: 1 TB]
    #[arg(long, value_name = "BYTES")]
    pub max_job_bytes: Option<u64>,
    /// Folder or URI prefix that jobs may read; can be repeated [default: the current folder and
    /// the data folder]
    #[arg(long = "allow-uri", value_name = "PREFIX")]
    pub allowed_uris: Vec<String>,
    /// Maximum private memory of each job's process [default: the memory of the machine]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(16_777_216..))]
    pub job_memory_max_bytes: Option<u64>,
    /// Maximum disk space of each job's working files [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub job_disk_max_bytes: Option<u64>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1; omit it to use all cores".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

/// Serves gRPC and runs jobs until `stop`. Then it saves, releases leases and stops the database.
///
/// # Errors
/// A part could not start, or failed. Messages name command-line flags instead of configuration
/// fields.
pub async fn run(options: Options, telemetry: TelemetryConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let run = run_in_folder(options, telemetry, stop).await;
    run.map_err(|error| anyhow::Error::msg(words::in_flags(in_one_line(&error))))
}

async fn run_in_folder(options: Options, telemetry: TelemetryConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let data_dir = data_dir::make_private(&options.data_dir)?;
    // Check the options before a database is created.
    let folder = match options.database_url {
        Some(_) => None,
        None => Some(TakenFolder::take(&data_dir.join("postgres")).await.map_err(|error| in_use(error, &data_dir))?),
    };
    let objects = ObjectsConfig {
        storage: StorageConfig::folder(data_dir.join("objects")),
        allowed_uris: data_dir::allowed_uris(&options.allowed_uris, &data_dir)?,
    };
    Objects::new(&objects)?;
    let security = options.security();
    let limits = ListenLimits::default();
    let ways_in =
        WaysIn { listen: options.listen, metrics_listen: options.metrics_listen, security: &security, limits: &limits };
    let listeners = ways_in.bind().await?;
    let serve = |database_url: &str| {
        let store = StoreConfig { database_url: database_url.to_owned(), max_connections: MAX_CONNECTIONS, objects };
        serve_on(store, listeners, (data_dir.clone(), options.clone(), telemetry), stop)
    };
    match (folder, &options.database_url) {
        (Some(folder), _) => {
            let mut postgres = start_postgres(&folder, &data_dir, options.pg_bin.as_deref()).await?;
            let serving = serve(postgres.url());
            let served = tokio::select! {
                served = serving => served,
                // Every service needs Postgres, so fail immediately.
                error = postgres.keep_running() => return Err(error.into()),
            };
            postgres.stop().await?;
            served
        }
        (None, Some(url)) => serve(url).await,
        (None, None) => Ok(()),
    }
}

/// Starts a private Postgres. If it runs under another account, that account may traverse the data
/// folder when it needs to.
async fn start_postgres(folder: &TakenFolder, data_dir: &Path, pg_bin: Option<&Path>) -> anyhow::Result<LocalPostgres> {
    match LocalPostgres::start_on(folder, pg_bin).await {
        Err(LocalPostgresError::NoAccount { uid, .. }) => {
            data_dir::let_through(data_dir, uid)?;
            Ok(LocalPostgres::start_on(folder, pg_bin).await?)
        }
        started => Ok(started?),
    }
}

fn in_use(error: LocalPostgresError, data_dir: &Path) -> anyhow::Error {
    match error {
        LocalPostgresError::InUse { owner, .. } => anyhow::anyhow!(
            "--data-dir {} is in use by another inheritune-standalone (pid {owner}); stop it, or use another folder",
            data_dir.display()
        ),
        error => error.into(),
    }
}

async fn serve_on(
    store_config: StoreConfig,
    listeners: Listeners,
    (data_dir, options, telemetry): (PathBuf, Options, TelemetryConfig),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let connected = Store::connect(&store_config).await;
    let store = if options.database_url.is_some() { connected.context("--database-url")? } else { connected? };
    store.migrate().await?;

    let mut parts = Parts::<anyhow::Error>::new(&stop);
    let services = inheritune_scheduler::services(&store, options.ceilings(), &parts.stop())
        .merge(inheritune_slicer::services(&store))
        .merge(inheritune_trainer::services(&store))
        .merge(inheritune_evaluator::services(&store));
    let address = listeners.open(&mut parts, services, &store).await?;

    parts.add(inheritune_scheduler::run(store.clone(), SchedulerConfig::default(), parts.stop()));
    let workers: [(&str, &[JobKind]); 3] = [
        ("slicer", &inheritune_slicer::KINDS),
        ("trainer", &inheritune_trainer::KINDS),
        ("evaluator", &inheritune_evaluator::KINDS),
    ];
    for (name, kinds) in workers {
        let worker = WorkerConfig {
            cache_dir: data_dir.join("cache").join(name),
            threads: options.threads,
            ceilings: options.ceilings(),
            job_memory_max_bytes: options.job_memory_max_bytes,
            job_disk_max_bytes: options.job_disk_max_bytes,
            ..WorkerConfig::default()
        };
        let processes = JobProcesses {
            kinds: kinds.to_vec(),
            arguments: vec!["run-job".to_owned()],
            store: StoreConfig { max_connections: CONNECTIONS_PER_JOB, ..store_config.clone() },
            worker: worker.clone(),
            service: SERVICE.to_owned(),
            telemetry: telemetry.clone(),
            settings: Settings::Flags,
        };
        parts.add(run_worker(store.clone(), processes, worker, parts.stop()));
    }

    let scheme = if options.certificate_file.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    tracing::info!(%url, data_dir = %data_dir.display(), "ready");
    if let Some(path) = &options.address_file {
        publish_address(path, &url)?;
    }
    parts.run().await
}

impl Options {
    fn ceilings(&self) -> Ceilings {
        let standard = Ceilings::default();
        Ceilings {
            max_parameters: self.max_parameters.unwrap_or(standard.max_parameters),
            max_job_bytes: self.max_job_bytes.unwrap_or(standard.max_job_bytes),
            ..standard
        }
    }

    fn security(&self) -> SecurityConfig {
        SecurityConfig {
            plaintext: if self.plaintext_anywhere { Plaintext::Anywhere } else { Plaintext::Loopback },
            certificate_file: self.certificate_file.clone(),
            key_file: self.key_file.clone(),
            bearer_token_file: self.bearer_token_file.clone(),
            callers: if self.callers_anyone { Callers::Anyone } else { Callers::Local },
        }
    }
}

/// Writes the address file atomically, so that readers never see a part of the URL.
fn publish_address(path: &Path, url: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, url)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write --address-file {}", path.display()))
}
