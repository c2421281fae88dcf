//! A dead worker's job runs elsewhere within seconds. A worker that is only slow, or has no
//! scheduler, keeps its job.
//!
//! The workers are processes whose only job lasts until they are told to stop. They run this test
//! binary, see [`be_a_worker`].

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inheritune_domain::artifact::Location;
use inheritune_domain::id::JobId;
use inheritune_domain::job::{Directive, RetryPolicy};
use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec, TokenizeSpec, TokenizerSource};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, WorkerConfig, run_worker};
use inheritune_store::jobs::{Lease, NewJob};
use inheritune_store::{Store, StoreConfig};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Setup, now_s, send};
use crate::support::LIMIT;

/// Limit for the time from a worker's death to its job's next start (99th percentile).
const FAILOVER_P99_LIMIT_S: f64 = 6.0;
const DATABASE: &str = "FAULTS_WORKER_DATABASE";
const NOTES: &str = "FAULTS_WORKER_NOTES";

/// Holds each job until it is told to stop. Notes which process holds it, and when it was told to
/// stop.
struct Holder(PathBuf);

impl JobHandler for Holder {
    fn kinds(&self) -> &[JobKind] {
        &[JobKind::Tokenize]
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        let (pid, job) = (std::process::id(), job.key.job);
        note(&self.0.join(format!("holder-{job}")), &pid.to_string());
        context.stop.wait().await;
        note(&self.0.join(format!("stopped-{pid}")), &now_s().to_string());
        Err(JobError::Stopped)
    }
}

/// Writes a file atomically, so that it is complete when it appears.
fn note(path: &Path, text: &str) {
    let part = path.with_extension("part");
    std::fs::write(&part, text).unwrap();
    std::fs::rename(&part, path).unwrap();
}

fn noted<T: std::str::FromStr>(path: &Path) -> Option<T> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// Not a test of its own: the workers of the other tests run it.
#[test]
fn be_a_worker() {
    let (Ok(database_url), Some(notes)) = (std::env::var(DATABASE), std::env::var_os(NOTES)) else { return };
    let notes = PathBuf::from(notes);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
        let store = Store::connect(&StoreConfig { database_url, max_connections: 3, objects }).await.unwrap();
        let config = WorkerConfig { cache_dir: notes.join("cache"), ..WorkerConfig::default() };
        run_worker(store, Holder(notes), config, CancellationToken::new()).await.unwrap();
    });
}

/// A worker process, killed on drop.
struct Worker(Child);

