//! Rounds let watches share their reads. Data that several watches of one round need is read once,
//! and all watched jobs are read with one query. A round begins after a change was announced, or
//! after a while without one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use inheritune_domain::id::{JobId, RunId};
use inheritune_domain::job::JobRecord;
use inheritune_store::metrics::RecordedPoint;
use inheritune_store::notify::{Topic, Wakeups};
use inheritune_store::runs::{RunNote, RunRecord};
use inheritune_store::{Store, StoreError};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{recent_jobs, store_status};

/// Longest wait between two rounds, because notifications may be lost.
const POLL: Duration = Duration::from_secs(1);
/// Shortest wait between two rounds, regardless of the number of changes.
const PAUSE: Duration = Duration::from_millis(200);

/// The rounds of this process. They end on `stop`, or when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Rounds {
    newest: watch::Receiver<Arc<Round>>,
    watched: WatchedJobs,
    _task: Arc<JoinSet<()>>,
}

/// The number of watches per job.
type WatchedJobs = Arc<Mutex<HashMap<JobId, usize>>>;

impl Rounds {
    pub(super) fn begin(store: Store, mut wakeups: Wakeups, stop: CancellationToken) -> Self {
        let watched = WatchedJobs::default();
        let (newest, receiver) = watch::channel(Arc::new(Round::new(&store, Vec::new())));
        let mut task = JoinSet::new();
        let jobs = Arc::clone(&watched);
        task.spawn(async move {
            let rounds = async {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    wakeups.changed(Topic::Updates, POLL).await;
                    let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
                    newest.send_replace(Arc::new(Round::new(&store, jobs)));
                }
            };
            stop.run_until_cancelled(rounds).await;
        });
        Self { newest: receiver, watched, _task: Arc::new(task) }
    }

    /// Skips a round that has already begun: its data may be older than what this clone has read
    /// since.
    pub(super) fn skip(&mut self) {
        self.newest.mark_unchanged();
    }

    /// Waits for a round that this clone has neither seen nor skipped.
    pub(super) async fn next(&mut self) -> Arc<Round> {
        // If the task has ended, the service is stopping and there is no next round.
        if self.newest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.newest.borrow_and_update())
    }

    /// Counts a watch of `job` until the returned value is dropped.
    pub(super) fn watch_job(&self, job: JobId) -> JobWatch {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner).entry(job).or_default() += 1;
        JobWatch { job, watched: Arc::clone(&self.watched) }
    }
}

/// One watch of one job.
pub(super) struct JobWatch {
    job: JobId,
    watched: WatchedJobs,
}

impl Drop for JobWatch {
    fn drop(&mut self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watches) = watched.get_mut(&self.job) {
            *watches -= 1;
            if *watches == 0 {
                watched.remove(&self.job);
            }
        }
    }
}

/// The metrics of a job after a step.
type Curves = (JobId, Vec<String>, Option<u64>);

/// The data of one round. Each item is read when the first watch needs it.
pub(super) struct Round {
    store: Store,
    watched: Vec<JobId>,
    jobs: OnceCell<Result<HashMap<JobId, Arc<JobRecord>>, Status>>,
    others: Once<JobId, Arc<JobRecord>>,
    points: Once<Curves, Arc<Vec<RecordedPoint>>>,
    runs: Once<RunId, Arc<RunRecord>>,
    notes: Once<(RunId, i64), Arc<Vec<RunNote>>>,
    jobs_of_runs: Once<RunId, Arc<Vec<inheritune_api::v1::Job>>>,
}

impl Round {
    /// Creates a round that reads the jobs `watched` with one query.
    pub(super) fn new(store: &Store, watched: Vec<JobId>) -> Self {
        Self {
            store: store.clone(),
            watched,
            jobs: OnceCell::new(),
            others: Once::default(),
            points: Once::default(),
            runs: Once::default(),
            notes: Once::default(),
            jobs_of_runs: Once::default(),
        }
    }

    pub(super) async fn job(&self, id: JobId) -> Result<Arc<JobRecord>, Status> {
        let together = self.jobs.get_or_init(|| async {
            if self.watched.is_empty() {
                return Ok(HashMap::new());
            }
            let jobs = self.store.jobs(&self.watched).await.map_err(|e| store_status(&e))?;
            Ok(jobs.into_iter().map(|job| (job.id, Arc::new(job))).collect())
        });
        if let Some(job) = together.await.as_ref().map_err(Status::clone)?.get(&id) {
            return Ok(Arc::clone(job));
        }
        // The watch of this job started after the round.
        self.others.get(id, async { self.store.job(id).await.map(Arc::new) }).await
    }

    pub(super) async fn points(
        &self,
        job: JobId,
        names: Vec<String>,
        after: Option<u64>,
    ) -> Result<Arc<Vec<RecordedPoint>>, Status> {
        let read = async {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.store.metrics(job, &names, after).await.map(Arc::new)
        };
        self.points.get((job, names.clone(), after), read).await
    }

    pub(super) async fn run(&self, id: RunId) -> Result<Arc<RunRecord>, Status> {
        self.runs.get(id, async { self.store.run(id).await.map(Arc::new) }).await
    }

    pub(super) async fn notes(&self, run: RunId, after: i64) -> Result<Arc<Vec<RunNote>>, Status> {
        self.notes.get((run, after), async { self.store.run_notes(run, after).await.map(Arc::new) }).await
    }

    /// Returns the run's newest jobs, oldest first.
    pub(super) async fn recent_jobs(&self, run: RunId) -> Result<Arc<Vec<inheritune_api::v1::Job>>, Status> {
        self.jobs_of_runs.get(run, async { recent_jobs(&self.store, run).await.map(Arc::new) }).await
    }
}

type Cell<V> = OnceCell<Result<V, Status>>;

/// Reads each value once. Errors are kept too.
struct Once<K, V> {
    cells: Mutex<HashMap<K, Arc<Cell<V>>>>,
}

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Self { cells: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V: Clone> Once<K, V> {
    async fn get(&self, key: K, read: impl Future<Output = Result<V, StoreError>>) -> Result<V, Status> {
        let cell = Arc::clone(self.cells.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        cell.get_or_init(|| async { read.await.map_err(|e| store_status(&e)) }).await.clone()
    }
}
