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
use inheritune_runtime::serve::{bind, serve};
use inheritune_runtime::worker::{WorkerConfig, run_worker};
use inheritune_scheduler::SchedulerConfig;
use inheritune_store::local_postgres::LocalPostgres;
use inheritune_store::objects::{ObjectsConfig, StorageConfig};
use inheritune_store::{Store, StoreConfig};
use inheritune_trainer::gang::Ranks;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Database connections of the process: four services share them.
const MAX_CONNECTIONS: u32 = 16;

/// What a user may set.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the database, the artifacts and the workers' caches live; made when absent
    #[arg(long, default_value = "inheritune-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where gRPC is served; port 0 takes any free one. There is no authentication: stay on loopback
    #[arg(long, default_value = "127.0.0.1:7600", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// A file that gets `http://ADDRESS` once calls are taken
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

    let listener = bind(options.listen).await?;
    let address = listener.local_addr()?;
    let services = inheritune_scheduler::services(&store, &stop)
        .merge(inheritune_slicer::services(&store))
        .merge(inheritune_trainer::services(&store))
        .merge(inheritune_evaluator::services(&store));

    // Whichever part ends first takes the others with it, but all are waited for: workers give their leases back.
    let stop = stop.child_token();
    let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
    parts.spawn(ending(stop.clone(), serve(listener, services, stop.clone())));
    parts.spawn(ending(
        stop.clone(),
        inheritune_scheduler::run(store.clone(), SchedulerConfig::default(), stop.clone()),
    ));
    let worker = |name: &str| WorkerConfig {
        cache_dir: data_dir.join("cache").join(name),
        threads: options.threads,
        ..WorkerConfig::default()
    };
    let slicer = run_worker(store.clone(), inheritune_slicer::handler(&store), worker("slicer"), stop.clone());
    parts.spawn(ending(stop.clone(), slicer));
    let trainer =
        run_worker(store.clone(), inheritune_trainer::handler(Ranks::alone()), worker("trainer"), stop.clone());
    parts.spawn(ending(stop.clone(), trainer));
    let evaluator = run_worker(store.clone(), inheritune_evaluator::handler(), worker("evaluator"), stop.clone());
    parts.spawn(ending(stop.clone(), evaluator));

    let url = format!("http://{address}");
    tracing::info!(%url, data_dir = %data_dir.display(), "ready");
    if let Some(path) = &options.address_file {
        publish_address(path, &url)?;
    }
    let mut first_error = Ok(());
    while let Some(part) = parts.join_next().await {
        let ended = part.map_err(anyhow::Error::from).and_then(|ended| ended);
        if first_error.is_ok() {
            first_error = ended;
        }
    }
    first_error
}

/// Runs `part` and stops everything when it ends.
async fn ending<E: Into<anyhow::Error>>(
    stop: CancellationToken,
    part: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    let ended = part.await;
    stop.cancel();
    ended.map_err(Into::into)
}

/// Readers see the whole address or no file.
fn publish_address(path: &Path, url: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, url)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
