//! One private Postgres per test process, one migrated database per test.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses only some of the helpers

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, LayerCount, WorkerId};
use inheritune_domain::job::RetryPolicy;
use inheritune_domain::spec::{
    EvaluateSpec, Evaluated, EvaluationTask, JobKind, JobOutcome, JobSpec, RunSpec, Score, SliceSource, SliceSpec,
    Sliced, TokenizeSpec, Tokenized, TokenizerSource, TrainSpec, Trained, defaults,
};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_store::jobs::{Lease, NewJob};
use inheritune_store::{Store, StoreConfig};
use serde_json::json;
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Lease duration that is long enough for any test.
pub const LEASE: Duration = Duration::from_secs(60);

#[path = "../../../postgres/tests/support/mod.rs"]
mod postgres;

pub use postgres::{Sweeper, pg_bin};

struct Server {
    postgres: LocalPostgres,
    _sweeper: Sweeper,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// Returns a store on a new, migrated database, with objects in memory.
pub async fn store() -> Store {
    store_with(ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() }).await
}

/// Returns a store on a new, migrated database, with the given object store.
pub async fn store_with(objects: ObjectsConfig) -> Store {
    let store = connect(&database().await, objects).await;
    store.migrate().await.unwrap();
    store
}

/// Returns another store on `database_url`, as another process would open it.
pub async fn connect(database_url: &str, objects: ObjectsConfig) -> Store {
    let config = StoreConfig { database_url: database_url.to_owned(), max_connections: 8, objects };
    Store::connect(&config).await.unwrap()
}

/// Creates an empty database and returns its URL.
pub async fn database() -> String {
    let server = SERVER.get_or_init(start).await;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    server.postgres.create_database(&name).await.unwrap()
}

async fn start() -> Server {
    // Statics are never dropped, and a test process may be killed, so a child process cleans up.
    let dir = tempfile::tempdir().unwrap().keep();
    let sweeper = Sweeper::new(&dir);
    // Root's server runs as `nobody`, which needs access to the folder.
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let postgres = LocalPostgres::start(&dir.join("postgres"), pg_bin().as_deref()).await.unwrap();
    let connection = sqlx::PgPool::connect(postgres.url()).await.unwrap();
    sqlx::query("ALTER SYSTEM SET fsync = off").execute(&connection).await.unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&connection).await.unwrap();
    connection.close().await;
    Server { postgres, _sweeper: sweeper }
}

/// Returns a small valid recipe: a new reference with five layers, and candidates with two, four
/// and five.
pub fn run_spec(name: &str) -> RunSpec {
    let spec: RunSpec = serde_json::from_value(json!({
        "name": name,
        "recipe": "full-data",
        "corpus": { "sources": ["file:///c.txt"], "tokenizer": { "train": { "vocab_size": 512 } } },
        "reference": { "architecture": {
            "family": "gpt2", "n_layers": 5, "d_model": 32, "n_heads": 4, "max_positions": 64,
        } },
        "target": { "start_layers": 2, "grow_by": 2 },
        "training": { "block_size": 64, "micro_batch": 4, "steps": 100, "lr_max": 0.001 },
    }))
    .unwrap();
    spec.validate().unwrap();
    spec
}

/// Returns the configuration of a model with `layers` layers.
pub fn config(layers: u32) -> DecoderConfig {
    run_spec("shape").reference.architecture.unwrap().config(512).with_layers(LayerCount(layers))
}

