//! Writes the new states of jobs to the tables, with one statement for each kind of result.

use inheritune_domain::job::{Counts, Directive, FailureClass, JobEvent, JobLife, JobState};
use inheritune_domain::run::RunEvent;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::life::{Change, LockedJob};
use crate::StoreError;
use crate::rows;

/// The collected results of one transaction.
#[derive(Default)]
pub(super) struct Writes {
    directed: Directed,
    waiting: Waiting,
    finished: Finished,
}

/// Jobs whose holders get a new directive.
#[derive(Default)]
struct Directed {
    jobs: Vec<Uuid>,
    directives: Vec<String>,
}

/// Unfinished jobs that no worker holds.
#[derive(Default)]
struct Waiting {
    jobs: Vec<Uuid>,
    states: Vec<String>,
    not_before: Vec<Option<OffsetDateTime>>,
    counts: CountColumns,
    errors: Vec<Option<String>>,
    ended: Ended,
}

/// Jobs that are over, and the events for their runs.
#[derive(Default)]
struct Finished {
    jobs: Vec<Uuid>,
    statuses: Vec<String>,
    counts: CountColumns,
    errors: Vec<Option<String>>,
    ended: Ended,
    runs: Vec<Option<Uuid>>,
    events: Vec<Option<Value>>,
}

/// Counters of the jobs as columns.
#[derive(Default)]
struct CountColumns {
    failed: Vec<i32>,
    lost: Vec<i32>,
    crashed: Vec<i32>,
    waits: Vec<i32>,
    waiting_since: Vec<Option<OffsetDateTime>>,
}

impl CountColumns {
    fn add(&mut self, counts: Counts) {
        let column = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
        self.failed.push(column(counts.failed));
        self.lost.push(column(counts.lost));
        self.crashed.push(column(counts.crashed));
        self.waits.push(column(counts.waits));
        self.waiting_since.push(counts.waiting_since);
    }
}

/// The attempts that ended, if any.
#[derive(Default)]
struct Ended {
    tokens: Vec<Option<i64>>,
    how: Vec<String>,
    errors: Vec<Option<String>>,
}

