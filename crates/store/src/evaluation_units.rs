//! Evaluation units: the parts of evaluate jobs that several workers share.
//!
//! Each worker claims units under its own lease, which is that of the evaluate job or of a job that
//! helps it. A claimed unit becomes free again when that lease expires.

use std::ops::Range;

use inheritune_domain::id::{JobId, Sha256Digest};
use uuid::Uuid;

use crate::jobs::{self, LeaseKey};
use crate::rows;
use crate::{Store, StoreError};

/// A unit before it is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUnit {
    /// The task's name.
    pub task: String,
    /// Indexes of its sequences or documents.
    pub items: Range<u64>,
    /// Digest of the questions.
    pub digest: Sha256Digest,
}

/// A unit that was measured or has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedUnit {
    /// Its index in the job.
    pub unit: u32,
    /// The answers or the error.
    pub found: Result<Vec<u8>, String>,
}

impl Store {
    /// Creates the units of the leased job. Units of an earlier attempt are kept with their answers
    /// if they are unchanged.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn register_units(&self, lease: LeaseKey, units: &[NewUnit]) -> Result<(), StoreError> {
        let numbers: Vec<i32> = (0..).take(units.len()).collect();
        let tasks: Vec<String> = units.iter().map(|unit| unit.task.clone()).collect();
        let first: Vec<i64> = units.iter().map(|unit| rows::signed(unit.items.start)).collect();
        let items: Vec<i64> = units.iter().map(|unit| rows::signed(unit.items.end - unit.items.start)).collect();
        let digests: Vec<Vec<u8>> = units.iter().map(|unit| unit.digest.0.to_vec()).collect();
        let mut tx = self.pool.begin().await?;
        jobs::hold(&mut tx, lease).await?;
        sqlx::query!(
            "-- evaluation_units.register
             WITH asked AS (
                 SELECT unit, task, first_item, items, digest
                 FROM unnest($2::integer[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[])
                     AS u (unit, task, first_item, items, digest)
             ), gone AS (
                 DELETE FROM evaluation_units e
                 WHERE e.job_id = $1 AND NOT EXISTS (SELECT FROM asked a WHERE a.unit = e.unit)
             )
             INSERT INTO evaluation_units (job_id, unit, task, first_item, items, digest)
             SELECT $1, unit, task, first_item, items, digest FROM asked
             ON CONFLICT (job_id, unit) DO UPDATE
             SET task = excluded.task, first_item = excluded.first_item, items = excluded.items, digest = excluded.digest,
                 lease_token = NULL, worker_id = NULL, claimed_at = NULL, answers = NULL, error = NULL, finished_at = NULL
             WHERE (evaluation_units.task, evaluation_units.first_item, evaluation_units.items, evaluation_units.digest)
                   IS DISTINCT FROM (excluded.task, excluded.first_item, excluded.items, excluded.digest)",
            lease.job.0,
            &numbers,
            &tasks,
            &first,
            &items,
            &digests,
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Claims the first free unit of the job `of` for the holder of `lease`. Returns its index and
    /// digest, or `None` if no unit is free, or if the job is over or must stop.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn claim_unit(&self, lease: LeaseKey, of: JobId) -> Result<Option<(u32, Sha256Digest)>, StoreError> {
        let claimed = sqlx::query!(
            r#"-- evaluation_units.claim
             WITH holder AS (
                 SELECT lease_token, worker_id FROM job_queue
                 WHERE job_id = $1 AND lease_token = $2 AND lease_until > now()
             ), free AS (
                 SELECT u.job_id, u.unit FROM evaluation_units u
                 JOIN job_queue p ON p.job_id = u.job_id
                 WHERE u.job_id = $3 AND u.finished_at IS NULL AND p.state <> 'paused'
                   AND coalesce(p.directive, 'run') = 'run'
                   AND NOT EXISTS (SELECT FROM job_queue q WHERE q.lease_token = u.lease_token AND q.lease_until > now())
                 ORDER BY u.unit
                 LIMIT 1
                 FOR UPDATE OF u SKIP LOCKED
             ), taken AS (
                 UPDATE evaluation_units u
                 SET lease_token = h.lease_token, worker_id = h.worker_id, claimed_at = now()
                 FROM free f, holder h
                 WHERE (u.job_id, u.unit) = (f.job_id, f.unit)
                 RETURNING u.unit, u.digest
             )
             SELECT t.unit AS "unit?", t.digest AS "digest?" FROM holder LEFT JOIN taken t ON true"#,
            lease.job.0,
            lease.token.0,
            of.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(claimed) = claimed else { return Err(StoreError::LeaseLost(lease.job)) };
        let (Some(unit), Some(digest)) = (claimed.unit, claimed.digest) else { return Ok(None) };
        let digest =
            <[u8; 32]>::try_from(digest).map_err(|_| rows::corrupt("evaluation_units.digest", "not 32 bytes"))?;
        Ok(Some((rows::count(unit), Sha256Digest(digest))))
    }

    /// Stores the answers or the error of a unit that the holder of `lease` claimed.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if another worker holds the lease or the unit by now.
    pub async fn finish_unit(
        &self,
        lease: LeaseKey,
        of: JobId,
        unit: u32,
        found: Result<&[u8], &str>,
    ) -> Result<(), StoreError> {
        let finished = sqlx::query!(
            "-- evaluation_units.finish
             UPDATE evaluation_units u
             SET answers = $5, error = $6, finished_at = now()
             FROM job_queue q
             WHERE q.job_id = $1 AND q.lease_token = $2 AND q.lease_until > now()
               AND u.job_id = $3 AND u.unit = $4 AND u.lease_token = $2 AND u.finished_at IS NULL",
            lease.job.0,
            lease.token.0,
            of.0,
            i32::try_from(unit).unwrap_or(i32::MAX),
            found.ok(),
            found.err().map(rows::text),
        )
        .execute(&self.pool)
        .await?;
        if finished.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost(lease.job)) }
    }