impl Worker {
    fn start(database_url: &str, notes: &Path) -> Self {
        let mut worker = Command::new(std::env::current_exe().unwrap());
        worker.args(["failover::be_a_worker", "--exact", "--nocapture"]).env(DATABASE, database_url).env(NOTES, notes);
        Self(worker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A database and a scheduler without the other services, and a folder for the workers' notes.
struct House {
    cluster: Cluster,
    notes: PathBuf,
}

impl House {
    async fn build() -> Self {
        let cluster = Cluster::start(Setup { services: vec!["scheduler"], ..Setup::default() }).await;
        let notes = cluster.dir.path().join("notes");
        std::fs::create_dir(&notes).unwrap();
        Self { cluster, notes }
    }

    fn worker(&self) -> Worker {
        Worker::start(self.cluster.database_url(), &self.notes)
    }

    /// Submits a job with default settings.
    async fn submit(&self) -> JobId {
        let spec = JobSpec::Tokenize(TokenizeSpec {
            sources: vec![Location::Uri("file:///nowhere".to_owned())],
            tokenizer: TokenizerSource::Train { vocab_size: 300 },
            validation_fraction: 0.1,
            text_column: None,
            max_bad_rows: 0,
        });
        let job = NewJob { label: "held".to_owned(), spec, priority: 0, retry: RetryPolicy::default(), run: None };
        self.cluster.store.submit_job(&job, None).await.unwrap().id
    }

    /// Waits until a process holds the job, and returns its id.
    async fn holder(&self, job: JobId) -> u32 {
        let path = self.notes.join(format!("holder-{job}"));
        until(async || noted(&path), "no worker claims the job").await
    }

    /// When an attempt was started, in seconds since 1970. `None` if it was not started yet.
    async fn attempt(&self, job: JobId, attempt: i32) -> Option<f64> {
        let query =
            "SELECT extract(epoch FROM started_at)::float8 FROM job_attempts WHERE job_id = $1 AND attempt = $2";
        sqlx::query_scalar(query).bind(job.0).bind(attempt).fetch_optional(self.cluster.store.pool()).await.unwrap()
    }

    /// When the job's lease ends, in seconds since 1970.
    async fn lease_end(&self, job: JobId) -> Option<f64> {
        let query = "SELECT extract(epoch FROM lease_until)::float8 FROM job_queue WHERE job_id = $1";
        sqlx::query_scalar(query).bind(job.0).fetch_one(self.cluster.store.pool()).await.unwrap()
    }
}

/// Calls `look` until it returns something.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>, problem: &str) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "{problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Kills `kills` workers that hold a job, `at_once` of them within a few seconds. Returns the
/// seconds from each death to the job's next start, sorted.
async fn failovers(kills: usize, at_once: usize, seed: u64) -> Vec<f64> {
    let house = House::build().await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut workers: Vec<Worker> = Vec::new();
    let mut waits = Vec::new();
    while waits.len() < kills {
        while workers.len() < 2 * at_once {
            workers.push(house.worker());
        }
        let mut jobs = Vec::new();
        for _ in 0..at_once {
            jobs.push(house.submit().await);
        }
        let mut deaths = Vec::new();
        for job in &jobs {
            let holder = house.holder(*job).await;
            // At a random time between two heartbeats.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1000))).await;
            let at = workers.iter().position(|worker| worker.pid() == holder).unwrap();
            let died_s = now_s();
            drop(workers.swap_remove(at));
            deaths.push(died_s);
        }
        for (job, died_s) in jobs.iter().zip(deaths) {
            let started_s = until(async || house.attempt(*job, 2).await, "no worker takes over").await;
            waits.push(started_s - died_s);
        }
        for job in jobs {
            house.cluster.store.request_job(job, Directive::Cancel).await.unwrap();
        }
    }
    waits.sort_by(f64::total_cmp);
    waits
}

fn show_distribution(waits: &[f64]) -> f64 {
    let quantile = |q: f64| waits[((waits.len() as f64 * q).ceil() as usize).clamp(1, waits.len()) - 1];
    eprintln!(
        "{} workers killed: job started elsewhere after min {:.2}, p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2} s",
        waits.len(),
        waits[0],
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        waits[waits.len() - 1]
    );
    quantile(0.99)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_workers_jobs_run_elsewhere() {
    // The long version checks the time; here, other tests run concurrently.
    show_distribution(&failovers(6, 6, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn dead_workers_jobs_run_elsewhere_within_seconds() {
    let p99 = show_distribution(&failovers(120, 8, 2).await);
    assert!(p99 <= FAILOVER_P99_LIMIT_S, "p99 is {p99:.2} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_slow_or_without_a_scheduler_keeps_its_job() {
    let mut house = House::build().await;
    let (first, job) = (house.worker(), house.submit().await);
    assert_eq!(house.holder(job).await, first.pid());
    let _second = house.worker();
    // The worker freezes for less than a lease.
    send(first.pid(), "STOP");
    tokio::time::sleep(Duration::from_millis(3000)).await;
    send(first.pid(), "CONT");
    // There is no scheduler for longer than a lease: the worker only has the database.
    house.cluster.kill_9("scheduler");
    tokio::time::sleep(Duration::from_secs(7)).await;
    house.cluster.start_service("scheduler");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(house.lease_end(job).await.unwrap() > now_s(), "the lease was not renewed");
    assert_eq!(house.attempt(job, 2).await, None, "another worker claimed the job");
    assert!(!house.notes.join(format!("stopped-{}", first.pid())).exists(), "the worker was told to stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_database_stops_before_its_lease_ends() {
    let house = House::build().await;
    let line = Line::new(&house.cluster.socket(), house.cluster.database_password()).await;
    let first = Worker::start(&line.database_url, &house.notes);
    let job = house.submit().await;
    assert_eq!(house.holder(job).await, first.pid());
    let _second = house.worker();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    line.cut.send_replace(true);
    // Requests that were in flight have arrived by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lease_end_s = house.lease_end(job).await.unwrap();
    let stopped = house.notes.join(format!("stopped-{}", first.pid()));
    let stopped_s: f64 = until(async || noted(&stopped), "the worker does not stop").await;
    let next_s = until(async || house.attempt(job, 2).await, "no worker takes over").await;
    eprintln!(
        "cut off from the database: stopped {:.2} s before the lease ended; the job ran elsewhere {:.2} s after that",
        lease_end_s - stopped_s,
        next_s - lease_end_s
    );
    assert!(stopped_s < lease_end_s, "the job continued for {:.3} s after its lease ended", stopped_s - lease_end_s);
    assert!(stopped_s < next_s);
}

/// A connection to a database that can be cut: then no data passes, and neither side is notified.
struct Line {
    database_url: String,
    cut: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Line {
    async fn new(socket: &Path, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let database_url = format!("postgres://inheritune:{password}@{address}/inheritune?sslmode=disable");
        let (cut, is_cut) = watch::channel(false);
        let (socket, mut connections) = (socket.to_owned(), JoinSet::new());
        connections.spawn(async move {
            let mut accepted = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                accepted.spawn(carry(near, socket.clone(), is_cut.clone()));
            }
        });
        Self { database_url, cut, _connections: connections }
    }
}

async fn carry(near: TcpStream, socket: PathBuf, mut is_cut: watch::Receiver<bool>) {
    if is_cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let far = UnixStream::connect(socket).await.unwrap();
    let ((mut near_out, mut near_in), (mut far_out, mut far_in)) = (near.into_split(), far.into_split());
    tokio::join!(pass(&mut near_out, &mut far_in, is_cut.clone()), pass(&mut far_out, &mut near_in, is_cut));
}

async fn pass(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut is_cut: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if is_cut.wait_for(|cut| !cut).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