impl Writes {
    /// Adds the state `next` of a job after `change`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a value that JSON cannot represent.
    pub(super) fn add(&mut self, job: &LockedJob, next: JobLife, change: &Change<'_>) -> Result<(), StoreError> {
        let error = error(job, next, change);
        let kept = match change.event {
            JobEvent::Fail { .. } | JobEvent::Expire { .. } | JobEvent::GiveUpWaiting { .. } => error.clone(),
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
                self.finished.add(job, next, kept)?;
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

    /// Writes all results.
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
             UPDATE job_queue q SET directive = d.directive
             FROM unnest($1::uuid[], $2::text[]) AS d (job_id, directive)
             WHERE q.job_id = d.job_id",
            &self.jobs,
            &self.directives,
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
        self.counts.add(next.counts);
        self.errors.push(error);
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- jobs.wait
             WITH waiting AS MATERIALIZED (
                 SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::int[], $5::text[],
                                      $6::bigint[], $7::text[], $8::text[], $9::int[], $10::int[], $11::int[],
                                      $12::timestamptz[])
                     AS w (job_id, state, not_before, failed_attempts, error, lease_token, ended, attempt_error,
                           lost_attempts, crashed_attempts, waits, waiting_since)
             ), back AS (
                 UPDATE job_queue q
                 SET state = w.state, not_before = w.not_before, lease_token = NULL, lease_until = NULL,
                     worker_id = NULL, directive = NULL, heartbeat_at = NULL, waiting_since = w.waiting_since
                 FROM waiting w
                 WHERE q.job_id = w.job_id
             ), ended AS (
                 UPDATE job_attempts a
                 SET ended_at = now(), ended = w.ended, error = w.attempt_error, failed_attempts = w.failed_attempts,
                     lost_attempts = w.lost_attempts, crashed_attempts = w.crashed_attempts, waits = w.waits
                 FROM waiting w
                 WHERE a.lease_token = w.lease_token
             )
             UPDATE jobs j
             SET failed_attempts = w.failed_attempts, lost_attempts = w.lost_attempts,
                 crashed_attempts = w.crashed_attempts, waits = w.waits, error = w.error, updated_at = now()
             FROM waiting w
             WHERE j.id = w.job_id",
            &self.jobs,
            &self.states,
            &self.not_before as &[Option<OffsetDateTime>],
            &self.counts.failed,
            &self.errors as &[Option<String>],
            &self.ended.tokens as &[Option<i64>],
            &self.ended.how,
            &self.ended.errors as &[Option<String>],
            &self.counts.lost,
            &self.counts.crashed,
            &self.counts.waits,
            &self.counts.waiting_since as &[Option<OffsetDateTime>],
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

impl Finished {
    fn add(&mut self, job: &LockedJob, next: JobLife, error: Option<String>) -> Result<(), StoreError> {
        let event = match next.state {
            JobState::Cancelled => RunEvent::JobCancelled,
            _ => RunEvent::JobFailed { message: format!("{}: {}", job.label, error.as_deref().unwrap_or("failed")) },
        };
        let event = job.run.map(|_| rows::to_json(&event, "run event")).transpose()?;
        self.jobs.push(job.id.0);
        self.statuses.push(next.state.status().as_str().to_owned());
        self.counts.add(next.counts);
        self.errors.push(error);
        self.runs.push(job.run.map(|run| run.0));
        self.events.push(event);
        Ok(())
    }

    /// Removes the jobs from the queue and adds events to the inboxes of their runs.
    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- jobs.finish
             WITH over AS MATERIALIZED (
                 SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[],
                                      $5::bigint[], $6::text[], $7::text[], $8::uuid[], $9::jsonb[],
                                      $10::int[], $11::int[], $12::int[])
                     WITH ORDINALITY AS o (job_id, final_status, failed_attempts, error,
                                           lease_token, ended, attempt_error, run_id, event,
                                           lost_attempts, crashed_attempts, waits, position)
             ), gone AS (
                 DELETE FROM job_queue q USING over o WHERE q.job_id = o.job_id
                 RETURNING o.job_id, o.final_status, o.failed_attempts, o.lost_attempts, o.crashed_attempts, o.waits, o.error,
                           q.progress
             ), finished AS (
                 UPDATE jobs j
                 SET final_status = g.final_status, finished_at = now(), updated_at = now(),
                     failed_attempts = g.failed_attempts, lost_attempts = g.lost_attempts,
                     crashed_attempts = g.crashed_attempts, waits = g.waits, error = g.error, progress = g.progress
                 FROM gone g
                 WHERE j.id = g.job_id
             ), ended AS (
                 UPDATE job_attempts a
                 SET ended_at = now(), ended = o.ended, error = o.attempt_error, failed_attempts = o.failed_attempts,
                     lost_attempts = o.lost_attempts, crashed_attempts = o.crashed_attempts, waits = o.waits
                 FROM over o
                 WHERE a.lease_token = o.lease_token
             )
             INSERT INTO run_inbox (run_id, event)
             SELECT run_id, event FROM over WHERE run_id IS NOT NULL ORDER BY position",
            &self.jobs,
            &self.statuses,
            &self.counts.failed,
            &self.errors as &[Option<String>],
            &self.ended.tokens as &[Option<i64>],
            &self.ended.how,
            &self.ended.errors as &[Option<String>],
            &self.runs as &[Option<Uuid>],
            &self.events as &[Option<Value>],
            &self.counts.lost,
            &self.counts.crashed,
            &self.counts.waits,
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
            JobEvent::Fail { class, .. } => match class {
                FailureClass::Retryable | FailureClass::Permanent => "failed",
                FailureClass::Unavailable => "unavailable",
                FailureClass::Crashed => "crashed",
                FailureClass::Killed => "killed",
            },
            JobEvent::Expire { .. } => "expired",
            JobEvent::Release { .. }
            | JobEvent::GiveUpWaiting { .. }
            | JobEvent::RequestRetry
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

/// Returns the error message for the attempt that ends and for the job.
fn error(job: &LockedJob, next: JobLife, change: &Change<'_>) -> Option<String> {
    let counts = next.counts;
    let error = match (change.event, change.text) {
        (JobEvent::Expire { .. }, _) => {
            let worker = job.worker.map_or_else(|| "?".to_owned(), |worker| worker.to_string());
            format!("worker {worker} stopped responding in attempt {}: its lease expired", job.attempts)
        }
        (JobEvent::GiveUpWaiting { limit }, _) => {
            let last = job.error.as_deref().unwrap_or("a dependency was unavailable");
            return Some(format!(
                "gave up after {} s of waiting and {} attempts (scheduler.wait_limit_s): {last}",
                limit.whole_seconds(),
                counts.waits
            ));
        }
        (_, Some(text)) => rows::text(text),
        (_, None) => return None,
    };
    Some(match change.event {
        JobEvent::Fail { class: FailureClass::Unavailable, .. } => error,
        _ if next.state != JobState::Failed => error,
        _ if counts.is_killer() => {
            let retry = match job.run {
                Some(run) => format!("inheritune run retry {run}"),
                None => format!("inheritune job retry {}", job.id),
            };
            format!(
                "killed its worker {} times in a row without progress, so it is not retried. Reduce its memory use \
                 (micro_batch, block_size, batch_size, layers), give workers more memory, or save more often \
                 (checkpoint_every_steps), then run `{retry}`. The last error: {error}",
                counts.deaths()
            )
        }
        _ if counts.failed >= job.life.retry.max_attempts && counts.failed > 1 => {
            format!("{error} (gave up after {} failed attempts)", counts.failed)
        }
        _ => error,
    })
}
