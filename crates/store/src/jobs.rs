//! The job tables: submit, claim, renew and end jobs, and requests of owners.
//!
//! ```text
//!  jobs          one permanent row per job        spec, attempts, outcome, error
//!  job_queue     one row per unfinished job       queued | leased | paused
//!  job_attempts  one row per claim
//! ```
//! Claims, heartbeats and completions are frequent, so each is one SQL statement. Every other
//! operation is one transaction ([`life`]): it locks the rows of the jobs, asks
//! [`inheritune_domain::job::JobLife`] for their next states, and writes these. Only the database's
//! clock counts. A single job is a batch of one.

mod claim;
mod claim_starts;
mod complete;
mod life;
mod submit;
mod writes;

use std::time::Duration;

use inheritune_domain::id::{JobId, LeaseToken, RunId, WorkerId};
use inheritune_domain::job::{Counts, Directive, FailureClass, JobEvent, JobRecord, JobStatus, Progress, RetryPolicy};
use inheritune_domain::spec::{JobKind, JobSpec};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::notify::Topic;
use crate::rows::{self, Request};
use crate::{Store, StoreError};

use life::Change;

pub(crate) use claim_starts::ClaimStarts;
pub(crate) use life::request_of_run;
pub(crate) use submit::{QueuedJob, insert_jobs};

/// Most expired leases that one transaction of the reaper handles.
const EXPIRE_BATCH: i64 = 32;

/// A job to submit.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct NewJob {
    /// Human-readable purpose.
    pub label: String,
    /// What to do.
    pub spec: JobSpec,
    /// Jobs with a higher priority are claimed first.
    pub priority: i32,
    /// When and how often failed attempts are retried.
    pub retry: RetryPolicy,
    /// The run it belongs to.
    pub run: Option<RunId>,
}

/// The job and the fence of a claim, which every write of a worker includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct LeaseKey {
    /// The job.
    pub job: JobId,
    /// The fence.
    pub token: LeaseToken,
}

/// A job that a worker has claimed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Lease {
    /// Included in every write.
    pub key: LeaseKey,
    /// The run it belongs to.
    pub run: Option<RunId>,
    /// Human-readable purpose.
    pub label: String,
    /// What to do.
    pub spec: JobSpec,
    /// Number of claims so far, including this one.
    pub attempt: u32,
    /// W3C `traceparent` of the trace that it belongs to.
    pub trace_parent: Option<String>,
}

/// A request for one page of a list, newest items first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Most items.
    pub size: u32,
    /// [`Paged::next`] of the previous page; `None` for the first page.
    pub token: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Paged<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// For each item, the token of the page that starts after it.
    pub after: Vec<String>,
    /// Token of the next page, if there is one.
    pub next: Option<String>,
}

/// A filter for jobs. Every field that is set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only jobs of this run.
    pub run: Option<RunId>,
    /// Only jobs of this kind.
    pub kind: Option<JobKind>,
    /// Only jobs with this status.
    pub status: Option<JobStatus>,
}

/// The number of unfinished jobs of one kind and status.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueDepth {
    /// The kind.
    pub kind: JobKind,
    /// The status.
    pub status: JobStatus,
    /// Number of jobs.
    pub jobs: u64,
    /// Seconds since the oldest of them became claimable, or since its submission if it is not
    /// claimable.
    pub oldest_seconds: f64,
}

impl Store {
    /// Submits a job. If `request_id` was already used for the same job, returns the existing job.
    ///
    /// # Errors
    /// [`StoreError::RequestIdReused`] if the id was used for a different job;
    /// [`StoreError::NotFound`] for an unknown run.
    pub async fn submit_job(&self, job: &NewJob, request_id: Option<Uuid>) -> Result<JobRecord, StoreError> {
        let request = Request::new(request_id, "job", job)?;
        let id = JobId(Uuid::now_v7());
        let mut tx = self.pool.begin().await?;
        if let Some(before) = request.made_before(&mut tx, id.0).await? {
            drop(tx);
            return self.job(JobId(before)).await;
        }
        insert_jobs(&mut tx, &[QueuedJob { id, job, model: None, trace_parent: self.trace_parent() }]).await?;
        tx.commit().await?;
        self.announcer.announce(&[Topic::Jobs, Topic::Updates]);
        self.job(id).await
    }

    /// Submits all jobs or none, with one statement, and returns their ids.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown run.
    pub async fn submit_jobs(&self, jobs: &[NewJob]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<JobId> = jobs.iter().map(|_| JobId(Uuid::now_v7())).collect();
        let trace_parent = self.trace_parent();
        let queued: Vec<QueuedJob<'_>> =
            ids.iter().zip(jobs).map(|(id, job)| QueuedJob { id: *id, job, model: None, trace_parent }).collect();
        let mut tx = self.pool.begin().await?;
        insert_jobs(&mut tx, &queued).await?;
        tx.commit().await?;
        self.announcer.announce(&[Topic::Jobs, Topic::Updates]);
        Ok(ids)
    }

