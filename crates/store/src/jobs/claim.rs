//! Claiming jobs with one statement, whose cost does not depend on the number of waiting jobs.

use std::time::{Duration, Instant};

use inheritune_domain::id::{JobId, LeaseToken, RunId, WorkerId};
use inheritune_domain::spec::{JobKind, JobSpec};

use super::claim_starts::Place;
use super::{Lease, LeaseKey, milliseconds};
use crate::rows;
use crate::{Store, StoreError};

impl Store {
    /// Claims up to `limit` jobs, those with the highest priority first, then the oldest. Two
    /// callers never get the same job.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn claim_jobs(
        &self,
        worker: WorkerId,
        kinds: &[JobKind],
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        self.count_dead_rows().await?;
        let claimed = self.claim(worker, kinds, limit, lease).await?;
        if !claimed.is_empty() || kinds.len() < 2 {
            return Ok(claimed);
        }
        // Other workers may have claimed the first jobs of all kinds, so try each kind separately.
        for kind in kinds {
            let claimed = self.claim(worker, &[*kind], limit, lease).await?;
            if !claimed.is_empty() {
                return Ok(claimed);
            }
        }
        Ok(Vec::new())
    }

    /// Claims jobs of `kinds` with one statement. An index returns the jobs of one kind in order,
    /// and only as many as needed. For several kinds, the statement first counts how many jobs of
    /// each kind are among the first `limit`. It passes the claimed ids as an array, because
    /// Postgres assumes that an array is short and looks its rows up one by one. It would plan a
    /// join with an unknown limit as a scan of all jobs.
    async fn claim(
        &self,
        worker: WorkerId,
        kinds: &[JobKind],
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let names: Vec<String> = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
        let starts: Vec<Place> = kinds.iter().map(|kind| self.claim_starts.begin(*kind)).collect();
        let (from_priority, from_seq): (Vec<i32>, Vec<i64>) = starts.iter().copied().unzip();
        let asked = Instant::now();
        let claimed = sqlx::query!(
            r#"-- jobs.claim
             WITH starts AS MATERIALIZED (
                 SELECT * FROM unnest($2::text[], $5::int[], $6::bigint[]) AS s (kind, urgency, seq)
             ), wanted AS MATERIALIZED (
                 SELECT kind, urgency, seq, $3::bigint AS jobs FROM starts WHERE cardinality($2::text[]) = 1
                 UNION ALL
                 SELECT first.kind, first.urgency, first.seq, count(*)
                 FROM (
                     SELECT s.kind, s.urgency, s.seq
                     FROM starts s
                     CROSS JOIN LATERAL (
                         SELECT priority, q.seq FROM job_queue q
                         WHERE state = 'queued' AND q.kind = s.kind AND (-priority, q.seq) >= (s.urgency, s.seq)
                           AND not_before <= now()
                         ORDER BY -priority, q.seq
                         LIMIT $3
                     ) c
                     WHERE cardinality($2::text[]) > 1
                     ORDER BY c.priority DESC, c.seq
                     LIMIT $3
                 ) first
                 GROUP BY 1, 2, 3
             ), claimable AS MATERIALIZED (
                 SELECT c.job_id
                 FROM wanted w
                 CROSS JOIN LATERAL (
                     SELECT job_id FROM job_queue q
                     WHERE state = 'queued' AND q.kind = w.kind AND (-priority, q.seq) >= (w.urgency, w.seq)
                       AND not_before <= now()
                     ORDER BY -priority, q.seq
                     LIMIT w.jobs
                     FOR UPDATE SKIP LOCKED
                 ) c
             ), leased AS (
                 UPDATE job_queue q
                 SET state = 'leased', not_before = NULL, directive = 'run', worker_id = $1,
                     lease_token = nextval('lease_tokens'), heartbeat_at = now(),
                     lease_until = now() + $4::bigint * interval '1 millisecond'
                 WHERE q.job_id = ANY(ARRAY(SELECT job_id FROM claimable))
                 RETURNING q.job_id, q.lease_token
             ), counted AS (
                 UPDATE jobs j
                 SET attempts = attempts + 1, worker_id = $1, started_at = coalesce(started_at, now()), updated_at = now()
                 FROM leased l
                 WHERE j.id = l.job_id
                 RETURNING j.id, j.seq, j.run_id, j.label, j.spec, j.priority, j.attempts, j.trace_parent,
                           l.lease_token
             ), kept AS (
                 INSERT INTO job_attempts (job_id, attempt, lease_token, worker_id)
                 SELECT id, attempts, lease_token, $1 FROM counted
             )
             SELECT id, seq, run_id, label, spec, priority, attempts, trace_parent, lease_token AS "lease_token!"
             FROM counted
             ORDER BY priority DESC, seq"#,
            worker.0,
            &names,
            i64::from(limit),
            milliseconds(lease),
            &from_priority,
            &from_seq,
        )
        .fetch_all(&self.pool)
        .await?;
        let took = asked.elapsed();
        let mut leases = Vec::with_capacity(claimed.len());
        let mut first_of_kind: Vec<Option<Place>> = vec![None; kinds.len()];
        for row in claimed {
            let spec: JobSpec = rows::from_json(row.spec, &format!("jobs.spec of {}", row.id))?;
            if let Some(kind) = kinds.iter().position(|kind| *kind == spec.kind()) {
                first_of_kind[kind].get_or_insert((row.priority.saturating_neg(), row.seq));
            }
            leases.push(Lease {
                key: LeaseKey { job: JobId(row.id), token: LeaseToken(row.lease_token) },
                run: row.run_id.map(RunId),
                label: row.label,
                spec,
                attempt: rows::count(row.attempts),
                trace_parent: row.trace_parent,
            });
        }
        for ((kind, from), first) in kinds.iter().zip(starts).zip(first_of_kind) {
            if let Some(first) = first {
                self.claim_starts.found(*kind, from, (first, took));
            }
        }
        Ok(leases)
    }

    /// At intervals, reads the number of dead rows in the queue from Postgres's statistics.
    async fn count_dead_rows(&self) -> Result<(), StoreError> {
        if self.claim_starts.is_count_due() {
            let dead = sqlx::query_scalar!(
                r#"-- jobs.dead_rows
                 SELECT pg_stat_get_dead_tuples('job_queue'::regclass) AS "dead!""#
            );
            self.claim_starts.counted(dead.fetch_one(&self.pool).await?);
        }
        Ok(())
    }
}
