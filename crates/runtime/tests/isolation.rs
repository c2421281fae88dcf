//! Jobs that end their own process in every possible way: the worker survives, reports what
//! happened, and runs the next job.
//!
//! The processes run this test binary, see [`be_a_job`].
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::job::{Directive, JobRecord, JobStatus, Progress, RetryPolicy};
use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec, TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::config::Settings;
use inheritune_runtime::telemetry::TelemetryConfig;
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, JobProcesses, WorkerConfig, run_job, run_worker};
use inheritune_store::jobs::{Lease, NewJob};
use inheritune_store::{Store, StoreConfig};
use rustix::process::{Pid, Signal, getpid, kill_process, test_kill_process};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Much longer than any of these tests take: only a hanging test reaches it.
const LIMIT: Duration = Duration::from_secs(120);
const BE_A_JOB: &str = "be_a_job";
/// More memory than any machine has.
const TERABYTE: usize = 1 << 40;

/// Ends its own process in the way that the job's label names.
struct Misbehaving;

impl JobHandler for Misbehaving {
    fn kinds(&self) -> &[JobKind] {
        &[JobKind::Tokenize]
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        let notes = context.cache_dir.ancestors().nth(3).unwrap().to_owned();
        note(&notes, &job.label, &std::process::id().to_string());
        match job.label.as_str() {
            "SIGKILL" => kill_process(getpid(), Signal::KILL).unwrap(),
            "SIGSEGV" => fault(Signal::SEGV),
            "SIGBUS" => fault(Signal::BUS),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "a terabyte" => drop(vec![1_u8; TERABYTE]),
            "a thread's terabyte" => {
                context.run_blocking("greedy", || Ok(vec![1_u8; TERABYTE].len())).await?;
            }
            "more and more" => {
                let mut held = Vec::new();
                while held.len() < 1 << 20 {
                    held.push(vec![1_u8; 1 << 20]);
                }
            }
            "stack overflow" => assert!(overflow(&[7; 64]) > 0),
            "panic" => panic!("told to"),
            "bad input" => return Err(JobError::Permanent("bad input".to_owned())),
            "prints" => println!("{{\"ended\":\"not a message\"}}\nnor this"),
            "disk" => {
                std::fs::write(context.cache_dir.join("large"), vec![1; 8 << 20]).unwrap();
                context.stop.wait().await;
            }
            "deaf" => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            "leaves a process" => {
                let left = std::process::Command::new("sleep").arg("600").spawn().unwrap();
                note(&notes, "left", &left.id().to_string());
                std::process::abort();
            }
            "holds" => {
                let reason = context.stop.wait().await;
                note(&notes, "reason", &format!("{reason:?}"));
                return Err(JobError::Stopped);
            }
            _ => {}
        }
        context.progress.set(Progress { done: 7, total: 9, message: "seven".to_owned(), ..Progress::default() });
        Ok(outcome())
    }
}