    /// Returns one job.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn job(&self, id: JobId) -> Result<JobRecord, StoreError> {
        let mut found = self.jobs_by_id(&[id.0]).await?;
        found.pop().map(|(_, job)| job).ok_or_else(|| rows::not_found("job", id))
    }

    /// Returns those of the jobs that exist, newest first.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn jobs(&self, ids: &[JobId]) -> Result<Vec<JobRecord>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        Ok(self.jobs_by_id(&ids).await?.into_iter().map(|(_, job)| job).collect())
    }

    /// Lists jobs, newest first.
    ///
    /// # Errors
    /// [`StoreError::Location`] for an invalid page token.
    pub async fn list_jobs(&self, filter: &JobFilter, page: &Page) -> Result<Paged<JobRecord>, StoreError> {
        let mut tx = self.begin_list().await?;
        let ids = sqlx::query_scalar!(
            "-- jobs.list
             SELECT j.id
             FROM jobs j
             LEFT JOIN job_queue q ON q.job_id = j.id
             WHERE ($1::uuid IS NULL OR j.run_id = $1)
               AND ($2::text IS NULL OR j.kind = $2)
               AND ($3::text IS NULL OR job_status(j.final_status, q.state, q.directive) = $3)
               AND ($4::bigint IS NULL OR j.seq < $4)
             ORDER BY j.seq DESC
             LIMIT $5",
            filter.run.map(|id| id.0),
            filter.kind.map(JobKind::as_str),
            filter.status.map(JobStatus::as_str),
            rows::after_seq(page)?,
            rows::row_limit(page),
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(rows::paged(page, self.jobs_by_id(&ids).await?))
    }

    /// Returns jobs with their sequence numbers, newest first.
    async fn jobs_by_id(&self, ids: &[Uuid]) -> Result<Vec<(i64, JobRecord)>, StoreError> {
        let found = sqlx::query_as!(
            JobRow,
            r#"-- jobs.by_id
             SELECT j.id, j.seq, j.run_id, j.label, j.spec,
                    job_status(j.final_status, q.state, q.directive) AS "status!",
                    j.priority, j.attempts, j.failed_attempts, j.lost_attempts, j.crashed_attempts, j.waits, q.waiting_since,
                    coalesce(q.progress, j.progress) AS progress, j.outcome, j.error,
                    j.worker_id, j.created_at, j.started_at, j.finished_at,
                    greatest(j.updated_at, q.heartbeat_at) AS "updated_at!"
             FROM jobs j
             LEFT JOIN job_queue q ON q.job_id = j.id
             WHERE j.id = ANY($1)
             ORDER BY j.seq DESC"#,
            ids,
        )
        .fetch_all(&self.pool)
        .await?;
        found.into_iter().map(|row| Ok((row.seq, row.record()?))).collect()
    }

    /// Renews the lease, records progress, and returns the owner's directive. Does not wake up
    /// waiters, because progress is polled.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn heartbeat(
        &self,
        lease: LeaseKey,
        progress: Option<&Progress>,
        extend: Duration,
    ) -> Result<Directive, StoreError> {
        let progress = progress.map(|progress| rows::to_json(&finite(progress), "progress")).transpose()?;
        let directive = sqlx::query_scalar!(
            r#"-- jobs.heartbeat
             UPDATE job_queue
             SET lease_until = now() + $3::bigint * interval '1 millisecond', heartbeat_at = now(),
                 progress = coalesce($4, progress)
             WHERE job_id = $1 AND lease_token = $2 AND lease_until > now()
             RETURNING directive AS "directive!""#,
            lease.job.0,
            lease.token.0,
            milliseconds(extend),
            progress,
        )
        .fetch_optional(&self.pool)
        .await?;
        match directive {
            Some(directive) => rows::known(life::directive(&directive), "job_queue.directive", &directive),
            None => Err(StoreError::LeaseLost(lease.job)),
        }
    }

    /// Records a failed attempt. The job waits for its next attempt or fails permanently.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn fail_job(&self, lease: LeaseKey, class: FailureClass, error: &str) -> Result<(), StoreError> {
        // `life` determines whether the attempt made progress.
        let event = JobEvent::Fail { token: lease.token, class, advanced: false };
        self.advance_job(Change { job: lease.job, event, text: Some(error) }).await
    }

    /// Returns an unfinished job to the queue without counting a failure. As its owner requested,
    /// the job is then queued, paused or cancelled.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn release_job(&self, lease: LeaseKey, reason: &str) -> Result<(), StoreError> {
        let event = JobEvent::Release { token: lease.token, advanced: false };
        self.advance_job(Change { job: lease.job, event, text: Some(reason) }).await
    }

    async fn advance_job(&self, change: Change<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let advanced = life::advance(&mut tx, &[change]).await;
        match advanced.and_then(|answers| answers.into_iter().collect()) {
            Ok(()) => {
                tx.commit().await?;
                self.announcer.announce(&Topic::ALL);
                Ok(())
            }
            Err(refused) => {
                // Roll back explicitly: a dropped transaction keeps its locks a little longer, and
                // a claim would skip the job.
                match tx.rollback().await {
                    Ok(()) => Err(refused),
                    Err(e) => Err(e.into()),
                }
            }
        }
    }

    /// Pauses ([`Directive::Pause`]), resumes ([`Directive::Run`]) or cancels a job. An unclaimed
    /// job changes its state immediately, a claimed job when its worker has released it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] if the job is over or being cancelled, or
    /// if it is resumed while its run is paused.
    pub async fn request_job(&self, id: JobId, directive: Directive) -> Result<JobRecord, StoreError> {
        if directive == Directive::Run
            && let Some(run) = self.job(id).await?.run
            && self.run(run).await?.run.status() == JobStatus::Paused
        {
            return Err(StoreError::WrongState(format!(
                "job {id} belongs to run {run}, which is paused: let that go on, with `inheritune run resume {run}`"
            )));
        }
        self.advance_job(Change { job: id, event: life::request(directive), text: None }).await?;
        self.job(id).await
    }

    /// Takes back the jobs whose lease has expired. Returns how many. Safe to call from several
    /// processes.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn expire_leases(&self) -> Result<u64, StoreError> {
        let mut expired = 0;
        loop {
            let mut tx = self.pool.begin().await?;
            let overdue = sqlx::query_scalar!(
                "-- jobs.overdue
                 SELECT job_id FROM job_queue
                 WHERE state = 'leased' AND lease_token IS NOT NULL AND lease_until <= now()
                 ORDER BY lease_until
                 LIMIT $1
                 FOR UPDATE SKIP LOCKED",
                EXPIRE_BATCH,
            )
            .fetch_all(&mut *tx)
            .await?;
            let event = JobEvent::Expire { advanced: false };
            let expire = |id: &Uuid| Change { job: JobId(*id), event, text: None };
            let expired_now: Vec<Change<'_>> = overdue.iter().map(expire).collect();
            life::advance(&mut tx, &expired_now).await?.into_iter().collect::<Result<(), _>>()?;
            tx.commit().await?;
            if !overdue.is_empty() {
                self.announcer.announce(&Topic::ALL);
            }
            expired += overdue.len() as u64;
            if (overdue.len() as i64) < EXPIRE_BATCH {
                return Ok(expired);
            }
        }
    }

    /// Returns a failed or cancelled job to the queue and resets its counters. The job resumes from
    /// what it has saved.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] if the job has neither failed nor been
    /// cancelled, or if it belongs to a run, which must be retried instead.
    pub async fn retry_job(&self, id: JobId) -> Result<JobRecord, StoreError> {
        if let Some(run) = self.job(id).await?.run {
            return Err(StoreError::WrongState(format!(
                "job {id} belongs to run {run}: retry the run with `inheritune run retry {run}`"
            )));
        }
        let mut tx = self.pool.begin().await?;
        let retried = life::retry(&mut tx, id).await;
        match retried {
            Ok(()) => {
                tx.commit().await?;
                self.announcer.announce(&Topic::ALL);
                self.job(id).await
            }
            Err(refused) => {
                tx.rollback().await?;
                Err(refused)
            }
        }
    }

    /// Fails the jobs that have waited for an unavailable dependency for longer than `limit`.
    /// Returns how many. Safe to call from several processes.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn give_up_waiting(&self, limit: Duration) -> Result<u64, StoreError> {
        let mut tx = self.pool.begin().await?;
        let overdue = sqlx::query_scalar!(
            "-- jobs.waited_too_long
             SELECT job_id FROM job_queue
             WHERE waiting_since <= now() - $1::bigint * interval '1 millisecond' AND state = 'queued'
             ORDER BY waiting_since
             LIMIT $2
             FOR UPDATE SKIP LOCKED",
            milliseconds(limit),
            EXPIRE_BATCH,
        )
        .fetch_all(&mut *tx)
        .await?;
        if overdue.is_empty() {
            tx.rollback().await?;
            return Ok(0);
        }
        let event = JobEvent::GiveUpWaiting { limit: limit.try_into().unwrap_or(time::Duration::MAX) };
        let changes: Vec<Change<'_>> = overdue.iter().map(|id| Change { job: JobId(*id), event, text: None }).collect();
        life::advance(&mut tx, &changes).await?.into_iter().collect::<Result<(), _>>()?;
        tx.commit().await?;
        self.announcer.announce(&Topic::ALL);
        Ok(overdue.len() as u64)
    }

    /// Returns the time until the first current lease expires, by the database's clock: zero if one
    /// has already expired, `None` if no job is leased.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn next_lease_end(&self) -> Result<Option<Duration>, StoreError> {
        let wait_ms = sqlx::query_scalar!(
            r#"-- jobs.next_lease_end
             SELECT ceil(extract(epoch FROM min(lease_until) - now()) * 1000)::bigint AS "wait_ms?"
             FROM job_queue WHERE lease_token IS NOT NULL"#,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(wait_ms.map(|ms| Duration::from_millis(rows::unsigned(ms))))
    }

    /// Counts the unfinished jobs by kind and status.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn queue_depth(&self) -> Result<Vec<QueueDepth>, StoreError> {
        let mut tx = self.begin_list().await?;
        let rows = sqlx::query!(
            r#"-- jobs.queue_depth
             SELECT q.kind, job_status(NULL, q.state, q.directive) AS "status!", count(*) AS "jobs!",
                    greatest(0, extract(epoch FROM now() - min(coalesce(q.not_before, j.created_at))))::float8
                        AS "oldest_seconds!"
             FROM job_queue q JOIN jobs j ON j.id = q.job_id
             GROUP BY 1, 2 ORDER BY 1, 2"#,
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        rows.into_iter()
            .map(|row| {
                Ok(QueueDepth {
                    kind: rows::known(JobKind::parse(&row.kind), "job_queue.kind", &row.kind)?,
                    status: rows::known(JobStatus::parse(&row.status), "job_status", &row.status)?,
                    jobs: rows::unsigned(row.jobs),
                    oldest_seconds: row.oldest_seconds,
                })
            })
            .collect()
    }
}

