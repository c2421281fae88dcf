//! Measures the throughput of the queue in jobs per second, on the real schema: jobs of runs,
//! fences, attempts, events in the runs' inboxes. `make bench` compares it with another queue
//! (`bench/rival-queue`), which takes the same arguments and prints the same output.
//!
//! ```text
//! bench_queue URL prepare                                migrates the database
//! bench_queue URL insert  BATCH CONNECTIONS SECONDS      submits
//! bench_queue URL fill    JOBS                           submits that many jobs
//! bench_queue URL churn   BATCH CONNECTIONS SECONDS      submits, claims and completes at constant depth
//! bench_queue URL work    BATCH CONNECTIONS SECONDS      claims and completes
//! bench_queue URL latency JOBS                           submits to an idle worker, one every 20 ms
//! ```
//! The last line is JSON: jobs, seconds, and percentiles of the claim time, or of the time from
//! submit to claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, RunId, WorkerId};
use inheritune_domain::job::RetryPolicy;
use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec, RunSpec, TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, WorkerConfig, run_worker};
use inheritune_store::jobs::{Lease, LeaseKey, NewJob};
use inheritune_store::{Store, StoreConfig};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Runs that the jobs belong to.
const RUNS: usize = 64;
/// Jobs per statement when a backlog is created.
const FILL_BATCH: usize = 1000;
const FILL_CONNECTIONS: usize = 4;
const LEASE: Duration = Duration::from_secs(60);
/// The kinds of jobs that a trainer runs.
const KINDS: [JobKind; 2] = [JobKind::Tokenize, JobKind::Train];
const BETWEEN_SUBMITS: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (url, words) =
        words.split_first().context("usage: bench_queue URL prepare|insert|fill|churn|work|latency …")?;
    let said = match words {
        ["prepare"] => {
            store(url, 1).await?.migrate().await?;
            json!({})
        }
        ["latency", jobs] => latency(url, jobs.parse()?).await?,
        ["fill", jobs] => {
            let limit = Limit::jobs(jobs.parse()?);
            Load { batch: FILL_BATCH, connections: FILL_CONNECTIONS, limit, work: Work::INSERT }.run(url).await?
        }
        [what, batch, connections, seconds] => {
            let work = match *what {
                "insert" => Work::INSERT,
                "churn" => Work { submit: true, claim: true },
                "work" => Work { submit: false, claim: true },
                other => anyhow::bail!("`{other}` is not a valid measurement"),
            };
            let limit = Limit::seconds(seconds.parse()?);
            Load { batch: batch.parse()?, connections: connections.parse()?, limit, work }.run(url).await?
        }
        _ => anyhow::bail!("{words:?} is not a valid measurement"),
    };
    println!("{said}");
    Ok(())
}

async fn store(url: &str, connections: u32) -> anyhow::Result<Store> {
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    Ok(Store::connect(&StoreConfig { database_url: url.to_owned(), max_connections: connections, objects }).await?)
}

/// What each connection does repeatedly.
#[derive(Clone, Copy)]
struct Work {
    submit: bool,
    claim: bool,
}

impl Work {
    const INSERT: Self = Self { submit: true, claim: false };
}

/// When the measurement ends.
struct Limit {
    ends: Instant,
    jobs: u64,
}

impl Limit {
    fn seconds(seconds: f64) -> Self {
        Self { ends: Instant::now() + Duration::from_secs_f64(seconds), jobs: u64::MAX }
    }

    fn jobs(jobs: u64) -> Self {
        Self { ends: Instant::now() + Duration::from_secs(3600), jobs }
    }
}

struct Load {
    batch: usize,
    connections: usize,
    limit: Limit,
    work: Work,
}

impl Load {
    async fn run(self, url: &str) -> anyhow::Result<serde_json::Value> {
        let store = store(url, self.connections as u32).await?;
        let runs = runs(&store).await?;
        let load = Arc::new(self);
        let done = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..load.connections {
            let (load, store, runs, done) = (Arc::clone(&load), store.clone(), runs.clone(), Arc::clone(&done));
            tasks.spawn(async move { load.repeat(&store, &runs, &done).await });
        }
        let mut claims = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            claims.extend(ended??);
        }
        let (jobs, seconds) = (done.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
        Ok(json!({
            "jobs": jobs, "seconds": seconds, "per_second": jobs as f64 / seconds, "claim_ms": percentiles(claims),
        }))
    }

