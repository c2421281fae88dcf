//! Events of jobs: lock the rows of the jobs, ask the domain for the next states, and write them.
//!
//! The rows stay locked from the read of the lease to the write of the new state, so a fence that
//! is valid in `JobLife::advance` is still valid at the commit. One statement locks all jobs, and
//! one statement writes each kind of result ([`writes`](super::writes)). The lock order is the same
//! everywhere: rows of `job_queue` by `seq`, each before its row in `jobs`.

use std::collections::{HashMap, HashSet};

use inheritune_domain::id::{JobId, LeaseToken, RunId, WorkerId};
use inheritune_domain::job::{Counts, Directive, InvalidJobEvent, JobEvent, JobLife, JobState, JobStatus, RetryPolicy};
use inheritune_domain::run::JobsRequest;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::writes::Writes;
use crate::StoreError;
use crate::rows;

/// An event for a job, except claims, heartbeats and completions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) job: JobId,
    pub(super) event: JobEvent,
    /// The worker's error or reason.
    pub(super) text: Option<&'a str>,
}

/// Applies the changes that are valid, and returns the result of each change. If several changes
/// refer to one job, at most one of them may be valid.
///
/// # Errors
/// Errors of the database: no change was applied.
pub(super) async fn advance(
    conn: &mut PgConnection,
    changes: &[Change<'_>],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let ids: Vec<Uuid> = changes.iter().map(|change| change.job.0).collect();
    let mut jobs = lock(conn, &ids).await?;
    let over = over(conn, changes, &jobs).await?;
    let advanced = advanced(conn, changes, &jobs).await?;
    let mut writes = Writes::default();
    let mut answers = Vec::with_capacity(changes.len());
    for change in changes {
        answers.push(match jobs.get_mut(&change.job) {
            None => change.without_queue_row(over.get(&change.job).copied()),
            Some(job) => match job.life.advance(job.now, change.event_of(advanced.contains(&change.job))) {
                Ok(next) => writes.add(job, next, change).map(|()| job.life = next),
                Err(refused) => Err(change.refused(refused, job.life.state.status())),
            },
        });
    }
    writes.write(conn).await?;
    Ok(answers)
}

/// Returns the event for an owner's directive.
pub(super) fn request(directive: Directive) -> JobEvent {
    match directive {
        Directive::Run => JobEvent::RequestResume,
        Directive::Pause => JobEvent::RequestPause,
        Directive::Cancel => JobEvent::RequestCancel,
    }
}

/// Applies a request to all unfinished jobs of a run. Skips jobs whose state no longer allows it.
pub(crate) async fn request_of_run(
    conn: &mut PgConnection,
    run: RunId,
    request: JobsRequest,
) -> Result<(), StoreError> {
    let event = match request {
        JobsRequest::Pause => JobEvent::RequestPause,
        JobsRequest::Resume => JobEvent::RequestResume,
        JobsRequest::Cancel => JobEvent::RequestCancel,
        JobsRequest::Retry => return retry_last(conn, run).await,
    };
    let ids = sqlx::query_scalar!(
        "-- jobs.unfinished_of_run
         SELECT q.job_id FROM job_queue q JOIN jobs j ON j.id = q.job_id WHERE j.run_id = $1",
        run.0,
    )
    .fetch_all(&mut *conn)
    .await?;
    let changes: Vec<Change<'_>> = ids.into_iter().map(|id| Change { job: JobId(id), event, text: None }).collect();
    for answer in advance(conn, &changes).await? {
        match answer {
            Ok(()) | Err(StoreError::WrongState(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn retry_last(conn: &mut PgConnection, run: RunId) -> Result<(), StoreError> {
    let last = sqlx::query_scalar!(
        "-- jobs.last_of_run
         SELECT id FROM jobs WHERE run_id = $1 ORDER BY seq DESC LIMIT 1",
        run.0,
    )
    .fetch_one(&mut *conn)
    .await?;
    retry(conn, JobId(last)).await
}

/// Parses the name of a directive.
pub(super) fn directive(name: &str) -> Option<Directive> {
    match name {
        "run" => Some(Directive::Run),
        "pause" => Some(Directive::Pause),
        "cancel" => Some(Directive::Cancel),
        _ => None,
    }
}

/// Returns a failed or cancelled job to the queue at its old position, with its counters reset.
///
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::WrongState`].
pub(crate) async fn retry(conn: &mut PgConnection, id: JobId) -> Result<(), StoreError> {
    let found = sqlx::query!(
        r#"-- jobs.lock_over
         SELECT now() AS "now!", j.final_status, j.max_attempts, j.backoff_ms, j.backoff_max_ms
         FROM jobs j WHERE j.id = $1 FOR NO KEY UPDATE"#,
        id.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let found = found.ok_or_else(|| rows::not_found("job", id))?;
    let change = Change { job: id, event: JobEvent::RequestRetry, text: None };
    let state = match found.final_status.as_deref() {
        Some("FAILED") => JobState::Failed,
        Some("CANCELLED") => JobState::Cancelled,
        Some("SUCCEEDED") => return Err(change.wrong_state(JobStatus::Succeeded, "retried")),
        _ => {
            let problem = format!("job {id} has not ended: only a failed or cancelled job can be retried");
            return Err(StoreError::WrongState(problem));
        }
    };
    let retry = policy((found.max_attempts, found.backoff_ms, found.backoff_max_ms));
    let life = JobLife { state, counts: Counts::default(), retry };
    life.advance(found.now, change.event).map_err(|refused| change.refused(refused, state.status()))?;
    sqlx::query!(
        "-- jobs.retry
         WITH again AS (
             UPDATE jobs
             SET final_status = NULL, finished_at = NULL, updated_at = now(), failed_attempts = 0, lost_attempts = 0,
                 crashed_attempts = 0, waits = 0
             WHERE id = $1
             RETURNING id, kind, priority, seq, progress
         )
         INSERT INTO job_queue (job_id, kind, priority, seq, state, not_before, progress)
         SELECT id, kind, priority, seq, 'queued', now(), progress FROM again",
        id.0,
    )
    .execute(conn)
    .await?;
    Ok(())
}

impl Change<'_> {
    /// Returns the event, completed with whether the attempt that it ends made progress.
    fn event_of(&self, advanced: bool) -> JobEvent {
        match self.event {
            JobEvent::Fail { token, class, .. } => JobEvent::Fail { token, class, advanced },
            JobEvent::Release { token, .. } => JobEvent::Release { token, advanced },
            JobEvent::Expire { .. } => JobEvent::Expire { advanced },
            event => event,
        }
    }

    /// Returns the participle for an owner's request, or `None` for an event of a worker or the
    /// reaper.
    fn of_owner(&self) -> Option<&'static str> {
        match self.event {
            JobEvent::RequestPause => Some("paused"),
            JobEvent::RequestResume => Some("resumed"),
            JobEvent::RequestCancel => Some("cancelled"),
            JobEvent::RequestRetry => Some("retried"),
            JobEvent::Claim { .. }
            | JobEvent::Heartbeat { .. }
            | JobEvent::Complete { .. }
            | JobEvent::Fail { .. }
            | JobEvent::Release { .. }
            | JobEvent::Expire { .. }
            | JobEvent::GiveUpWaiting { .. } => None,
        }
    }

    /// Returns the result for a job without a queue row. `over` is its final status, or `None` if
    /// the job does not exist.
    fn without_queue_row(&self, over: Option<JobStatus>) -> Result<(), StoreError> {
        match (self.of_owner(), over) {
            (None, _) => Err(StoreError::LeaseLost(self.job)),
            (Some(_), None) => Err(rows::not_found("job", self.job)),
            (Some("cancelled"), Some(JobStatus::Cancelled)) => Ok(()),
            (Some(done), Some(status)) => Err(self.wrong_state(status, done)),
        }
    }

    fn refused(&self, error: InvalidJobEvent, status: JobStatus) -> StoreError {
        match (error, self.of_owner()) {
            (InvalidJobEvent::WrongState, Some(done)) => self.wrong_state(status, done),
            (InvalidJobEvent::WrongState | InvalidJobEvent::StaleLease, _) => StoreError::LeaseLost(self.job),
        }
    }

    fn wrong_state(&self, status: JobStatus, done: &str) -> StoreError {
        StoreError::WrongState(format!("job {} is {} and cannot be {done}", self.job, status.as_str()))
    }
}

/// A job whose rows are locked by this transaction.
pub(super) struct LockedJob {
    pub(super) id: JobId,
    pub(super) now: OffsetDateTime,
    pub(super) life: JobLife,
    pub(super) run: Option<RunId>,
    pub(super) label: String,
    pub(super) error: Option<String>,
    pub(super) worker: Option<WorkerId>,
    pub(super) attempts: i32,
}

/// Locks the unfinished jobs. After a wait for a lock, Postgres returns the row as its last holder
/// left it.
async fn lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<JobId, LockedJob>, StoreError> {
    let locked = sqlx::query_as!(
        LockedRow,
        r#"-- jobs.lock
         SELECT q.job_id, now() AS "now!", q.state, q.not_before, q.lease_token, q.lease_until, q.worker_id, q.directive,
                q.waiting_since, j.run_id, j.label, j.error, j.attempts, j.failed_attempts, j.lost_attempts,
                j.crashed_attempts, j.waits, j.max_attempts, j.backoff_ms, j.backoff_max_ms
         FROM job_queue q
         JOIN jobs j ON j.id = q.job_id
         WHERE q.job_id = ANY($1)
         ORDER BY q.seq
         FOR UPDATE OF q
         FOR NO KEY UPDATE OF j"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    locked.into_iter().map(|row| row.job().map(|job| (job.id, job))).collect()
}

/// Returns the jobs whose ending attempts made durable progress: they published a training state
/// that is newer than all previous ones, or finished a unit of their own evaluation or of one that
/// they help. The rows must already be locked, because publishing locks them too.
async fn advanced(
    conn: &mut PgConnection,
    changes: &[Change<'_>],
    locked: &HashMap<JobId, LockedJob>,
) -> Result<HashSet<JobId>, StoreError> {
    let (mut ids, mut tokens) = (Vec::new(), Vec::new());
    for change in changes {
        let ends = matches!(change.event, JobEvent::Fail { .. } | JobEvent::Release { .. } | JobEvent::Expire { .. });
        if let Some(JobState::Leased { token, .. }) = locked.get(&change.job).map(|job| job.life.state)
            && ends
        {
            ids.push(change.job.0);
            tokens.push(token.0);
        }
    }
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let advanced = sqlx::query_scalar!(
        r#"-- jobs.advanced
         SELECT e.job_id AS "job_id!"
         FROM unnest($1::uuid[], $2::bigint[]) AS e (job_id, lease_token)
         JOIN jobs j ON j.id = e.job_id
         WHERE EXISTS (
                   SELECT FROM artifacts a
                   WHERE a.job_id = e.job_id AND a.kind = 'training_state' AND a.lease_token = e.lease_token
                     AND a.step > coalesce((
                         SELECT max(b.step) FROM artifacts b
                         WHERE b.job_id = e.job_id AND b.kind = 'training_state' AND b.lease_token < e.lease_token), -1))
            OR EXISTS (
                   SELECT FROM evaluation_units u
                   WHERE u.job_id IN (e.job_id, (j.spec ->> 'helps')::uuid) AND u.lease_token = e.lease_token
                     AND u.finished_at IS NOT NULL)"#,
        &ids,
        &tokens,
    )
    .fetch_all(conn)
    .await?;
    Ok(advanced.into_iter().map(JobId).collect())
}

fn policy((max_attempts, backoff_ms, backoff_max_ms): (i32, i64, i64)) -> RetryPolicy {
    RetryPolicy {
        max_attempts: rows::count(max_attempts),
        backoff_ms: rows::unsigned(backoff_ms),
        backoff_max_ms: rows::unsigned(backoff_max_ms),
    }
}

/// Returns the final statuses of the jobs that have left the queue and that an owner's request
/// refers to.
async fn over(
    conn: &mut PgConnection,
    changes: &[Change<'_>],
    locked: &HashMap<JobId, LockedJob>,
) -> Result<HashMap<JobId, JobStatus>, StoreError> {
    let missing = |change: &&Change<'_>| change.of_owner().is_some() && !locked.contains_key(&change.job);
    let ids: Vec<Uuid> = changes.iter().filter(missing).map(|change| change.job.0).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let over = sqlx::query!(
        r#"-- jobs.final_status
         SELECT id, final_status AS "final_status!" FROM jobs WHERE id = ANY($1) AND final_status IS NOT NULL"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    over.into_iter()
        .map(|row| {
            let status = JobStatus::parse(&row.final_status);
            Ok((JobId(row.id), rows::known(status, "jobs.final_status", &row.final_status)?))
        })
        .collect()
}

struct LockedRow {
    job_id: Uuid,
    now: OffsetDateTime,
    state: String,
    not_before: Option<OffsetDateTime>,
    lease_token: Option<i64>,
    lease_until: Option<OffsetDateTime>,
    worker_id: Option<Uuid>,
    directive: Option<String>,
    run_id: Option<Uuid>,
    label: String,
    error: Option<String>,
    attempts: i32,
    failed_attempts: i32,
    lost_attempts: i32,
    crashed_attempts: i32,
    waits: i32,
    waiting_since: Option<OffsetDateTime>,
    max_attempts: i32,
    backoff_ms: i64,
    backoff_max_ms: i64,
}

impl LockedRow {
    fn job(self) -> Result<LockedJob, StoreError> {
        let state = rows::known(self.state(), &format!("job_queue.state of {}", self.job_id), &self.state)?;
        let retry = policy((self.max_attempts, self.backoff_ms, self.backoff_max_ms));
        let counts = Counts {
            failed: rows::count(self.failed_attempts),
            lost: rows::count(self.lost_attempts),
            crashed: rows::count(self.crashed_attempts),
            waits: rows::count(self.waits),
            waiting_since: self.waiting_since,
        };
        Ok(LockedJob {
            id: JobId(self.job_id),
            now: self.now,
            life: JobLife { state, counts, retry },
            run: self.run_id.map(RunId),
            label: self.label,
            error: self.error,
            worker: self.worker_id.map(WorkerId),
            attempts: self.attempts,
        })
    }

    fn state(&self) -> Option<JobState> {
        match (self.state.as_str(), self.not_before) {
            ("queued", Some(not_before)) => Some(JobState::Queued { not_before }),
            ("paused", None) => Some(JobState::Paused),
            ("leased", None) => Some(JobState::Leased {
                token: LeaseToken(self.lease_token?),
                worker: WorkerId(self.worker_id?),
                lease_until: self.lease_until?,
                directive: self.directive.as_deref().and_then(directive)?,
            }),
            _ => None,
        }
    }
}
