//! Completing jobs. This is the most frequent way in which a job ends, so one statement completes
//! any number of jobs. The statement is equivalent to `JobLife::advance` for a completion: it
//! succeeds while the caller holds the lease. Tests compare the two over many random histories.

use std::collections::HashSet;

use inheritune_domain::run::RunEvent;
use inheritune_domain::spec::JobOutcome;
use serde_json::Value;
use uuid::Uuid;

use super::LeaseKey;
use crate::notify::Topic;
use crate::rows;
use crate::{Store, StoreError};

impl Store {
    /// Completes a job. If it belongs to a run, the same transaction adds an event to the run's
    /// inbox.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`]; [`StoreError::Corrupt`] for an outcome that cannot be stored as
    /// JSON.
    pub async fn complete_job(&self, lease: LeaseKey, outcome: &JobOutcome) -> Result<(), StoreError> {
        self.complete_jobs(&[(lease, outcome)]).await?.into_iter().collect()
    }

    /// Completes jobs like [`Self::complete_job`], but in one transaction. Each job succeeds or
    /// fails separately. Returns their results in order.
    ///
    /// # Errors
    /// Errors of the database: none of the jobs was completed.
    pub async fn complete_jobs(
        &self,
        done: &[(LeaseKey, &JobOutcome)],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let (mut jobs, mut tokens) = (Vec::new(), Vec::new());
        let (mut outcomes, mut events): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
        let mut answers = Vec::with_capacity(done.len());
        // The index into `done` for each row.
        let mut places = Vec::new();
        for (place, (lease, outcome)) in done.iter().enumerate() {
            match json(*lease, outcome) {
                Ok((outcome, event)) => {
                    jobs.push(lease.job.0);
                    tokens.push(lease.token.0);
                    outcomes.push(outcome);
                    events.push(event);
                    places.push(place);
                    answers.push(Err(StoreError::LeaseLost(lease.job)));
                }
                Err(unreadable) => answers.push(Err(unreadable)),
            }
        }
        for row in self.complete(&jobs, &tokens, &outcomes, &events).await? {
            answers[places[row]] = Ok(());
        }
        self.announcer.announce(&[Topic::Runs, Topic::Updates]);
        Ok(answers)
    }

    /// Writes the completions and returns the indexes of the rows whose lease held.
    async fn complete(
        &self,
        jobs: &[Uuid],
        tokens: &[i64],
        outcomes: &[Value],
        events: &[Value],
    ) -> Result<HashSet<usize>, StoreError> {
        let ended = sqlx::query_scalar!(
            r#"-- jobs.complete
             WITH done AS MATERIALIZED (
                 SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[], $4::jsonb[])
                     WITH ORDINALITY AS d (job_id, lease_token, outcome, event, position)
             ), held AS MATERIALIZED (
                 SELECT d.job_id, d.lease_token, d.outcome, d.event, d.position, q.progress
                 FROM done d
                 JOIN job_queue q ON q.job_id = d.job_id
                 WHERE q.lease_token = d.lease_token AND q.lease_until > now()
                 ORDER BY q.seq, d.position
                 FOR UPDATE OF q
             ), gone AS (
                 DELETE FROM job_queue q USING held h WHERE q.job_id = h.job_id
             ), ended AS (
                 UPDATE job_attempts a SET ended_at = now(), ended = 'succeeded'
                 FROM held h
                 WHERE a.lease_token = h.lease_token
             ), finished AS (
                 UPDATE jobs j
                 SET final_status = 'SUCCEEDED', finished_at = now(), updated_at = now(), outcome = h.outcome, error = NULL,
                     progress = h.progress
                 FROM held h
                 WHERE j.id = h.job_id
                 RETURNING j.run_id, h.event, h.position
             ), told AS (
                 INSERT INTO run_inbox (run_id, event)
                 SELECT run_id, event FROM finished WHERE run_id IS NOT NULL ORDER BY position
             )
             SELECT position AS "position!" FROM finished"#,
            jobs,
            tokens,
            outcomes,
            events,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(ended.into_iter().map(|position| rows::unsigned(position) as usize - 1).collect())
    }
}

/// Returns the outcome and the event for the job's run as JSON. JSON has no NaN, so an outcome that
/// cannot be read back is rejected here, while the worker can still handle the error.
fn json(lease: LeaseKey, outcome: &JobOutcome) -> Result<(Value, Value), StoreError> {
    let name = format!("outcome of job {}", lease.job);
    let written = rows::to_json(outcome, &name)?;
    let outcome = rows::from_json(written.clone(), &name)?;
    Ok((written, rows::to_json(&RunEvent::JobSucceeded { outcome }, "run event")?))
}
