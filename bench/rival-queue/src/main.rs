//! The queue awa (crates.io) under the load that `crates/runtime/examples/bench_queue.rs` gives ours: same commands, same
//! payload, same answers. It runs as its documentation has it: its own storage engine, its client with handlers that do
//! nothing. A batch is what its client claims at once, a connection stands for as many workers as a batch has jobs; its
//! client gathers completions itself. A job counts when its handler runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use awa::{
    Client, InsertOpts, InsertParams, JobContext, JobError, JobResult, QueueConfig, QueueStorage, QueueStorageConfig,
    Worker,
};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const QUEUE: &str = "bench";
const KIND: &str = "tokenize";
const FILL_BATCH: usize = 1000;
const FILL_CONNECTIONS: usize = 4;
/// A queue without news for so long is empty.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_SUBMITS: Duration = Duration::from_millis(20);
/// As awa's own benchmarks have it.
const ROTATE_QUEUE: Duration = Duration::from_secs(1);
const ROTATE_LEASES: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (url, words) =
        words.split_first().context("usage: rival-queue URL prepare|insert|fill|churn|work|latency …")?;
    let said = match words {
        ["prepare"] => prepare(url).await?,
        ["latency", jobs] => latency(url, jobs.parse()?).await?,
        ["fill", jobs] => {
            let limit = (Duration::from_secs(3600), jobs.parse()?);
            Load { batch: FILL_BATCH, connections: FILL_CONNECTIONS, limit, submit: true, claim: false }
                .run(url)
                .await?
        }
        [what, batch, connections, seconds] => {
            let (submit, claim) = match *what {
                "insert" => (true, false),
                "churn" => (true, true),
                "work" => (false, true),
                other => anyhow::bail!("`{other}` is not something to measure"),
            };
            let limit = (Duration::from_secs_f64(seconds.parse()?), u64::MAX);
            Load { batch: batch.parse()?, connections: connections.parse()?, limit, submit, claim }.run(url).await?
        }
        _ => anyhow::bail!("{words:?} is not something to measure"),
    };
    println!("{said}");
    Ok(())
}

async fn prepare(url: &str) -> anyhow::Result<serde_json::Value> {
    let pool = pool(url, 4).await?;
    awa::migrations::run(&pool).await?;
    storage()?.install(&pool).await?;
    Ok(json!({}))
}

async fn pool(url: &str, connections: usize) -> anyhow::Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(connections as u32).connect(url).await?)
}

fn storage() -> anyhow::Result<QueueStorage> {
    Ok(QueueStorage::new(QueueStorageConfig::default())?)
}

/// A client of awa that works `queue` and does the upkeep.
async fn client(url: &str, queue: &str, (workers, batch): (usize, usize), worker: Tell) -> anyhow::Result<Client> {
    let queue_config = QueueConfig {
        max_workers: workers as u32,
        claim_batch_size: batch,
        deadline_duration: Duration::ZERO,
        ..QueueConfig::default()
    };
    let client = Client::builder(pool(url, 8).await?)
        .queue(queue, queue_config)
        .queue_storage(QueueStorageConfig::default(), ROTATE_QUEUE, ROTATE_LEASES)
        .register_worker(worker)
        .build()?;
    client.start().await?;
    Ok(client)
}

struct Load {
    batch: usize,
    connections: usize,
    limit: (Duration, u64),
    submit: bool,
    claim: bool,
}

impl Load {
    async fn run(self, url: &str) -> anyhow::Result<serde_json::Value> {
        let pool = pool(url, self.connections).await?;
        let storage = Arc::new(storage()?);
        let (claimed, mut claims) = mpsc::unbounded_channel();
        let workers = if self.claim { self.batch * self.connections } else { 1 };
        let queue = if self.claim { QUEUE } else { "idle" };
        let client = client(url, queue, (workers, self.batch), Tell { claimed }).await?;
        let load = Arc::new(self);
        let (submitted, handled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..if load.submit { load.connections } else { 0 } {
            let (load, pool, storage) = (Arc::clone(&load), pool.clone(), Arc::clone(&storage));
            let (submitted, handled) = (Arc::clone(&submitted), Arc::clone(&handled));
            tasks.spawn(async move { load.submit_all(&pool, &storage, (started, &submitted, &handled)).await });
        }
        while load.claim && started.elapsed() < load.limit.0 {
            match tokio::time::timeout(PATIENCE, claims.recv()).await {
                Ok(Some(_)) => handled.fetch_add(1, Ordering::Relaxed),
                Ok(None) | Err(_) => break,
            };
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        let seconds = started.elapsed().as_secs_f64();
        let jobs = if load.claim { handled } else { submitted }.load(Ordering::Relaxed);
        client.shutdown(Duration::from_secs(5)).await;
        Ok(json!({ "jobs": jobs, "seconds": seconds, "per_second": jobs as f64 / seconds }))
    }

    /// Submits; where jobs are claimed too, no more than keeps the depth.
    async fn submit_all(
        &self,
        pool: &PgPool,
        storage: &QueueStorage,
        (started, submitted, handled): (Instant, &AtomicU64, &AtomicU64),
    ) -> anyhow::Result<()> {
        let ahead = (self.batch * self.connections) as u64;
        while started.elapsed() < self.limit.0 && submitted.load(Ordering::Relaxed) < self.limit.1 {
            if self.claim && submitted.load(Ordering::Relaxed) >= handled.load(Ordering::Relaxed) + ahead {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let new: Vec<InsertParams> = (0..self.batch).map(|_| new_job()).collect();
            storage.enqueue_params_batch(pool, &new).await?;
            submitted.fetch_add(self.batch as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

async fn latency(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let (claimed, mut claims) = mpsc::unbounded_channel();
    let client = client(url, QUEUE, (10, 10), Tell { claimed }).await?;
    let (pool, storage) = (pool(url, 4).await?, storage()?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut waits = Vec::new();
    for job in 0..=jobs {
        let submitted = Instant::now();
        storage.enqueue_params_batch(&pool, &[new_job()]).await?;
        let at: Instant = claims.recv().await.context("the worker ended")?;
        if job > 0 {
            waits.push(at.duration_since(submitted).as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(BETWEEN_SUBMITS).await;
    }
    client.shutdown(Duration::from_secs(5)).await;
    Ok(json!({ "jobs": jobs, "claimed_ms": percentiles(waits) }))
}

struct Tell {
    claimed: mpsc::UnboundedSender<Instant>,
}

#[async_trait::async_trait]
impl Worker for Tell {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn perform(&self, _context: &JobContext) -> Result<JobResult, JobError> {
        // Nobody listens while this client is there for the upkeep alone.
        self.claimed.send(Instant::now()).ok();
        Ok(JobResult::Completed)
    }
}

/// The same specification of a job as ours has.
fn new_job() -> InsertParams {
    InsertParams {
        kind: KIND.to_owned(),
        args: json!({
            "kind": "tokenize",
            "sources": [{ "uri": "file:///corpus.txt" }],
            "tokenizer": { "train": { "vocab_size": 512 } },
            "validation_fraction": 0.1,
        }),
        opts: InsertOpts { queue: QUEUE.to_owned(), ..InsertOpts::default() },
    }
}

fn percentiles(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
    json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99) })
}