    /// Returns the finished units of a job in order, except those in `known`.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn finished_units(&self, of: JobId, known: &[u32]) -> Result<Vec<FinishedUnit>, StoreError> {
        let known: Vec<i32> = known.iter().filter_map(|unit| i32::try_from(*unit).ok()).collect();
        let finished = sqlx::query!(
            "-- evaluation_units.finished
             SELECT unit, answers, error FROM evaluation_units
             WHERE job_id = $1 AND finished_at IS NOT NULL AND unit <> ALL ($2)
             ORDER BY unit",
            of.0,
            &known,
        )
        .fetch_all(&self.pool)
        .await?;
        let unit = |unit, answers: Option<Vec<u8>>, error: Option<String>| FinishedUnit {
            unit: rows::count(unit),
            found: answers.ok_or_else(|| error.unwrap_or_default()),
        };
        Ok(finished.into_iter().map(|row| unit(row.unit, row.answers, row.error)).collect())
    }

    /// Returns whether a job waits for its first worker.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn is_unclaimed(&self, id: JobId) -> Result<bool, StoreError> {
        let unclaimed = sqlx::query_scalar!(
            r#"-- jobs.is_unclaimed
             SELECT EXISTS (
                 SELECT FROM jobs j JOIN job_queue q ON q.job_id = j.id
                 WHERE j.id = $1 AND j.attempts = 0 AND q.state = 'queued'
             ) AS "unclaimed!""#,
            id.0,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(unclaimed)
    }

    /// Deletes a job that no worker has ever claimed, as if it had not been submitted. Returns
    /// whether there was such a job.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn withdraw_job(&self, id: JobId) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        // A claim locks the same row, or skips it.
        let queued: Option<Uuid> = sqlx::query_scalar!(
            "-- jobs.withdraw
             DELETE FROM job_queue q USING jobs j
             WHERE q.job_id = $1 AND j.id = q.job_id AND q.state = 'queued' AND j.attempts = 0
             RETURNING q.job_id",
            id.0,
        )
        .fetch_optional(&mut *tx)
        .await?;
        if queued.is_some() {
            sqlx::query!(
                "-- jobs.forget
             DELETE FROM jobs WHERE id = $1",
                id.0
            )
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(queued.is_some())
    }
}
