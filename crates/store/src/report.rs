//! Collects the data of a report.

use inheritune_domain::artifact::Location;
use inheritune_domain::id::{JobId, RunId};
use inheritune_domain::job::JobStatus;
use inheritune_domain::report_data::{Curve, JobSummary, ReportData, TensorOrigin};
use inheritune_domain::run::{Model, Run};
use serde::Deserialize;

use crate::rows;
use crate::{Store, StoreError};

/// Size limit of `inheritance.json`.
const MAX_INHERITANCE_BYTES: u64 = 64 * 1024 * 1024;

impl Store {
    /// Returns the data of a report: the run, its notes and jobs, the curves of all its models, and
    /// the origins of the winner's tensors (empty while there is no winner).
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] if the winner's `inheritance.json` is
    /// invalid.
    pub async fn report_data(&self, id: RunId) -> Result<ReportData, StoreError> {
        let record = self.run(id).await?;
        let notes = self.run_notes(id, 0).await?.into_iter().map(|note| (note.at, note.text)).collect();
        Ok(ReportData {
            id,
            notes,
            jobs: self.job_summaries(id).await?,
            curves: self.curves(id).await?,
            origins: self.origins(&record.run).await?,
            created_at: record.created_at,
            finished_at: record.finished_at,
            run: record.run,
        })
    }

    async fn job_summaries(&self, id: RunId) -> Result<Vec<JobSummary>, StoreError> {
        let found = sqlx::query!(
            r#"-- report.jobs
             SELECT j.id, j.label, job_status(j.final_status, q.state, q.directive) AS "status!", j.attempts,
                    j.started_at, j.finished_at
             FROM jobs j
             LEFT JOIN job_queue q ON q.job_id = j.id
             WHERE j.run_id = $1
             ORDER BY j.seq"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await?;
        found
            .into_iter()
            .map(|row| {
                Ok(JobSummary {
                    id: JobId(row.id),
                    label: row.label,
                    status: rows::known(JobStatus::parse(&row.status), "job_status", &row.status)?,
                    attempts: rows::count(row.attempts),
                    started_at: row.started_at,
                    finished_at: row.finished_at,
                })
            })
            .collect()
    }

    async fn curves(&self, id: RunId) -> Result<Vec<Curve>, StoreError> {
        let points = sqlx::query!(
            r#"-- report.curves
             SELECT j.model AS "model!", m.name, m.step, m.tokens_seen, m.value
             FROM metric_points m
             JOIN jobs j ON j.id = m.job_id
             WHERE j.run_id = $1 AND j.model IS NOT NULL AND m.name IN ('train_loss', 'validation_loss')
             ORDER BY j.seq, m.name, m.step"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut curves: Vec<Curve> = Vec::new();
        for row in points {
            let model: Model = rows::from_json(row.model, "jobs.model")?;
            let point = (rows::unsigned(row.step), rows::unsigned(row.tokens_seen), row.value);
            match curves.last_mut().filter(|curve| curve.model == model && curve.metric == row.name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { model, metric: row.name, points: vec![point] }),
            }
        }
        Ok(curves)
    }

    async fn origins(&self, run: &Run) -> Result<Vec<TensorOrigin>, StoreError> {
        let checkpoint = run.winner().and_then(|winner| winner.checkpoint.clone());
        let Some(location @ Location::Artifact(_)) = checkpoint else { return Ok(Vec::new()) };
        let folder = self.open(&location).await?;
        if !folder.has("inheritance.json") {
            return Ok(Vec::new());
        }
        let bytes = folder.read("inheritance.json", MAX_INHERITANCE_BYTES).await?;
        let inheritance: Inheritance =
            serde_json::from_slice(&bytes).map_err(|e| rows::corrupt(format!("{location}/inheritance.json"), e))?;
        Ok(inheritance.tensors)
    }
}

/// The part of `inheritance.json` that a report shows.
#[derive(Deserialize)]
struct Inheritance {
    tensors: Vec<TensorOrigin>,
}