/// Checks that a lease holds, and takes a share lock that blocks the reaper until the end of the
/// transaction.
///
/// # Errors
/// [`StoreError::LeaseLost`].
pub(crate) async fn hold(conn: &mut PgConnection, lease: LeaseKey) -> Result<(), StoreError> {
    let held = sqlx::query_scalar!(
        r#"-- jobs.hold
         SELECT true AS "held!" FROM job_queue
         WHERE job_id = $1 AND lease_token = $2 AND lease_until > now() FOR SHARE"#,
        lease.job.0,
        lease.token.0,
    )
    .fetch_optional(conn)
    .await?;
    held.map(|_| ()).ok_or(StoreError::LeaseLost(lease.job))
}

struct JobRow {
    id: Uuid,
    seq: i64,
    run_id: Option<Uuid>,
    label: String,
    spec: serde_json::Value,
    status: String,
    priority: i32,
    attempts: i32,
    failed_attempts: i32,
    lost_attempts: i32,
    crashed_attempts: i32,
    waits: i32,
    waiting_since: Option<time::OffsetDateTime>,
    progress: Option<serde_json::Value>,
    outcome: Option<serde_json::Value>,
    error: Option<String>,
    worker_id: Option<Uuid>,
    created_at: time::OffsetDateTime,
    started_at: Option<time::OffsetDateTime>,
    finished_at: Option<time::OffsetDateTime>,
    updated_at: time::OffsetDateTime,
}

