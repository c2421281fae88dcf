//! Events of jobs: lock the jobs' rows, ask the domain, write the answers.
//!
//! The rows stay locked from the reading of the lease to the writing of the new state, so a fence that holds in
//! `JobLife::advance` still holds when the transaction commits. However many jobs there are, one statement locks them
//! all and one writes each kind of answer ([`writes`](super::writes)). Lock order everywhere: `job_queue` by `seq`,
//! each row before its row in `jobs`.

use std::collections::HashMap;

use inheritune_domain::id::{JobId, LeaseToken, RunId, WorkerId};
use inheritune_domain::job::{Directive, InvalidJobEvent, JobEvent, JobLife, JobState, JobStatus, RetryPolicy};
use inheritune_domain::run::JobsRequest;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::writes::Writes;
use crate::StoreError;
use crate::rows;

/// An event on its way to a job: any but claims, heartbeats and completions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) job: JobId,
    pub(super) event: JobEvent,
    /// The worker's error, or its reason.
    pub(super) text: Option<&'a str>,
}

/// Carries out what can be carried out, and says of each change whether it was. Of several changes to one job at most
/// one may be possible.
///
/// # Errors
/// The database's; nothing was carried out then.
pub(super) async fn advance(
    conn: &mut PgConnection,
    changes: &[Change<'_>],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let ids: Vec<Uuid> = changes.iter().map(|change| change.job.0).collect();
    let mut jobs = lock(conn, &ids).await?;
    let over = over(conn, changes, &jobs).await?;
    let mut writes = Writes::default();
    let mut answers = Vec::with_capacity(changes.len());
    for change in changes {
        answers.push(match jobs.get_mut(&change.job) {
            None => change.without_queue_row(over.get(&change.job).copied()),
            Some(job) => match job.life.advance(job.now, change.event) {
                Ok(next) => writes.add(job, next, change).map(|()| job.life = next),
                Err(refused) => Err(change.refused(refused, job.life.state.status())),
            },
        });
    }
    writes.write(conn).await?;
    Ok(answers)
}

/// What an owner's request is called.
pub(super) fn request(directive: Directive) -> JobEvent {
    match directive {
        Directive::Run => JobEvent::RequestResume,
        Directive::Pause => JobEvent::RequestPause,
        Directive::Cancel => JobEvent::RequestCancel,
    }
}

/// Tells all of a run's unfinished jobs; those that cannot any more are left alone.
pub(crate) async fn request_of_run(
    conn: &mut PgConnection,
    run: RunId,
    request: JobsRequest,
) -> Result<(), StoreError> {
    let event = match request {
        JobsRequest::Pause => JobEvent::RequestPause,
        JobsRequest::Resume => JobEvent::RequestResume,
        JobsRequest::Cancel => JobEvent::RequestCancel,
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

/// The directive called `name`.
pub(super) fn directive(name: &str) -> Option<Directive> {
    match name {
        "run" => Some(Directive::Run),
        "pause" => Some(Directive::Pause),
        "cancel" => Some(Directive::Cancel),
        _ => None,
    }
}

impl Change<'_> {
    /// What the event does, as a participle, if it is an owner's; none for a worker's or the reaper's.
    fn of_owner(&self) -> Option<&'static str> {
        match self.event {
            JobEvent::RequestPause => Some("paused"),
            JobEvent::RequestResume => Some("resumed"),
            JobEvent::RequestCancel => Some("cancelled"),
            JobEvent::Claim { .. }
            | JobEvent::Heartbeat { .. }
            | JobEvent::Complete { .. }
            | JobEvent::Fail { .. }
            | JobEvent::Release { .. }
            | JobEvent::Expire => None,
        }
    }

    /// The answer for a job that is over, with what it ended as, or that never was.
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
        StoreError::WrongState(format!("job {} is {}: it cannot be {done}", self.job, status.as_str()))
    }
}

/// A job whose rows this transaction has locked.
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

/// Locks the jobs that are not over. Where a lock was waited for, Postgres gives each row as its last holder left it.
async fn lock(conn: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<JobId, LockedJob>, StoreError> {
    let locked = sqlx::query_as!(
        LockedRow,
        r#"-- jobs.lock
         SELECT q.job_id, now() AS "now!", q.state, q.not_before, q.lease_token, q.lease_until, q.worker_id, q.directive,
                j.run_id, j.label, j.error, j.attempts, j.failed_attempts, j.max_attempts, j.backoff_ms, j.backoff_max_ms
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

/// What the jobs that an owner asks something of, and that are not in the queue any more, ended as.
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
    max_attempts: i32,
    backoff_ms: i64,
    backoff_max_ms: i64,
}

impl LockedRow {
    fn job(self) -> Result<LockedJob, StoreError> {
        let state = rows::known(self.state(), &format!("job_queue.state of {}", self.job_id), &self.state)?;
        let retry = RetryPolicy {
            max_attempts: rows::count(self.max_attempts),
            backoff_ms: rows::unsigned(self.backoff_ms),
            backoff_max_ms: rows::unsigned(self.backoff_max_ms),
        };
        Ok(LockedJob {
            id: JobId(self.job_id),
            now: self.now,
            life: JobLife { state, failed_attempts: rows::count(self.failed_attempts), retry },
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
