//! Every service in one process, on a private Postgres and a local folder.
//!
//! Owns: putting the parts together. The services are the same code as in a cluster and meet in the same tables; only
//! their process is shared.
//!
//! Entry point: [`run`].
//!
//! Must never: do anything that a cluster could not do, or hold state of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use inheritune_domain::spec::Ceilings;
use inheritune_runtime::listen::ListenLimits;
use inheritune_runtime::security::{Plaintext, SecurityConfig};
use inheritune_runtime::service::{Parts, WaysIn, open};
use inheritune_runtime::worker::{WorkerConfig, run_worker};
use inheritune_scheduler::SchedulerConfig;
use inheritune_store::local_postgres::LocalPostgres;
use inheritune_store::objects::{ObjectsConfig, StorageConfig};
use inheritune_store::{Store, StoreConfig};
use inheritune_trainer::gang::Ranks;
use tokio_util::sync::CancellationToken;

/// Database connections of the process: four services share them.
const MAX_CONNECTIONS: u32 = 16;

/// What a user may set.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the database, the artifacts and the workers' caches live; made when absent
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
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Parameters of a model at most; 200 billion when absent
    #[arg(long, value_name = "N")]
    pub max_parameters: Option<u64>,
    /// Bytes that one job may fetch or write at most; 1 TB when absent
    #[arg(long, value_name = "BYTES")]
    pub max_job_bytes: Option<u64>,
    /// Prefix of URIs that jobs may read; may be given more than once
    #[arg(long = "allow-uri", default_value = "file:///", value_name = "PREFIX")]
    pub allowed_uris: Vec<String>,
}

/// Serves and works until `stop`; then saves, gives leases back and stops the database.
///
/// # Errors
/// A part could not start, or failed.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.data_dir)
        .with_context(|| format!("cannot make {}", options.data_dir.display()))?;
    let data_dir = options.data_dir.canonicalize()?;
    let postgres = match options.database_url {
        Some(_) => None,
        None => Some(LocalPostgres::start(&data_dir.join("postgres"), options.pg_bin.as_deref()).await?),
    };
    let served = match postgres.as_ref().map(LocalPostgres::url).or(options.database_url.as_deref()) {
        Some(url) => serve_on(url, &data_dir, &options, stop).await,
        None => Ok(()),
    };
    if let Some(postgres) = postgres {
        postgres.stop().await?;
    }
    served
}

async fn serve_on(
    database_url: &str,
    data_dir: &Path,
    options: &Options,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let store = Store::connect(&StoreConfig {
        database_url: database_url.to_owned(),
        max_connections: MAX_CONNECTIONS,
        objects: ObjectsConfig {
            storage: StorageConfig::folder(data_dir.join("objects")),
            allowed_uris: options.allowed_uris.clone(),
        },
    })
    .await?;
    store.migrate().await?;

    let mut parts = Parts::<anyhow::Error>::new(&stop);
    let services = inheritune_scheduler::services(&store, options.ceilings(), &parts.stop())
        .merge(inheritune_slicer::services(&store))
        .merge(inheritune_trainer::services(&store))
        .merge(inheritune_evaluator::services(&store));
    let security = options.security();
    let ways_in = WaysIn {
        listen: options.listen,
        metrics_listen: options.metrics_listen,
        security: &security,
        limits: &ListenLimits::default(),
    };
    let address = open(&mut parts, &ways_in, services, &store).await?;

    parts.add(inheritune_scheduler::run(store.clone(), SchedulerConfig::default(), parts.stop()));
    let worker = |name: &str| WorkerConfig {
        cache_dir: data_dir.join("cache").join(name),
        threads: options.threads,
        ceilings: options.ceilings(),
        ..WorkerConfig::default()
    };
    parts.add(run_worker(store.clone(), inheritune_slicer::handler(&store), worker("slicer"), parts.stop()));
    let trainer = inheritune_trainer::handler(Ranks::alone());
    parts.add(run_worker(store.clone(), trainer, worker("trainer"), parts.stop()));
    parts.add(run_worker(store.clone(), inheritune_evaluator::handler(), worker("evaluator"), parts.stop()));

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
        }
    }
}

/// Readers see the whole address or no file.
fn publish_address(path: &Path, url: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, url)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
