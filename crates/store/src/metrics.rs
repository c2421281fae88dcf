//! Points of training curves.

use std::collections::BTreeMap;
use std::ops::Deref;

use inheritune_domain::id::JobId;
use inheritune_domain::job::MetricPoint;
use time::OffsetDateTime;

use crate::jobs::{self, LeaseKey};
use crate::rows;
use crate::{Store, StoreError};

/// Most points that one statement writes.
const BATCH: usize = 5_000;
/// Most points that one call returns.
const MAX_POINTS: i64 = 1_000_000;

/// A point and the time at which it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedPoint {
    /// The point.
    pub point: MetricPoint,
    /// When it was written.
    pub at: OffsetDateTime,
}

impl Deref for RecordedPoint {
    type Target = MetricPoint;

    fn deref(&self) -> &MetricPoint {
        &self.point
    }
}

impl PartialEq<MetricPoint> for RecordedPoint {
    fn eq(&self, other: &MetricPoint) -> bool {
        self.point == *other
    }
}

impl Store {
    /// Adds points to a job's curves. Overwrites points with the same name and step, because a
    /// resumed job repeats steps.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`]: nothing was written.
    pub async fn add_metrics(&self, lease: LeaseKey, points: &[MetricPoint]) -> Result<(), StoreError> {
        let points: BTreeMap<(&str, u64), &MetricPoint> =
            points.iter().map(|point| ((point.name.as_str(), point.step), point)).collect();
        let points: Vec<&MetricPoint> = points.into_values().collect();
        let mut tx = self.pool.begin().await?;
        jobs::hold(&mut tx, lease).await?;
        for batch in points.chunks(BATCH) {
            let names: Vec<String> = batch.iter().map(|point| rows::text(&point.name)).collect();
            let steps: Vec<i64> = batch.iter().map(|point| rows::signed(point.step)).collect();
            let tokens_seen: Vec<i64> = batch.iter().map(|point| rows::signed(point.tokens_seen)).collect();
            let values: Vec<f64> = batch.iter().map(|point| point.value).collect();
            sqlx::query!(
                "-- metric_points.upsert
                 INSERT INTO metric_points (job_id, name, step, tokens_seen, value)
                 SELECT $1, name, step, tokens_seen, value
                 FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::float8[]) AS p (name, step, tokens_seen, value)
                 ON CONFLICT (job_id, name, step)
                 DO UPDATE SET tokens_seen = excluded.tokens_seen, value = excluded.value, created_at = now()",
                lease.job.0,
                &names,
                &steps,
                &tokens_seen,
                &values,
            )
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Returns a job's points, ordered by step: those with one of `names` (all if empty), and only
    /// those after `after_step` if it is set.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn metrics(
        &self,
        job: JobId,
        names: &[&str],
        after_step: Option<u64>,
    ) -> Result<Vec<RecordedPoint>, StoreError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let points = sqlx::query!(
            "-- metric_points.list
             SELECT name, step, tokens_seen, value, created_at FROM metric_points
             WHERE job_id = $1 AND (cardinality($2::text[]) = 0 OR name = ANY($2)) AND ($3::bigint IS NULL OR step > $3)
             ORDER BY step, name
             LIMIT $4",
            job.0,
            &names,
            after_step.map(rows::signed),
            MAX_POINTS,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(points
            .into_iter()
            .map(|row| {
                let (step, tokens_seen) = (rows::unsigned(row.step), rows::unsigned(row.tokens_seen));
                let point = MetricPoint { step, tokens_seen, name: row.name, value: row.value };
                RecordedPoint { point, at: row.created_at }
            })
            .collect())
    }
}
