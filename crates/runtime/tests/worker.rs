//! The claim loop against a real Postgres.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::job::{Directive, JobRecord, JobStatus, Progress, RetryPolicy};
use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec, TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, StopReason, WorkerConfig, run_worker};
use inheritune_store::jobs::{Lease, NewJob};
use inheritune_store::{Store, StoreConfig};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Much longer than any of these tests take: only a hanging test reaches it.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    // The order matters: Postgres stops before its folder is removed.
    postgres: LocalPostgres,
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let store = connect(&postgres).await;
        store.migrate().await.unwrap();
        Self { postgres, dir, store }
    }

    /// A store with its own connections.
    async fn other_store(&self) -> Store {
        connect(&self.postgres).await
    }

    fn config(&self) -> WorkerConfig {
        WorkerConfig {
            heartbeat_ms: 100,
            poll_ms: 100,
            cache_dir: self.dir.path().join("cache"),
            threads: Some(1),
            ..WorkerConfig::default()
        }
    }

    async fn submit(&self, label: &str, max_attempts: u32) -> JobId {
        let spec = TokenizeSpec {
            sources: vec![Location::Uri("file:///nowhere".to_owned())],
            tokenizer: TokenizerSource::Train { vocab_size: 300 },
            validation_fraction: 0.1,
            text_column: None,
            max_bad_rows: 0,
        };
        let job = NewJob {
            label: label.to_owned(),
            spec: JobSpec::Tokenize(spec),
            priority: 0,
            retry: RetryPolicy { max_attempts, backoff_ms: 1, backoff_max_ms: 1 },
            run: None,
        };
        self.store.submit_job(&job, None).await.unwrap().id
    }

    async fn wait_for(&self, job: JobId, status: JobStatus) -> JobRecord {
        let reached = async {
            loop {
                let record = self.store.job(job).await.unwrap();
                if record.status == status {
                    return record;
                }
                assert!(!record.status.is_final(), "{:?} instead of {status:?}: {:?}", record.status, record.error);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, reached).await.unwrap_or_else(|_| panic!("job never became {status:?}"))
    }

    fn start<F, Fut>(&self, store: &Store, config: WorkerConfig, work: F) -> Running
    where
        F: Fn(Lease, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<JobOutcome, JobError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let worker = run_worker(store.clone(), Handler(work), config, stop.clone());
        Running { stop, task: tokio::spawn(async move { worker.await.unwrap() }) }
    }

    async fn end(self) {
        self.postgres.stop().await.unwrap();
    }
}

async fn connect(postgres: &LocalPostgres) -> Store {
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    Store::connect(&StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects }).await.unwrap()
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("the worker did not stop").unwrap();
    }
}

struct Handler<F>(F);