/// Returns a valid spec of `kind`.
pub fn job_spec(kind: JobKind) -> JobSpec {
    let checkpoint = Location::Uri("file:///model".to_owned());
    match kind {
        JobKind::Tokenize => JobSpec::Tokenize(TokenizeSpec {
            sources: vec![Location::Uri("file:///c.txt".to_owned())],
            tokenizer: TokenizerSource::Train { vocab_size: 512 },
            validation_fraction: 0.1,
            text_column: None,
            max_bad_rows: 0,
        }),
        JobKind::Slice => JobSpec::Slice(SliceSpec {
            source: SliceSource::Architecture {
                architecture: run_spec("shape").reference.architecture.unwrap(),
                vocab_size: 512,
            },
            tokenizer: None,
            seed: 1,
            max_shard_size_bytes: defaults::max_shard_size_bytes(),
        }),
        JobKind::Train => JobSpec::Train(TrainSpec {
            checkpoint,
            tokens: ArtifactId(Uuid::from_u128(1)),
            training: run_spec("shape").training,
            data_fraction: 1.0,
            seed: 1,
            expect_inherited: false,
        }),
        JobKind::Evaluate => {
            let task = EvaluationTask::RollingPerplexity { source: Location::Uri("file:///w.txt".to_owned()) };
            JobSpec::Evaluate(EvaluateSpec::new(checkpoint, vec![task]))
        }
    }
}

/// Returns a worker's outcome for a job of `kind`. The score of an evaluation is `loss`.
pub fn outcome(kind: JobKind, loss: f64) -> JobOutcome {
    match kind {
        JobKind::Tokenize => JobOutcome::Tokenized(Tokenized {
            tokens: ArtifactId(Uuid::from_u128(1)),
            train_tokens: 10_000,
            validation_tokens: 1_000,
            vocab_size: 512,
            documents: 3,
            text_bytes: 40_000,
            corpus: None,
        }),
        JobKind::Slice => JobOutcome::Sliced(Sliced {
            checkpoint: ArtifactId(Uuid::from_u128(2)),
            config: config(2),
            reference_layers: LayerCount(5),
            parameters: 1_000,
            copied_tensors: 20,
            fresh_tensors: 0,
            copied_bytes: 4_000,
        }),
        JobKind::Train => JobOutcome::Trained(Trained {
            checkpoint: ArtifactId(Uuid::from_u128(3)),
            steps: 100,
            tokens_seen: 25_600,
            epochs: 1.0,
            first_loss_nats: 5.0,
            last_loss_nats: 4.0,
            wall_s: 1.5,
        }),
        JobKind::Evaluate => JobOutcome::Evaluated(Evaluated {
            scores_artifact: ArtifactId(Uuid::from_u128(4)),
            scores: vec![Score::plain("validation_loss", "loss_nats", (loss, Some(0.01)), 10)],
            config: config(2),
            parameters: 1_000,
            differences: Vec::new(),
        }),
    }
}

/// Returns a job of `kind` with three attempts and no backoff.
pub fn new_job(kind: JobKind) -> NewJob {
    NewJob {
        label: format!("test {}", kind.as_str()),
        spec: job_spec(kind),
        priority: 0,
        retry: RetryPolicy { max_attempts: 3, backoff_ms: 0, backoff_max_ms: 0 },
        run: None,
    }
}

/// Returns the id of a new worker.
pub fn worker() -> WorkerId {
    WorkerId(Uuid::new_v4())
}

/// Claims the next job of any kind. Panics if there is none.
pub async fn claim(store: &Store) -> Lease {
    try_claim(store).await.expect("no job to claim")
}

/// Claims the next job of any kind, if there is one.
pub async fn try_claim(store: &Store) -> Option<Lease> {
    store.claim_jobs(worker(), &JobKind::ALL, 1, LEASE).await.unwrap().pop()
}

/// Submits a job of `kind` and claims it.
pub async fn submit_and_claim(store: &Store, kind: JobKind) -> Lease {
    let job = store.submit_job(&new_job(kind), None).await.unwrap();
    let lease = claim(store).await;
    assert_eq!(lease.key.job, job.id, "another job was in the queue");
    lease
}

/// Moves the end of a job's lease into the past, as if its worker had stopped responding.
pub async fn let_lease_run_out(store: &Store, lease: &Lease) {
    sqlx::query(
        "UPDATE job_queue SET lease_until = now() - interval '1 millisecond' WHERE job_id = $1 AND state = 'leased'",
    )
    .bind(lease.key.job.0)
    .execute(store.pool())
    .await
    .unwrap();
}