impl JobRow {
    fn record(self) -> Result<JobRecord, StoreError> {
        let of = |column: &str| format!("jobs.{column} of {}", self.id);
        Ok(JobRecord {
            id: JobId(self.id),
            run: self.run_id.map(RunId),
            label: self.label,
            spec: rows::from_json(self.spec, &of("spec"))?,
            status: rows::known(JobStatus::parse(&self.status), "job_status", &self.status)?,
            priority: self.priority,
            attempts: rows::count(self.attempts),
            counts: Counts {
                failed: rows::count(self.failed_attempts),
                lost: rows::count(self.lost_attempts),
                crashed: rows::count(self.crashed_attempts),
                waits: rows::count(self.waits),
                waiting_since: self.waiting_since,
            },
            progress: self.progress.map(|p| rows::from_json(p, &of("progress"))).transpose()?.unwrap_or_default(),
            outcome: self.outcome.map(|o| rows::from_json(o, &of("outcome"))).transpose()?,
            error: self.error,
            worker: self.worker_id.map(WorkerId),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            updated_at: self.updated_at,
        })
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Replaces values that JSON cannot represent: a non-finite rate becomes zero, and a non-finite
/// estimate becomes `None`.
fn finite(progress: &Progress) -> Progress {
    let per_second = if progress.per_second.is_finite() { progress.per_second } else { 0.0 };
    let estimated_remaining_seconds = progress.estimated_remaining_seconds.filter(|s| s.is_finite());
    let message = rows::text(&progress.message);
    Progress { per_second, estimated_remaining_seconds, message, ..progress.clone() }
}
