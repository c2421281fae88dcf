//! Inserting jobs into the tables.

use inheritune_domain::id::JobId;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::NewJob;
use crate::StoreError;
use crate::rows;

/// A job with its id.
pub(crate) struct QueuedJob<'a> {
    pub(crate) id: JobId,
    pub(crate) job: &'a NewJob,
    /// The model of the run that it works on, and that model's name.
    pub(crate) model: Option<(Value, String)>,
    /// W3C `traceparent` of the trace that it belongs to.
    pub(crate) trace_parent: Option<&'a str>,
}

/// Rows of jobs as columns.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    runs: Vec<Option<Uuid>>,
    models: Vec<Option<Value>>,
    model_names: Vec<Option<String>>,
    kinds: Vec<String>,
    labels: Vec<String>,
    specs: Vec<Value>,
    priorities: Vec<i32>,
    max_attempts: Vec<i32>,
    backoff_ms: Vec<i64>,
    backoff_max_ms: Vec<i64>,
    trace_parents: Vec<Option<String>>,
}

/// Inserts jobs and their queue rows, in the order of `jobs`.
///
/// # Errors
/// [`StoreError::NotFound`] for an unknown run.
pub(crate) async fn insert_jobs(conn: &mut PgConnection, jobs: &[QueuedJob<'_>]) -> Result<(), StoreError> {
    let mut columns = Columns::default();
    for job in jobs {
        columns.add(job)?;
    }
    match columns.insert(conn).await {
        Err(sqlx::Error::Database(e)) if e.is_foreign_key_violation() => {
            let mut runs: Vec<String> = columns.runs.iter().flatten().map(Uuid::to_string).collect();
            runs.dedup();
            Err(rows::not_found("run", runs.join(" or ")))
        }
        inserted => Ok(inserted?),
    }
}

impl Columns {
    fn add(&mut self, QueuedJob { id, job, model, trace_parent }: &QueuedJob<'_>) -> Result<(), StoreError> {
        let (model, model_name) = model.clone().unzip();
        self.ids.push(id.0);
        self.runs.push(job.run.map(|run| run.0));
        self.models.push(model);
        self.model_names.push(model_name);
        self.kinds.push(job.spec.kind().as_str().to_owned());
        self.labels.push(rows::text(&job.label));
        self.specs.push(rows::to_json(&job.spec, "job spec")?);
        self.priorities.push(job.priority);
        self.max_attempts.push(i32::try_from(job.retry.max_attempts.max(1)).unwrap_or(i32::MAX));
        self.backoff_ms.push(rows::signed(job.retry.backoff_ms));
        self.backoff_max_ms.push(rows::signed(job.retry.backoff_max_ms));
        self.trace_parents.push(trace_parent.map(str::to_owned));
        Ok(())
    }

    async fn insert(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let inserted = sqlx::query!(
            "-- jobs.insert
             WITH job AS (
                 INSERT INTO jobs (id, run_id, model, model_name, kind, label, spec, priority, max_attempts, backoff_ms,
                                   backoff_max_ms, trace_parent)
                 SELECT id, run_id, model, model_name, kind, label, spec, priority, max_attempts, backoff_ms,
                        backoff_max_ms, trace_parent
                 FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[], $4::text[], $5::text[], $6::text[], $7::jsonb[],
                             $8::int[], $9::int[], $10::bigint[], $11::bigint[], $12::text[])
                     WITH ORDINALITY AS n (id, run_id, model, model_name, kind, label, spec, priority, max_attempts,
                                           backoff_ms, backoff_max_ms, trace_parent, position)
                 ORDER BY position
                 RETURNING id, kind, priority, seq
             )
             INSERT INTO job_queue (job_id, kind, priority, seq, state, not_before)
             SELECT id, kind, priority, seq, 'queued', now() FROM job",
            &self.ids,
            &self.runs as &[Option<Uuid>],
            &self.models as &[Option<Value>],
            &self.model_names as &[Option<String>],
            &self.kinds,
            &self.labels,
            &self.specs,
            &self.priorities,
            &self.max_attempts,
            &self.backoff_ms,
            &self.backoff_max_ms,
            &self.trace_parents as &[Option<String>],
        );
        inserted.execute(conn).await.map(|_| ())
    }
}