    async fn repeat(&self, store: &Store, runs: &[RunId], done: &AtomicU64) -> anyhow::Result<Vec<f64>> {
        let worker = WorkerId(Uuid::now_v7());
        let mut claims = Vec::new();
        let mut turn = 0;
        while Instant::now() < self.limit.ends && done.load(Ordering::Relaxed) < self.limit.jobs {
            let mut jobs = self.batch;
            if self.work.submit {
                let new: Vec<NewJob> = (0..self.batch).map(|i| new_job(runs[(turn + i) % runs.len()])).collect();
                turn += self.batch;
                submit(store, &new).await?;
            }
            if self.work.claim {
                let asked = Instant::now();
                let leases = store.claim_jobs(worker, &KINDS, self.batch as u32, LEASE).await?;
                claims.push(asked.elapsed().as_secs_f64() * 1000.0);
                jobs = leases.len();
                if jobs == 0 && !self.work.submit {
                    break;
                }
                complete(store, &leases).await?;
            }
            done.fetch_add(jobs as u64, Ordering::Relaxed);
        }
        Ok(claims)
    }
}

async fn submit(store: &Store, jobs: &[NewJob]) -> anyhow::Result<()> {
    store.submit_jobs(jobs).await?;
    Ok(())
}

async fn complete(store: &Store, leases: &[Lease]) -> anyhow::Result<()> {
    let outcome = outcome();
    let done: Vec<(LeaseKey, &JobOutcome)> = leases.iter().map(|lease| (lease.key, &outcome)).collect();
    for answer in store.complete_jobs(&done).await? {
        answer?;
    }
    Ok(())
}

/// Measures how soon an idle worker claims a job. Its handler does nothing.
async fn latency(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let store = store(url, 4).await?;
    let run = runs(&store).await?[0];
    let (claimed, mut claims) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let cache = std::env::temp_dir().join(format!("bench-queue-{}", std::process::id()));
    let config = WorkerConfig { cache_dir: cache.clone(), ..WorkerConfig::default() };
    let mut tasks = JoinSet::new();
    tasks.spawn(run_worker(store.clone(), Nothing { claimed }, config, stop.clone()));
    let mut waits = Vec::new();
    for job in 0..=jobs {
        let submitted = Instant::now();
        let id = store.submit_job(&new_job(run), None).await?.id;
        let (key, at): (LeaseKey, Instant) = claims.recv().await.context("the worker ended")?;
        anyhow::ensure!(key.job == id, "another job was in the queue");
        // The first job waits for the listener's connection.
        if job > 0 {
            waits.push(at.duration_since(submitted).as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(BETWEEN_SUBMITS).await;
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    std::fs::remove_dir_all(cache)?;
    Ok(json!({ "jobs": jobs, "claimed_ms": percentiles(waits) }))
}

struct Nothing {
    claimed: mpsc::UnboundedSender<(LeaseKey, Instant)>,
}

impl JobHandler for Nothing {
    fn kinds(&self) -> &[JobKind] {
        &KINDS
    }

    async fn run(&self, job: Lease, _context: JobContext) -> Result<JobOutcome, JobError> {
        self.claimed.send((job.key, Instant::now())).map_err(|e| JobError::Permanent(e.to_string()))?;
        Ok(outcome())
    }
}

async fn runs(store: &Store) -> anyhow::Result<Vec<RunId>> {
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(store.create_run(&recipe()?, None).await?.id);
    }
    Ok(runs)
}

fn recipe() -> anyhow::Result<RunSpec> {
    Ok(serde_json::from_value(json!({
        "name": "bench",
        "recipe": "full-data",
        "corpus": { "sources": ["file:///corpus.txt"], "tokenizer": { "train": { "vocab_size": 512 } } },
        "reference": { "architecture": {
            "family": "gpt2", "n_layers": 5, "d_model": 32, "n_heads": 4, "max_positions": 64,
        } },
        "target": { "start_layers": 2, "grow_by": 2 },
        "training": { "block_size": 64, "micro_batch": 4, "steps": 100, "lr_max": 0.001 },
    }))?)
}

fn new_job(run: RunId) -> NewJob {
    let spec = TokenizeSpec {
        sources: vec![Location::Uri("file:///corpus.txt".to_owned())],
        tokenizer: TokenizerSource::Train { vocab_size: 512 },
        validation_fraction: 0.1,
        text_column: None,
        max_bad_rows: 0,
    };
    NewJob {
        label: "bench".to_owned(),
        spec: JobSpec::Tokenize(spec),
        priority: 0,
        retry: RetryPolicy::default(),
        run: Some(run),
    }
}

fn outcome() -> JobOutcome {
    JobOutcome::Tokenized(Tokenized {
        tokens: ArtifactId(Uuid::nil()),
        train_tokens: 1_000_000,
        validation_tokens: 100_000,
        vocab_size: 512,
        documents: 3,
        text_bytes: 4_000_000,
        corpus: None,
    })
}

fn percentiles(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
    json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99) })
}
