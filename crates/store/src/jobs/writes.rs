//! What events made of jobs, on its way into the tables: columns of rows, one statement for each kind of answer.

use inheritune_domain::id::JobId;
use inheritune_domain::job::{Directive, JobEvent, JobLife, JobState};
use inheritune_domain::run::RunEvent;
use inheritune_domain::spec::JobOutcome;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::life::{Change, Detail, LockedJob};
use crate::StoreError;
use crate::notify::{self, Topic};
use crate::rows;

/// Answers of one transaction, collected.
#[derive(Default)]
pub(super) struct Writes {
    directed: Directed,
    waiting: Waiting,
    finished: Finished,
}

/// Jobs whose holders are to be told something.
#[derive(Default)]
struct Directed {
    jobs: Vec<Uuid>,
    directives: Vec<String>,
}

/// Jobs that are in nobody's hands (any more).
#[derive(Default)]
struct Waiting {
    jobs: Vec<Uuid>,
    states: Vec<String>,
    not_before: Vec<Option<OffsetDateTime>>,
    failed_attempts: Vec<i32>,
    errors: Vec<Option<String>>,
    ended: Ended,
}

/// Jobs that are over, and what their runs are told.
#[derive(Default)]
struct Finished {
    jobs: Vec<Uuid>,
    statuses: Vec<String>,
    failed_attempts: Vec<i32>,
    outcomes: Vec<Option<Value>>,
    errors: Vec<Option<String>>,
    ended: Ended,
    runs: Vec<Option<Uuid>>,
    events: Vec<Option<Value>>,
}

/// The attempts that ended with it, if there were any.
#[derive(Default)]
struct Ended {
    tokens: Vec<Option<i64>>,
    how: Vec<String>,
    errors: Vec<Option<String>>,
}

impl Writes {
    /// Adds what `change` made of a job.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for an outcome that could not be read back; nothing is added then.
    pub(super) fn add(&mut self, job: &LockedJob, next: JobLife, change: &Change<'_>) -> Result<(), StoreError> {
        let error = error(job, next, change);
        let kept = match change.event {
            JobEvent::Fail { .. } | JobEvent::Expire => error.clone(),
            _ => job.error.clone(),
        };
        match next.state {
            JobState::Leased { directive, .. } => {
                self.directed.jobs.push(job.id.0);
                self.directed.directives.push(directive_name(directive).to_owned());
            }
            JobState::Queued { not_before } => self.waiting.add((job, next, kept), "queued", Some(not_before)),
            JobState::Paused => self.waiting.add((job, next, kept), "paused", None),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
                self.finished.add((job, next, kept), change.detail)?;
            }
        }
        match next.state {
            JobState::Leased { .. } => {}
            JobState::Queued { .. } | JobState::Paused => self.waiting.ended.add(job, change.event, error),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
                self.finished.ended.add(job, change.event, error);
            }
        }
        Ok(())
    }

    /// Writes it all, and announces it.
    pub(super) async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        if !self.directed.jobs.is_empty() {
            self.directed.write(conn).await?;
        }
        if !self.waiting.jobs.is_empty() {
            self.waiting.write(conn).await?;
        }
        if !self.finished.jobs.is_empty() {
            self.finished.write(conn).await?;
        }
        Ok(())
    }
}

