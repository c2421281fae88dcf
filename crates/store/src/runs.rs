//! The run tables: create and list runs, post events to them, and the run driver's transaction.
//!
//! Every event of a run, such as a request of its owner or the end of a job, goes to `run_inbox`.
//! [`Store::drive_one_run`] applies the events with [`Run::advance`] and writes the result,
//! including new jobs, in the same transaction. A driver that dies halfway has changed nothing.

use inheritune_domain::id::{JobId, RunId};
use inheritune_domain::job::{JobStatus, RetryPolicy};
use inheritune_domain::run::note::NOTE_VERSION;
use inheritune_domain::run::{Note, Run, RunEvent, RunState, Submission};
use inheritune_domain::spec::{JobKind, Recipe, RunSpec};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::jobs::{self, NewJob, Page, Paged, QueuedJob};
use crate::notify::Topic;
use crate::rows::{self, Request};
use crate::{Store, StoreError, run_models};

/// Most events of one run that one transaction applies.
const INBOX_BATCH: i64 = 64;
/// Most notes that one call returns.
const MAX_NOTES: i64 = 10_000;

/// A stored run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its id.
    pub id: RunId,
    /// Recipe, state and models.
    pub run: Run,
    /// Increases with every change.
    pub version: i64,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// When it ended; `None` while it is unfinished.
    pub finished_at: Option<OffsetDateTime>,
}

/// One decision, as human-readable text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunNote {
    /// Increases with every note.
    pub seq: i64,
    /// When it was made.
    pub at: OffsetDateTime,
    /// The decision.
    pub text: String,
}

impl Store {
    /// Creates a run, which the run driver then starts. If `request_id` was already used for the
    /// same recipe, returns the existing run.
    ///
    /// # Errors
    /// [`StoreError::RequestIdReused`] if the id was used for a different recipe.
    pub async fn create_run(&self, spec: &RunSpec, request_id: Option<Uuid>) -> Result<RunRecord, StoreError> {
        let request = Request::new(request_id, "run", spec)?;
        let id = RunId(Uuid::now_v7());
        let run = Run::new(spec.clone());
        let mut tx = self.pool.begin().await?;
        if let Some(before) = request.made_before(&mut tx, id.0).await? {
            drop(tx);
            return self.run(RunId(before)).await;
        }
        sqlx::query!(
            "-- runs.insert
             INSERT INTO runs (id, name, recipe, priority, spec, state, state_text, status, trace_parent)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            id.0,
            rows::text(&spec.name),
            match spec.recipe {
                Recipe::FullData => "full-data",
                Recipe::LowData => "low-data",
            },
            spec.priority,
            rows::to_json(spec, "run spec")?,
            rows::to_json(&run, "run")?,
            run.describe_state(),
            run.status().as_str(),
            self.trace_parent(),
        )
        .execute(&mut *tx)
        .await?;
        insert_run_event(&mut tx, id, &RunEvent::Created).await?;
        tx.commit().await?;
        self.announcer.announce(&[Topic::Runs, Topic::Updates]);
        self.run(id).await
    }

