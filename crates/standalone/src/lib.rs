//! Every service in one process, on a private Postgres and a local folder.
//!
//! Owns: putting the parts together. The services are the same code as in a cluster and meet in the same tables; only
//! their process is shared.
//!
//! Entry points: [`run`]; [`jobs`] for the processes of its jobs.
//!
//! Must never: do anything that a cluster could not do, or hold state of its own.

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

/// Names the process in traces.
pub const SERVICE: &str = "inheritune-standalone";

/// Database connections of the process: four services share them.
const MAX_CONNECTIONS: u32 = 16;

/// What a user may set.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the database, the artifacts and the workers' caches live, for this user alone; made when absent
    #[arg(long, default_value = "inheritune-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where gRPC is served; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:7600", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served over HTTP; nowhere when absent
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Serve without TLS on addresses that others reach: only where something else guards the network
    #[arg(long)]
    pub plaintext_anywhere: bool,
    /// Take calls without a token on addresses that others reach: only where something else says who may call
    #[arg(long)]
    pub callers_anyone: bool,
    /// The server's certificate (PEM): gRPC is served over TLS; `inheritune certs init` makes one
    #[arg(long, requires = "key_file", value_name = "FILE")]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, requires = "certificate_file", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A file with the token that calls must carry
    #[arg(long, value_name = "FILE")]
    pub bearer_token_file: Option<PathBuf>,
    /// A file that gets the server's URL once calls are taken
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Where `postgres` and `initdb` are; searched for when absent
    #[arg(long, env = "INHERITUNE_PG_BIN", value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// A database to use instead of a private one
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Threads of a training or evaluation; all cores when absent
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Parameters of a model at most; 200 billion when absent
    #[arg(long, value_name = "N")]
    pub max_parameters: Option<u64>,
    /// Bytes that one job may fetch or write at most; 1 TB when absent
    #[arg(long, value_name = "BYTES")]
    pub max_job_bytes: Option<u64>,
    /// Folder, or prefix of URIs, that jobs may read; may be given more than once [default: the folder this was started in
    /// and the data folder]
    #[arg(long = "allow-uri", value_name = "PREFIX")]
    pub allowed_uris: Vec<String>,
    /// Private memory of each job's process at most; what the machine has when absent
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(16_777_216..))]
    pub job_memory_max_bytes: Option<u64>,
    /// Disk space of each job's working files at most; what the disk has when absent
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub job_disk_max_bytes: Option<u64>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1; leave it out for all cores".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

/// Serves and works until `stop`; then saves, gives leases back and stops the database.
///
/// # Errors
/// A part could not start, or failed; in the words of the command line.
pub async fn run(options: Options, telemetry: TelemetryConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let run = run_in_folder(options, telemetry, stop).await;
    run.map_err(|error| anyhow::Error::msg(words::in_flags(in_one_line(&error))))
}

async fn run_in_folder(options: Options, telemetry: TelemetryConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let data_dir = data_dir::make_private(&options.data_dir)?;
    // Whatever may be wrong with the options is said before a database is made.
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
                // Everything of ours needs it: whoever started this process is to know at once.
                error = postgres.keep_running() => return Err(error.into()),
            };
            postgres.stop().await?;
            served
        }
        (None, Some(url)) => serve(url).await,
        (None, None) => Ok(()),
    }
}

/// A private Postgres. Where it runs as another account than ours, that account gets through the data folder, if it must.
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
            "--data-dir {} is in use by another inheritune-standalone (pid {owner}): stop that one, or name another folder",
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

/// Readers see the whole address or no file.
fn publish_address(path: &Path, url: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, url)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("--address-file {} cannot be written", path.display()))
}
