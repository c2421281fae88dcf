//! Compares the scores of all models.

use inheritune_domain::id::{JobId, RunId};
use inheritune_domain::spec::Score;

use crate::rows;
use crate::{Store, StoreError};

/// Most scores that one call returns.
const MAX_SCORES: i64 = 100_000;

/// The newest scores of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelScores {
    /// Human-readable name.
    pub model: String,
    /// Source of the scores.
    pub origin: ScoreOrigin,
    /// The scores, ordered by task and metric.
    pub scores: Vec<Score>,
}

/// The source of scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScoreOrigin {
    /// Measured by an evaluate job.
    Measured {
        /// The model's location.
        checkpoint: String,
        /// Its newest evaluate job.
        job: JobId,
        /// The run of that job.
        run: Option<RunId>,
        /// Number of parameters; tied ones count once.
        parameters: u64,
    },
    /// Taken from a publication.
    Published {
        /// The publication.
        source: String,
    },
}

impl Store {
    /// Returns the newest scores of every model, published ones last. If `run` is set, only the
    /// models of that run.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn model_scores(&self, run: Option<RunId>) -> Result<Vec<ModelScores>, StoreError> {
        let mut tx = self.begin_list().await?;
        let found = sqlx::query!(
            r#"-- scores.leaderboard
             SELECT model AS "model!", published_in, task AS "task!", metric AS "metric!", value AS "value!", stderr, n,
                    chance, majority, chance_p_value, parameters, checkpoint, job_id, run_id
             FROM ops.leaderboard
             WHERE $1::uuid IS NULL OR run_id = $1
             ORDER BY published_in NULLS FIRST, max(finished_at) OVER (PARTITION BY checkpoint) DESC, checkpoint, model, task,
                      metric
             LIMIT $2"#,
            run.map(|run| run.0),
            MAX_SCORES,
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        let mut models: Vec<ModelScores> = Vec::new();
        for row in found {
            let score = Score {
                chance: row.chance,
                majority: row.majority,
                chance_p_value: row.chance_p_value,
                ..Score::plain(&row.task, &row.metric, (row.value, row.stderr), row.n.map_or(0, rows::unsigned))
            };
            let origin = match (row.published_in, row.job_id) {
                (None, Some(job)) => ScoreOrigin::Measured {
                    checkpoint: row.checkpoint.unwrap_or_default(),
                    job: JobId(job),
                    run: row.run_id.map(RunId),
                    parameters: row.parameters.map_or(0, rows::unsigned),
                },
                (source, _) => ScoreOrigin::Published { source: source.unwrap_or_default() },
            };
            match models.last_mut().filter(|last| is_same(last, &row.model, &origin)) {
                Some(last) => last.scores.push(score),
                None => models.push(ModelScores { model: row.model, origin, scores: vec![score] }),
            }
        }
        Ok(models)
    }
}

/// Returns whether a row belongs to the model `last`. A measured model is identified by its
/// checkpoint, because the labels of its evaluations may differ.
fn is_same(last: &ModelScores, model: &str, origin: &ScoreOrigin) -> bool {
    match (&last.origin, origin) {
        (ScoreOrigin::Measured { checkpoint: one, .. }, ScoreOrigin::Measured { checkpoint: other, .. }) => {
            one == other
        }
        (ScoreOrigin::Published { source: one }, ScoreOrigin::Published { source: other }) => {
            one == other && last.model == model
        }
        (ScoreOrigin::Measured { .. } | ScoreOrigin::Published { .. }, _) => false,
    }
}
