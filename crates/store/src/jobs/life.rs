//! One event of one job: lock its rows, ask the domain, write the answer.
//!
//! The rows stay locked from the reading of the lease to the writing of the new state, so a fence that holds in
//! `JobLife::advance` still holds when the transaction commits. Lock order everywhere: `job_queue`, then `jobs`.

use inheritune_domain::id::{JobId, LeaseToken, RunId, WorkerId};
use inheritune_domain::job::{Directive, InvalidJobEvent, JobEvent, JobLife, JobState, JobStatus, RetryPolicy};
use inheritune_domain::run::{JobsRequest, RunEvent};
use inheritune_domain::spec::JobOutcome;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::StoreError;
use crate::notify::Topic;
use crate::rows;
use crate::runs::insert_run_event;

/// What an event brings along.
#[derive(Debug, Clone, Copy)]
pub(super) enum Detail<'a> {
    Nothing,
    Outcome(&'a JobOutcome),
    Error(&'a str),
    Reason(&'a str),
}

/// Carries out `event`; says whom to wake.
pub(super) async fn advance(
    conn: &mut PgConnection,
    id: JobId,
    event: JobEvent,
    detail: Detail<'_>,
) -> Result<Vec<Topic>, StoreError> {
    let Some(job) = lock(conn, id).await? else {
        return match (event_of_owner(event), final_status(conn, id).await?) {
            (None, _) => Err(StoreError::LeaseLost(id)),
            (Some(_), None) => Err(rows::not_found("job", id)),
            (Some("cancelled"), Some(JobStatus::Cancelled)) => Ok(Vec::new()),
            (Some(done), Some(status)) => Err(wrong_state(id, status, done)),
        };
    };
    let next = job.life.advance(job.now, event).map_err(|e| match (e, event_of_owner(event)) {
        (InvalidJobEvent::WrongState, Some(done)) => wrong_state(id, job.life.state.status(), done),
        (InvalidJobEvent::WrongState | InvalidJobEvent::StaleLease, _) => StoreError::LeaseLost(id),
    })?;
    write(conn, &job, next, Happened { event, detail }).await
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
) -> Result<Vec<Topic>, StoreError> {
    let event = match request {
        JobsRequest::Pause => JobEvent::RequestPause,
        JobsRequest::Resume => JobEvent::RequestResume,
        JobsRequest::Cancel => JobEvent::RequestCancel,
    };
    let ids = sqlx::query_scalar!(
        "-- jobs.unfinished_of_run
         SELECT q.job_id FROM job_queue q JOIN jobs j ON j.id = q.job_id WHERE j.run_id = $1 ORDER BY q.seq",
        run.0,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut topics = Vec::new();
    for id in ids {
        match advance(conn, JobId(id), event, Detail::Nothing).await {
            Ok(more) => topics.extend(more),
            Err(StoreError::WrongState(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(topics)
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

fn directive_name(directive: Directive) -> &'static str {
    match directive {
        Directive::Run => "run",
        Directive::Pause => "pause",
        Directive::Cancel => "cancel",
    }
}

/// What an owner's event does, as a participle; none for a worker's or the reaper's.
fn event_of_owner(event: JobEvent) -> Option<&'static str> {
    match event {
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

fn wrong_state(id: JobId, status: JobStatus, done: &str) -> StoreError {
    StoreError::WrongState(format!("job {id} is {}: it cannot be {done}", status.as_str()))
}

/// A job whose rows this transaction has locked.
struct LockedJob {
    id: JobId,
    now: OffsetDateTime,
    life: JobLife,
    run: Option<RunId>,
    label: String,
    error: Option<String>,
    worker: Option<WorkerId>,
    attempts: i32,
}

struct Happened<'a> {
    event: JobEvent,
    detail: Detail<'a>,
}

async fn lock(conn: &mut PgConnection, id: JobId) -> Result<Option<LockedJob>, StoreError> {
    // Two statements: the second sees what the holder of the lock committed while the first one waited.
    let queued = sqlx::query!(
        r#"-- jobs.lock_queue
         SELECT now() AS "now!", state, not_before, lease_token, lease_until, worker_id, directive
         FROM job_queue WHERE job_id = $1 FOR UPDATE"#,
        id.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(queued) = queued else { return Ok(None) };
    let job = sqlx::query!(
        "-- jobs.lock
         SELECT run_id, label, error, attempts, failed_attempts, max_attempts, backoff_ms, backoff_max_ms
         FROM jobs WHERE id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_one(&mut *conn)
    .await?;
    let directive = queued.directive.as_deref().and_then(directive);
    let state = match (queued.state.as_str(), queued.not_before) {
        ("queued", Some(not_before)) => Some(JobState::Queued { not_before }),
        ("paused", None) => Some(JobState::Paused),
        ("leased", None) => match (queued.lease_token, queued.worker_id, queued.lease_until, directive) {
            (Some(token), Some(worker), Some(lease_until), Some(directive)) => {
                Some(JobState::Leased { token: LeaseToken(token), worker: WorkerId(worker), lease_until, directive })
            }
            _ => None,
        },
        _ => None,
    };
    let state = rows::known(state, &format!("job_queue.state of {id}"), &queued.state)?;
    let retry = RetryPolicy {
        max_attempts: rows::count(job.max_attempts),
        backoff_ms: rows::unsigned(job.backoff_ms),
        backoff_max_ms: rows::unsigned(job.backoff_max_ms),
    };
    Ok(Some(LockedJob {
        id,
        now: queued.now,
        life: JobLife { state, failed_attempts: rows::count(job.failed_attempts), retry },
        run: job.run_id.map(RunId),
        label: job.label,
        error: job.error,
        worker: queued.worker_id.map(WorkerId),
        attempts: job.attempts,
    }))
}

async fn final_status(conn: &mut PgConnection, id: JobId) -> Result<Option<JobStatus>, StoreError> {
    let status = sqlx::query_scalar!("-- jobs.final_status\nSELECT final_status FROM jobs WHERE id = $1", id.0)
        .fetch_optional(conn)
        .await?
        .flatten();
    status.map(|status| rows::known(JobStatus::parse(&status), "jobs.final_status", &status)).transpose()
}

async fn write(
    conn: &mut PgConnection,
    job: &LockedJob,
    next: JobLife,
    happened: Happened<'_>,
) -> Result<Vec<Topic>, StoreError> {
    let error = happened.error(job, next);
    if let JobState::Leased { token, .. } = job.life.state
        && !matches!(next.state, JobState::Leased { .. })
    {
        end_attempt(conn, token, &happened, error.as_deref()).await?;
    }
    let kept = match happened.event {
        JobEvent::Fail { .. } | JobEvent::Expire => error,
        _ => job.error.clone(),
    };
    let waits = match next.state {
        JobState::Leased { directive, .. } => {
            sqlx::query!(
                "-- jobs.direct
                 UPDATE job_queue SET directive = $2 WHERE job_id = $1",
                job.id.0,
                directive_name(directive),
            )
            .execute(&mut *conn)
            .await?;
            return Ok(vec![Topic::Updates]);
        }
        JobState::Queued { not_before } => Some(("queued", Some(not_before))),
        JobState::Paused => Some(("paused", None)),
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => None,
    };
    match waits {
        Some((state, not_before)) => {
            wait(conn, job.id, state, not_before).await?;
            sqlx::query!(
                "-- jobs.wait
                 UPDATE jobs SET failed_attempts = $2, error = $3, updated_at = now() WHERE id = $1",
                job.id.0,
                next.failed_attempts as i32,
                kept,
            )
            .execute(&mut *conn)
            .await?;
            Ok(vec![Topic::Jobs, Topic::Updates])
        }
        None => finish(conn, job, next, (happened.detail, kept)).await,
    }
}

async fn wait(
    conn: &mut PgConnection,
    id: JobId,
    state: &str,
    not_before: Option<OffsetDateTime>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- jobs.wait_in_queue
         UPDATE job_queue
         SET state = $2, not_before = $3, lease_token = NULL, lease_until = NULL, worker_id = NULL, directive = NULL,
             heartbeat_at = NULL
         WHERE job_id = $1",
        id.0,
        state,
        not_before,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes the job off the queue and tells its run.
async fn finish(
    conn: &mut PgConnection,
    job: &LockedJob,
    next: JobLife,
    (detail, error): (Detail<'_>, Option<String>),
) -> Result<Vec<Topic>, StoreError> {
    let outcome = match detail {
        Detail::Outcome(outcome) => Some(outcome_json(job.id, outcome)?),
        Detail::Nothing | Detail::Error(_) | Detail::Reason(_) => None,
    };
    let error = error.filter(|_| next.state != JobState::Succeeded);
    let event = match (next.state, detail) {
        (JobState::Succeeded, Detail::Outcome(outcome)) => RunEvent::JobSucceeded { outcome: outcome.clone() },
        (JobState::Cancelled, _) => RunEvent::JobCancelled,
        _ => RunEvent::JobFailed { message: format!("{}: {}", job.label, error.as_deref().unwrap_or("failed")) },
    };
    sqlx::query!(
        "-- jobs.finish
         WITH gone AS (DELETE FROM job_queue WHERE job_id = $1 RETURNING progress)
         UPDATE jobs
         SET final_status = $2, finished_at = now(), updated_at = now(), failed_attempts = $3, outcome = $4, error = $5,
             progress = (SELECT progress FROM gone)
         WHERE id = $1",
        job.id.0,
        next.state.status().as_str(),
        next.failed_attempts as i32,
        outcome,
        error,
    )
    .execute(&mut *conn)
    .await?;
    let mut topics = vec![Topic::Updates];
    if let Some(run) = job.run {
        insert_run_event(conn, run, &event).await?;
        topics.push(Topic::Runs);
    }
    Ok(topics)
}

/// JSON has no NaN: an outcome that could not be read back is refused while its worker can still be told.
fn outcome_json(id: JobId, outcome: &JobOutcome) -> Result<serde_json::Value, StoreError> {
    let name = format!("outcome of job {id}");
    let json = rows::to_json(outcome, &name)?;
    rows::from_json::<JobOutcome>(json.clone(), &name)?;
    Ok(json)
}

async fn end_attempt(
    conn: &mut PgConnection,
    token: LeaseToken,
    happened: &Happened<'_>,
    error: Option<&str>,
) -> Result<(), StoreError> {
    let ended = match happened.event {
        JobEvent::Complete { .. } => "succeeded",
        JobEvent::Fail { .. } => "failed",
        JobEvent::Expire => "expired",
        JobEvent::Release { .. }
        | JobEvent::Claim { .. }
        | JobEvent::Heartbeat { .. }
        | JobEvent::RequestPause
        | JobEvent::RequestResume
        | JobEvent::RequestCancel => "released",
    };
    sqlx::query!(
        "-- job_attempts.end
         UPDATE job_attempts SET ended_at = now(), ended = $2, error = $3 WHERE lease_token = $1",
        token.0,
        ended,
        error,
    )
    .execute(conn)
    .await?;
    Ok(())
}

impl Happened<'_> {
    /// What is written beside the attempt that ends.
    fn error(&self, job: &LockedJob, next: JobLife) -> Option<String> {
        let error = match (self.event, self.detail) {
            (JobEvent::Expire, _) => {
                let worker = job.worker.map_or_else(|| "?".to_owned(), |worker| worker.to_string());
                format!("worker {worker} fell silent in attempt {}: its lease ran out", job.attempts)
            }
            (_, Detail::Error(text) | Detail::Reason(text)) => rows::text(text),
            (_, Detail::Nothing | Detail::Outcome(_)) => return None,
        };
        let gave_up = next.state == JobState::Failed && next.failed_attempts >= job.life.retry.max_attempts;
        Some(if gave_up && next.failed_attempts > 1 {
            format!("{error} (given up after {} failed attempts)", next.failed_attempts)
        } else {
            error
        })
    }
}