impl<F, Fut> JobHandler for Handler<F>
where
    F: Fn(Lease, JobContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<JobOutcome, JobError>> + Send + 'static,
{
    fn kinds(&self) -> &[JobKind] {
        &[JobKind::Tokenize]
    }

    fn run(&self, job: Lease, context: JobContext) -> impl Future<Output = Result<JobOutcome, JobError>> + Send {
        (self.0)(job, context)
    }
}

fn outcome() -> JobOutcome {
    JobOutcome::Tokenized(Tokenized {
        tokens: ArtifactId(Uuid::nil()),
        train_tokens: 9,
        validation_tokens: 1,
        vocab_size: 300,
        documents: 1,
        text_bytes: 10,
        corpus: None,
    })
}

async fn until_stopped(context: JobContext, seen: Arc<Mutex<Vec<StopReason>>>) -> Result<JobOutcome, JobError> {
    let reason = context.stop.wait().await;
    seen.lock().unwrap().push(reason);
    Err(JobError::Stopped)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_failures_and_panics_are_reported() {
    let bench = Bench::new().await;
    let folders = Arc::new(Mutex::new(Vec::new()));
    let seen = folders.clone();
    let worker = bench.start(&bench.store, bench.config(), move |job, context| {
        let folders = folders.clone();
        async move {
            assert!(context.cache_dir.is_dir());
            folders.lock().unwrap().push(context.cache_dir.clone());
            std::fs::write(context.cache_dir.join("file"), "x").unwrap();
            context.progress.set(Progress { done: 3, total: 4, unit: "tokens".to_owned(), ..Progress::default() });
            match (job.label.as_str(), job.attempt) {
                ("flaky", 1) => Err(JobError::Retryable("lost connection".to_owned())),
                ("bad", _) => Err(JobError::Permanent("the corpus is empty".to_owned())),
                ("panic", _) => panic!("boom"),
                ("thread panic", _) => context.run_blocking("work", || panic!("bang")).await,
                _ => context.run_blocking("work", || Ok(outcome())).await,
            }
        }
    });

    let good = bench.submit("good", 1).await;
    let flaky = bench.submit("flaky", 2).await;
    let bad = bench.submit("bad", 5).await;
    let panic = bench.submit("panic", 2).await;
    let thread_panic = bench.submit("thread panic", 1).await;

    let record = bench.wait_for(good, JobStatus::Succeeded).await;
    assert_eq!((record.outcome, record.attempts, record.progress.done), (Some(outcome()), 1, 3));
    assert_eq!(bench.wait_for(flaky, JobStatus::Succeeded).await.attempts, 2);
    let record = bench.wait_for(bad, JobStatus::Failed).await;
    assert_eq!((record.error.as_deref(), record.attempts), (Some("the corpus is empty"), 1));
    let record = bench.wait_for(panic, JobStatus::Failed).await;
    let gave_up = "panicked: boom (gave up after 2 failed attempts)";
    assert_eq!((record.error.as_deref(), record.attempts), (Some(gave_up), 2));
    let record = bench.wait_for(thread_panic, JobStatus::Failed).await;
    assert_eq!(record.error.as_deref(), Some("panicked: bang"));

    worker.stop().await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 7);
    assert!(seen.iter().all(|folder| !folder.exists()));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_cancel_pause_and_resume() {
    let bench = Bench::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reasons = seen.clone();
    let first = bench.start(&bench.store, bench.config(), move |_, context| until_stopped(context, reasons.clone()));

    let job = bench.submit("cancelled", 1).await;
    bench.wait_for(job, JobStatus::Running).await;
    bench.store.request_job(job, Directive::Cancel).await.unwrap();
    bench.wait_for(job, JobStatus::Cancelled).await;

    let job = bench.submit("paused", 1).await;
    bench.wait_for(job, JobStatus::Running).await;
    bench.store.request_job(job, Directive::Pause).await.unwrap();
    bench.wait_for(job, JobStatus::Paused).await;
    first.stop().await;
    assert_eq!(*seen.lock().unwrap(), [StopReason::Cancel, StopReason::Pause]);

    let second = bench.start(&bench.store, bench.config(), |_, _| async { Ok(outcome()) });
    bench.store.request_job(job, Directive::Run).await.unwrap();
    // Only one attempt is allowed; the pause did not use it up.
    assert_eq!(bench.wait_for(job, JobStatus::Succeeded).await.attempts, 2);
    second.stop().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_reach_the_database_stops_its_job() {
    let bench = Bench::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reasons = seen.clone();
    let cut_off = bench.other_store().await;
    let config = WorkerConfig { lease_ms: 1500, ..bench.config() };
    let first = bench.start(&cut_off, config, move |_, context| until_stopped(context, reasons.clone()));
    let job = bench.submit("lost", 2).await;
    bench.wait_for(job, JobStatus::Running).await;

    cut_off.pool().close().await;
    let noticed = async {
        while seen.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, noticed).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [StopReason::LeaseLost]);

    let second = bench.start(&bench.store, bench.config(), |_, _| async { Ok(outcome()) });
    let expired = async { while bench.store.expire_leases().await.unwrap() == 0 {} };
    tokio::time::timeout(LIMIT, expired).await.unwrap();
    assert_eq!(bench.wait_for(job, JobStatus::Succeeded).await.attempts, 2);
    first.stop().await;
    second.stop().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_gives_jobs_back_without_losing_an_attempt() {
    let bench = Bench::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reasons = seen.clone();
    let config = WorkerConfig { concurrency: 2, shutdown_grace_ms: 300, ..bench.config() };
    let first = bench.start(&bench.store, config, move |job, context| {
        let reasons = reasons.clone();
        async move {
            match job.label.as_str() {
                "deaf" => std::future::pending().await,
                _ => until_stopped(context, reasons).await,
            }
        }
    });
    let saved = bench.submit("saves", 1).await;
    let deaf = bench.submit("deaf", 1).await;
    bench.wait_for(saved, JobStatus::Running).await;
    bench.wait_for(deaf, JobStatus::Running).await;
    first.stop().await;
    assert_eq!(*seen.lock().unwrap(), [StopReason::Shutdown]);
    bench.wait_for(saved, JobStatus::Queued).await;
    bench.wait_for(deaf, JobStatus::Queued).await;

    let second = bench.start(&bench.store, bench.config(), |_, _| async { Ok(outcome()) });
    assert_eq!(bench.wait_for(saved, JobStatus::Succeeded).await.attempts, 2);
    assert_eq!(bench.wait_for(deaf, JobStatus::Succeeded).await.attempts, 2);
    second.stop().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_makes_no_progress_is_given_up() {
    let bench = Bench::new().await;
    let config = WorkerConfig { stall_ms: 400, ..bench.config() };
    let worker = bench.start(&bench.store, config, |job, context| async move {
        // Slower than the limit in total, but there is progress within each period.
        for done in 0..8 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            context.progress.set(Progress { done, message: format!("step {done}"), ..Progress::default() });
        }
        if job.label == "hangs" { std::future::pending().await } else { Ok(outcome()) }
    });
    let (slow, hangs) = (bench.submit("slow", 1).await, bench.submit("hangs", 1).await);
    assert_eq!(bench.wait_for(slow, JobStatus::Succeeded).await.attempts, 1);
    let error = bench.wait_for(hangs, JobStatus::Failed).await.error.unwrap();
    assert!(error.contains("no progress for 0.4 s after step 7") && error.contains("stall_ms"), "{error}");
    worker.stop().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_a_queue_without_double_work() {
    let bench = Bench::new().await;
    let other = bench.other_store().await;
    let done: Arc<Mutex<HashMap<JobId, u32>>> = Arc::default();
    let config = WorkerConfig { concurrency: 2, ..bench.config() };
    let start = |store: &Store| {
        let done = done.clone();
        bench.start(store, config.clone(), move |job, _| {
            let done = done.clone();
            async move {
                *done.lock().unwrap().entry(job.key.job).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(outcome())
            }
        })
    };
    let (first, second) = (start(&bench.store), start(&other));
    let mut jobs = Vec::new();
    for i in 0..40 {
        jobs.push(bench.submit(&format!("job {i}"), 1).await);
    }
    for job in &jobs {
        bench.wait_for(*job, JobStatus::Succeeded).await;
    }
    first.stop().await;
    second.stop().await;
    let done = done.lock().unwrap().clone();
    assert_eq!(done.len(), jobs.len());
    assert!(done.values().all(|times| *times == 1));
    bench.end().await;
}