/// Rust's own handler, which recognizes a stack overflow by its address, handles the first signal.
/// A real fault would be raised again by itself.
fn fault(signal: Signal) {
    loop {
        kill_process(getpid(), signal).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[expect(unconditional_recursion)]
fn overflow(numbers: &[u64; 64]) -> u64 {
    let more = std::hint::black_box(numbers.map(|n| n + 1));
    overflow(&more) + more[0]
}

fn outcome() -> JobOutcome {
    let tokens = ArtifactId(Uuid::nil());
    JobOutcome::Tokenized(Tokenized {
        tokens,
        train_tokens: 9,
        validation_tokens: 1,
        vocab_size: 300,
        documents: 1,
        text_bytes: 40,
        corpus: None,
    })
}

/// Writes a file atomically, so that it is complete when it appears.
fn note(dir: &Path, name: &str, text: &str) {
    let path = dir.join(format!("{name}.note"));
    std::fs::write(path.with_extension("part"), text).unwrap();
    std::fs::rename(path.with_extension("part"), path).unwrap();
}

/// Not a test of its own: the jobs of the other tests run in it.
#[test]
#[ignore = "the jobs of the other tests run in it"]
fn be_a_job() {
    if std::env::args().any(|argument| argument == BE_A_JOB) {
        run_job(|_| Misbehaving);
    }
}

struct Bench {
    // The order matters: Postgres stops before its folder is removed.
    postgres: LocalPostgres,
    dir: tempfile::TempDir,
    store: Store,
}

struct Working {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let store = Store::connect(&store_config(&postgres)).await.unwrap();
        store.migrate().await.unwrap();
        Self { postgres, dir, store }
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

    fn work(&self, config: WorkerConfig) -> Working {
        let processes = JobProcesses {
            kinds: vec![JobKind::Tokenize],
            arguments: [BE_A_JOB, "--exact", "--ignored", "--nocapture"].map(str::to_owned).to_vec(),
            store: store_config(&self.postgres),
            worker: config.clone(),
            service: "test".to_owned(),
            telemetry: TelemetryConfig::default(),
            settings: Settings::File,
        };
        let stop = CancellationToken::new();
        let worker = run_worker(self.store.clone(), processes, config, stop.clone());
        Working { stop, task: tokio::spawn(async move { worker.await.unwrap() }) }
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
            retry: RetryPolicy { max_attempts, backoff_ms: 3_600_000, backoff_max_ms: 3_600_000 },
            run: None,
        };
        self.store.submit_job(&job, None).await.unwrap().id
    }

    async fn wait_until(&self, job: JobId, reached: impl Fn(&JobRecord) -> bool) -> JobRecord {
        let started = Instant::now();
        loop {
            let record = self.store.job(job).await.unwrap();
            if reached(&record) {
                return record;
            }
            assert!(started.elapsed() < LIMIT && !record.status.is_final(), "{record:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The error of a job's first attempt.
    async fn first_error(&self, label: &str) -> String {
        let job = self.submit(label, 9).await;
        let error = self.wait_until(job, |job| job.error.is_some()).await.error.unwrap();
        eprintln!("{label}: {error}");
        // Cancel it, so that it is not claimed again.
        let _over = self.store.request_job(job, Directive::Cancel).await;
        error
    }

    async fn succeeds(&self, label: &str) -> JobRecord {
        let job = self.submit(label, 1).await;
        self.wait_until(job, |job| job.status == JobStatus::Succeeded).await
    }

    async fn noted(&self, name: &str) -> String {
        let path: PathBuf = self.dir.path().join(format!("{name}.note"));
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&path) {
                return text;
            }
            assert!(started.elapsed() < LIMIT, "no {}", path.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_gone(&self, name: &str) {
        let pid = Pid::from_raw(self.noted(name).await.parse().unwrap()).unwrap();
        let started = Instant::now();
        // Zombies count as gone too: some init processes do not reap.
        while test_kill_process(pid).is_ok() && state(pid).is_some_and(|state| state != 'Z') {
            assert!(started.elapsed() < LIMIT, "{name}: process {pid} is still alive");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self, working: Working) {
        working.stop.cancel();
        tokio::time::timeout(LIMIT, working.task).await.expect("the worker did not stop").unwrap();
        self.postgres.stop().await.unwrap();
    }
}

fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit(')').next()?.trim().chars().next()
}

fn store_config(postgres: &LocalPostgres) -> StoreConfig {
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_whatever_a_job_does_to_its_process_the_worker_does_the_next_one() {
    let bench = Bench::new().await;
    let working = bench.work(bench.config());
    let deaths = [
        ("SIGKILL", "the job's process was terminated by signal 9 (SIGKILL) from outside"),
        ("SIGSEGV", "signal 11 (SIGSEGV)"),
        ("SIGBUS", "signal 7 (SIGBUS)"),
        ("abort", "the job's process was terminated by signal 6 (SIGABRT)"),
        ("a terabyte", "signal 6 (SIGABRT)"),
        ("a thread's terabyte", "signal 6 (SIGABRT)"),
        ("stack overflow", "signal 6 (SIGABRT)"),
        ("exit", "exit status 7 and no result"),
        ("panic", "panicked: told to"),
        ("bad input", "bad input"),
    ];
    for (label, expected) in deaths {
        let error = bench.first_error(label).await;
        assert!(error.contains(expected), "{label}: {error}");
    }
    let record = bench.succeeds("good").await;
    assert_eq!((record.attempts, &record.outcome), (1, &Some(outcome())));
    assert_eq!(record.progress.done, 7);
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_memory_beyond_the_limit_ends_the_job_alone() {
    let bench = Bench::new().await;
    let working = bench.work(WorkerConfig { job_memory_max_bytes: Some(256 << 20), ..bench.config() });
    let error = bench.first_error("more and more").await;
    assert!(error.contains("SIGABRT") && error.contains("worker.job_memory_max_bytes allows 256 MiB"), "{error}");
    bench.succeeds("good").await;
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_files_beyond_the_limit_end_the_job_alone() {
    let bench = Bench::new().await;
    let working = bench.work(WorkerConfig { job_disk_max_bytes: Some(4 << 20), ..bench.config() });
    let error = bench.first_error("disk").await;
    assert!(error.contains("more than the 4194304 of worker.job_disk_max_bytes"), "{error}");
    bench.is_gone("disk").await;
    bench.succeeds("good").await;
    // The folders of jobs are removed, however the jobs died.
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_what_a_job_has_started_ends_with_it() {
    let bench = Bench::new().await;
    let working = bench.work(bench.config());
    let error = bench.first_error("leaves a process").await;
    assert!(error.contains("SIGABRT"), "{error}");
    bench.is_gone("left").await;
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_job_that_hangs_is_ended_and_its_folder_removed() {
    let bench = Bench::new().await;
    let working = bench.work(WorkerConfig { stall_ms: 2_000, ..bench.config() });
    let error = bench.first_error("deaf").await;
    assert!(error.contains("no progress for 2 s"), "{error}");
    bench.is_gone("deaf").await;
    bench.succeeds("good").await;
    for entry in std::fs::read_dir(bench.dir.path().join("cache")).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            !path.is_dir() || std::fs::read_dir(&path).unwrap().next().is_none(),
            "{} is not empty",
            path.display()
        );
    }
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_to_stop_reach_the_process() {
    let bench = Bench::new().await;
    let working = bench.work(bench.config());
    let job = bench.submit("holds", 1).await;
    bench.noted("holds").await;
    bench.store.request_job(job, Directive::Pause).await.unwrap();
    assert_eq!(bench.noted("reason").await, "Pause");
    bench.wait_until(job, |job| job.status == JobStatus::Paused).await;
    std::fs::remove_file(bench.dir.path().join("reason.note")).unwrap();
    std::fs::remove_file(bench.dir.path().join("holds.note")).unwrap();
    bench.store.request_job(job, Directive::Run).await.unwrap();
    bench.noted("holds").await;
    working.stop.cancel();
    assert_eq!(bench.noted("reason").await, "Shutdown");
    bench.is_gone("holds").await;
    bench.wait_until(job, |job| job.status == JobStatus::Queued).await;
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_deaf_to_a_shutdown_is_ended_after_the_grace() {
    let bench = Bench::new().await;
    let working = bench.work(WorkerConfig { shutdown_grace_ms: 500, ..bench.config() });
    let job = bench.submit("deaf", 1).await;
    bench.noted("deaf").await;
    working.stop.cancel();
    bench.wait_until(job, |job| job.status == JobStatus::Queued).await;
    bench.is_gone("deaf").await;
    bench.end(working).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_prints_is_no_message() {
    let bench = Bench::new().await;
    let working = bench.work(bench.config());
    assert_eq!(bench.succeeds("prints").await.outcome, Some(outcome()));
    bench.end(working).await;
}