    /// Returns one run.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn run(&self, id: RunId) -> Result<RunRecord, StoreError> {
        let mut found = self.runs_by_id(&[id.0]).await?;
        found.pop().map(|(_, run)| run).ok_or_else(|| rows::not_found("run", id))
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// [`StoreError::Location`] for an invalid page token.
    pub async fn list_runs(&self, status: Option<JobStatus>, page: &Page) -> Result<Paged<RunRecord>, StoreError> {
        let mut tx = self.begin_list().await?;
        let ids = sqlx::query_scalar!(
            "-- runs.list
             SELECT id FROM runs
             WHERE ($1::text IS NULL OR status = $1) AND ($2::bigint IS NULL OR seq < $2)
             ORDER BY seq DESC
             LIMIT $3",
            status.map(JobStatus::as_str),
            rows::after_seq(page)?,
            rows::row_limit(page),
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(rows::paged(page, self.runs_by_id(&ids).await?))
    }

    /// Returns runs with their sequence numbers, newest first.
    async fn runs_by_id(&self, ids: &[Uuid]) -> Result<Vec<(i64, RunRecord)>, StoreError> {
        let found = sqlx::query!(
            "-- runs.by_id
             SELECT id, seq, state, version, created_at, updated_at, finished_at
             FROM runs WHERE id = ANY($1) ORDER BY seq DESC",
            ids,
        )
        .fetch_all(&self.pool)
        .await?;
        found
            .into_iter()
            .map(|row| {
                let record = RunRecord {
                    id: RunId(row.id),
                    run: rows::from_json(row.state, &format!("runs.state of {}", row.id))?,
                    version: row.version,
                    created_at: row.created_at,
                    updated_at: row.updated_at,
                    finished_at: row.finished_at,
                };
                Ok((row.seq, record))
            })
            .collect()
    }

    /// Posts an event to a run's inbox, from which the run driver applies it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] if the run's state does not allow the
    /// event.
    pub async fn post_run_event(&self, id: RunId, event: &RunEvent) -> Result<RunRecord, StoreError> {
        let record = self.run(id).await?;
        record.run.advance(event).map_err(|e| StoreError::WrongState(format!("run {id}: {e}")))?;
        if record.run.state.is_final() {
            return Ok(record);
        }
        let mut tx = self.pool.begin().await?;
        insert_run_event(&mut tx, id, event).await?;
        tx.commit().await?;
        self.announcer.announce(&[Topic::Runs]);
        self.run(id).await
    }

    /// Retries a failed run from the job that failed. Returns that job to the queue and resets its
    /// counters. The job resumes from what it has saved.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] if the run has not failed, or failed
    /// because of its recipe.
    pub async fn retry_run(&self, id: RunId) -> Result<RunRecord, StoreError> {
        let mut tx = self.pool.begin().await?;
        let retried = retry(&mut tx, id).await;
        match retried {
            Ok(()) => tx.commit().await?,
            Err(refused) => {
                tx.rollback().await?;
                return Err(refused);
            }
        }
        self.announcer.announce(&Topic::ALL);
        self.run(id).await
    }

    /// Advances one run whose inbox is not empty and that no other driver has locked. In one
    /// transaction, applies its events, writes the state and notes, submits the next job, forwards
    /// the owner's requests to unfinished jobs, and empties the inbox. Returns `None` if there was
    /// nothing to do. An event that the run's state does not allow is noted and dropped.
    ///
    /// # Errors
    /// Errors of the database; [`StoreError::Corrupt`] for a run that this program cannot read,
    /// after all other runs with events have advanced.
    pub async fn drive_one_run(&self) -> Result<Option<RunId>, StoreError> {
        let mut unreadable: Vec<Uuid> = Vec::new();
        let mut first_error = None;
        loop {
            let Some((id, driven)) = self.drive_next_run(&unreadable).await? else {
                return first_error.map_or(Ok(None), Err);
            };
            match driven {
                Ok(true) => return Ok(Some(id)),
                // Another driver emptied the inbox before this one locked the run.
                Ok(false) => {}
                Err(error @ StoreError::Corrupt { .. }) => {
                    unreadable.push(id.0);
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Locks and advances the next run. Returns its id and whether it had events.
    async fn drive_next_run(&self, except: &[Uuid]) -> Result<Option<(RunId, Result<bool, StoreError>)>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let locked = sqlx::query!(
            "-- runs.lock_next
             SELECT r.id, r.state, r.trace_parent
             FROM (SELECT run_id, min(seq) AS first FROM run_inbox GROUP BY run_id) i
             JOIN runs r ON r.id = i.run_id
             WHERE r.id <> ALL($1)
             ORDER BY i.first
             LIMIT 1
             FOR NO KEY UPDATE OF r SKIP LOCKED",
            except,
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(locked) = locked else { return Ok(None) };
        let id = RunId(locked.id);
        let driven = drive(&mut tx, id, (locked.state, locked.trace_parent)).await;
        match driven {
            Ok(true) => {
                tx.commit().await?;
                // Include `Runs`, because the inbox may contain more events.
                self.announcer.announce(&Topic::ALL);
            }
            Ok(false) | Err(_) => tx.rollback().await?,
        }
        Ok(Some((id, driven)))
    }

    /// Returns the number of runs with each status.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn run_counts(&self) -> Result<Vec<(JobStatus, u64)>, StoreError> {
        let counted = sqlx::query!(
            r#"-- runs.count
             SELECT status, count(*) AS "runs!" FROM runs GROUP BY status"#,
        )
        .fetch_all(&self.pool)
        .await?;
        counted
            .into_iter()
            .map(|row| {
                let status = rows::known(JobStatus::parse(&row.status), "runs.status", &row.status)?;
                Ok((status, rows::unsigned(row.runs)))
            })
            .collect()
    }

    /// Returns a run's notes after `after_seq` (0 for all), oldest first.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn run_notes(&self, id: RunId, after_seq: i64) -> Result<Vec<RunNote>, StoreError> {
        let notes = sqlx::query_as!(
            RunNote,
            "-- run_notes.list
             SELECT seq, created_at AS at, text FROM run_notes WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            id.0,
            after_seq,
            MAX_NOTES,
        );
        Ok(notes.fetch_all(&self.pool).await?)
    }
}

/// Applies the inbox of a run that the transaction has locked. Returns `false` if the inbox is
/// empty.
async fn drive(
    conn: &mut PgConnection,
    id: RunId,
    (state, trace_parent): (serde_json::Value, Option<String>),
) -> Result<bool, StoreError> {
    let mut step =
        Step { id, trace_parent, run: rows::from_json(state, &format!("runs.state of {id}"))?, notes: Vec::new() };
    let inbox = sqlx::query!(
        "-- run_inbox.list
         SELECT seq, event FROM run_inbox WHERE run_id = $1 ORDER BY seq LIMIT $2",
        id.0,
        INBOX_BATCH,
    )
    .fetch_all(&mut *conn)
    .await?;
    if inbox.is_empty() {
        return Ok(false);
    }
    let seqs: Vec<i64> = inbox.iter().map(|row| row.seq).collect();
    for row in inbox {
        let event = rows::from_json(row.event, &format!("run_inbox.event {}", row.seq))?;
        step.fold(conn, &event).await?;
    }
    sqlx::query!("-- run_inbox.delete\nDELETE FROM run_inbox WHERE seq = ANY($1)", &seqs).execute(&mut *conn).await?;
    step.write(conn).await?;
    Ok(true)
}

async fn retry(conn: &mut PgConnection, id: RunId) -> Result<(), StoreError> {
    let refused = |problem: String| StoreError::WrongState(format!("run {id} {problem}"));
    let locked = sqlx::query!(
        "-- runs.lock
         SELECT state, trace_parent FROM runs WHERE id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let locked = locked.ok_or_else(|| rows::not_found("run", id))?;
    let run: Run = rows::from_json(locked.state, &format!("runs.state of {id}"))?;
    let RunState::Failed { message } = &run.state else {
        return Err(refused(format!("is {}: only a failed run can be retried", run.status().as_str())));
    };
    let job = sqlx::query!(
        "-- runs.last_job
         SELECT kind, model, final_status FROM jobs WHERE run_id = $1 ORDER BY seq DESC LIMIT 1",
        id.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let job =
        job.filter(|job| matches!(job.final_status.as_deref(), Some("FAILED" | "CANCELLED"))).ok_or_else(|| {
            refused(format!(
                "failed because of its recipe, not in a job: {message}. Change the recipe and create a new run"
            ))
        })?;
    let model = || {
        let model = job.model.clone().ok_or_else(|| rows::corrupt("jobs.model", "the job of a run has no model"))?;
        rows::from_json(model, "jobs.model")
    };
    let step = match rows::known(JobKind::parse(&job.kind), "jobs.kind", &job.kind)? {
        JobKind::Tokenize => RunState::Tokenizing,
        JobKind::Slice => RunState::Slicing(model()?),
        JobKind::Train => RunState::Training(model()?),
        JobKind::Evaluate => RunState::Evaluating(model()?),
    };
    let mut run = Step { id, trace_parent: locked.trace_parent, run, notes: Vec::new() };
    run.fold(conn, &RunEvent::RetryRequested { step }).await?;
    run.write(conn).await
}

/// Adds an event to a run's inbox.
pub(crate) async fn insert_run_event(conn: &mut PgConnection, id: RunId, event: &RunEvent) -> Result<(), StoreError> {
    sqlx::query!(
        "-- run_inbox.insert
         INSERT INTO run_inbox (run_id, event) VALUES ($1, $2)",
        id.0,
        rows::to_json(event, "run event")?,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A run between two stored states.
struct Step {
    id: RunId,
    trace_parent: Option<String>,
    run: Run,
    notes: Vec<Note>,
}

impl Step {
    async fn fold(&mut self, conn: &mut PgConnection, event: &RunEvent) -> Result<(), StoreError> {
        let transition = match self.run.advance(event) {
            Ok(transition) => transition,
            Err(e) => {
                self.notes.push(Note::Ignored { problem: e.to_string() });
                return Ok(());
            }
        };
        self.run = transition.run;
        self.notes.extend(transition.notes);
        // Submit the job first, so that the owner's request applies to it too.
        if let Some(submission) = transition.submit {
            self.submit(conn, submission).await?;
        }
        if let Some(request) = transition.request {
            jobs::request_of_run(conn, self.id, request).await?;
        }
        Ok(())
    }

    async fn submit(&self, conn: &mut PgConnection, submission: Submission) -> Result<(), StoreError> {
        let model = match self.run.state {
            RunState::Slicing(model) | RunState::Training(model) | RunState::Evaluating(model) => {
                Some((rows::to_json(&model, "model")?, self.run.model_name(model)))
            }
            RunState::Created
            | RunState::Tokenizing
            | RunState::Finished { .. }
            | RunState::Failed { .. }
            | RunState::Cancelled => None,
        };
        let job = NewJob {
            label: submission.label,
            spec: submission.spec,
            priority: self.run.spec.priority,
            retry: RetryPolicy::default(),
            run: Some(self.id),
        };
        let trace_parent = self.trace_parent.as_deref();
        jobs::insert_jobs(conn, &[QueuedJob { id: JobId(Uuid::now_v7()), job: &job, model, trace_parent }]).await
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- runs.update
             UPDATE runs
             SET state = $2, state_text = $3, status = $4, version = version + 1, updated_at = now(),
                 finished_at = CASE WHEN $5 THEN coalesce(finished_at, now()) END, reference_layers = $6, matched = $7
             WHERE id = $1",
            self.id.0,
            rows::to_json(&self.run, "run")?,
            rows::text(&self.run.describe_state()),
            self.run.status().as_str(),
            self.run.state.is_final(),
            self.run.reference_layers.map(|layers| layers.0 as i32),
            self.run.matched(),
        )
        .execute(&mut *conn)
        .await?;
        run_models::write(conn, self.id, &self.run).await?;
        let texts: Vec<String> = self.notes.iter().map(|note| rows::text(&note.to_string())).collect();
        let notes: Vec<serde_json::Value> = self.notes.iter().map(stored_note).collect::<Result<_, _>>()?;
        sqlx::query!(
            "-- run_notes.insert
             INSERT INTO run_notes (run_id, text, note)
             SELECT $1, text, note
             FROM unnest($2::text[], $3::jsonb[]) WITH ORDINALITY AS n (text, note, position) ORDER BY position",
            self.id.0,
            &texts,
            &notes,
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Returns a note as stored JSON, which includes the version of the format.
fn stored_note(note: &Note) -> Result<serde_json::Value, StoreError> {
    let mut json = rows::to_json(note, "note")?;
    if let Some(object) = json.as_object_mut() {
        object.insert("version".to_owned(), NOTE_VERSION.into());
    }
    Ok(json)
}