impl Directed {
    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- jobs.direct
             WITH directed AS (
                 UPDATE job_queue q SET directive = d.directive
                 FROM unnest($1::uuid[], $2::text[]) AS d (job_id, directive)
                 WHERE q.job_id = d.job_id
             )
             SELECT pg_notify(channel, '') FROM unnest($3::text[]) AS channel",
            &self.jobs,
            &self.directives,
            &notify::channels(&[Topic::Updates]),
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

impl Waiting {
    fn add(
        &mut self,
        (job, next, error): (&LockedJob, JobLife, Option<String>),
        state: &str,
        not_before: Option<OffsetDateTime>,
    ) {
        self.jobs.push(job.id.0);
        self.states.push(state.to_owned());
        self.not_before.push(not_before);
        self.failed_attempts.push(next.failed_attempts as i32);
        self.errors.push(error);
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- jobs.wait
             WITH waiting AS MATERIALIZED (
                 SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::int[], $5::text[],
                                      $6::bigint[], $7::text[], $8::text[])
                     AS w (job_id, state, not_before, failed_attempts, error, lease_token, ended, attempt_error)
             ), back AS (
                 UPDATE job_queue q
                 SET state = w.state, not_before = w.not_before, lease_token = NULL, lease_until = NULL,
                     worker_id = NULL, directive = NULL, heartbeat_at = NULL
                 FROM waiting w
                 WHERE q.job_id = w.job_id
             ), ended AS (
                 UPDATE job_attempts a SET ended_at = now(), ended = w.ended, error = w.attempt_error
                 FROM waiting w
                 WHERE a.lease_token = w.lease_token
             ), kept AS (
                 UPDATE jobs j SET failed_attempts = w.failed_attempts, error = w.error, updated_at = now()
                 FROM waiting w
                 WHERE j.id = w.job_id
             )
             SELECT pg_notify(channel, '') FROM unnest($9::text[]) AS channel",
            &self.jobs,
            &self.states,
            &self.not_before as &[Option<OffsetDateTime>],
            &self.failed_attempts,
            &self.errors as &[Option<String>],
            &self.ended.tokens as &[Option<i64>],
            &self.ended.how,
            &self.ended.errors as &[Option<String>],
            &notify::channels(&[Topic::Jobs, Topic::Updates]),
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

impl Finished {
    fn add(
        &mut self,
        (job, next, error): (&LockedJob, JobLife, Option<String>),
        detail: Detail<'_>,
    ) -> Result<(), StoreError> {
        let error = error.filter(|_| next.state != JobState::Succeeded);
        let outcome = match detail {
            Detail::Outcome(outcome) => Some(outcome_json(job.id, outcome)?),
            Detail::Nothing | Detail::Error(_) | Detail::Reason(_) => None,
        };
        let event = match (next.state, detail) {
            (JobState::Succeeded, Detail::Outcome(outcome)) => RunEvent::JobSucceeded { outcome: outcome.clone() },
            (JobState::Cancelled, _) => RunEvent::JobCancelled,
            _ => RunEvent::JobFailed { message: format!("{}: {}", job.label, error.as_deref().unwrap_or("failed")) },
        };
        let event = job.run.map(|_| rows::to_json(&event, "run event")).transpose()?;
        self.jobs.push(job.id.0);
        self.statuses.push(next.state.status().as_str().to_owned());
        self.failed_attempts.push(next.failed_attempts as i32);
        self.outcomes.push(outcome);
        self.errors.push(error);
        self.runs.push(job.run.map(|run| run.0));
        self.events.push(event);
        Ok(())
    }

    /// Takes the jobs off the queue and tells their runs.
    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        let tells = self.runs.iter().any(Option::is_some);
        let topics: &[Topic] = if tells { &[Topic::Updates, Topic::Runs] } else { &[Topic::Updates] };
        sqlx::query!(
            "-- jobs.finish
             WITH over AS MATERIALIZED (
                 SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::jsonb[], $5::text[],
                                      $6::bigint[], $7::text[], $8::text[], $9::uuid[], $10::jsonb[])
                     WITH ORDINALITY AS o (job_id, final_status, failed_attempts, outcome, error,
                                           lease_token, ended, attempt_error, run_id, event, position)
             ), gone AS (
                 DELETE FROM job_queue q USING over o WHERE q.job_id = o.job_id RETURNING q.job_id, q.progress
             ), finished AS (
                 UPDATE jobs j
                 SET final_status = o.final_status, finished_at = now(), updated_at = now(),
                     failed_attempts = o.failed_attempts, outcome = o.outcome, error = o.error, progress = g.progress
                 FROM over o
                 JOIN gone g ON g.job_id = o.job_id
                 WHERE j.id = o.job_id
             ), ended AS (
                 UPDATE job_attempts a SET ended_at = now(), ended = o.ended, error = o.attempt_error
                 FROM over o
                 WHERE a.lease_token = o.lease_token
             ), told AS (
                 INSERT INTO run_inbox (run_id, event)
                 SELECT run_id, event FROM over WHERE run_id IS NOT NULL ORDER BY position
             )
             SELECT pg_notify(channel, '') FROM unnest($11::text[]) AS channel",
            &self.jobs,
            &self.statuses,
            &self.failed_attempts,
            &self.outcomes as &[Option<Value>],
            &self.errors as &[Option<String>],
            &self.ended.tokens as &[Option<i64>],
            &self.ended.how,
            &self.ended.errors as &[Option<String>],
            &self.runs as &[Option<Uuid>],
            &self.events as &[Option<Value>],
            &notify::channels(topics),
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

impl Ended {
    fn add(&mut self, job: &LockedJob, event: JobEvent, error: Option<String>) {
        self.tokens.push(match job.life.state {
            JobState::Leased { token, .. } => Some(token.0),
            JobState::Queued { .. }
            | JobState::Paused
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled => None,
        });
        let how = match event {
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
        self.how.push(how.to_owned());
        self.errors.push(error);
    }
}

fn directive_name(directive: Directive) -> &'static str {
    match directive {
        Directive::Run => "run",
        Directive::Pause => "pause",
        Directive::Cancel => "cancel",
    }
}

/// JSON has no NaN: an outcome that could not be read back is refused while its worker can still be told.
fn outcome_json(id: JobId, outcome: &JobOutcome) -> Result<Value, StoreError> {
    let name = format!("outcome of job {id}");
    let json = rows::to_json(outcome, &name)?;
    rows::from_json::<JobOutcome>(json.clone(), &name)?;
    Ok(json)
}

/// What is written beside the attempt that ends.
fn error(job: &LockedJob, next: JobLife, change: &Change<'_>) -> Option<String> {
    let error = match (change.event, change.detail) {
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
