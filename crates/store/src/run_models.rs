//! Stores the models of a run as rows for SQL readers such as dashboards.

use inheritune_domain::id::RunId;
use inheritune_domain::run::{Model, ModelRecord, Run, RunState};
use serde::Serialize;
use sqlx::PgConnection;

use crate::{StoreError, rows};

/// One row of `run_models`. The field names are the column names.
#[derive(Debug, Serialize)]
struct ModelRow<'a> {
    run_id: RunId,
    position: usize,
    role: &'static str,
    round: Option<u32>,
    name: String,
    stage: &'static str,
    layers: Option<u32>,
    parameters: Option<u64>,
    checkpoint: Option<String>,
    steps: Option<u64>,
    tokens_seen: Option<u64>,
    epochs: Option<f64>,
    training_seconds: Option<f64>,
    validation_loss: Option<f64>,
    validation_loss_stderr: Option<f64>,
    validation_sequences: Option<u64>,
    difference: Option<f64>,
    difference_stderr: Option<f64>,
    decision: Option<&'static str>,
    problem: Option<&'a str>,
}

impl<'a> ModelRow<'a> {
    fn new(run_id: RunId, run: &'a Run, position: usize, record: &'a ModelRecord) -> Self {
        let (role, round) = match record.model {
            Model::Reference => ("reference", None),
            Model::Candidate { round, .. } => ("candidate", Some(round)),
            Model::Control { .. } => ("control", None),
            Model::Arm { .. } => ("arm", None),
        };
        let validation = record.validation.as_ref();
        Self {
            run_id,
            position,
            role,
            round,
            name: run.model_name(record.model),
            stage: stage(run, record),
            layers: record.layers.map(|layers| layers.0),
            parameters: record.parameters,
            checkpoint: record.checkpoint.as_ref().map(ToString::to_string),
            steps: record.steps,
            tokens_seen: record.tokens_seen,
            epochs: record.epochs,
            training_seconds: record.wall_s,
            validation_loss: validation.map(|score| score.value),
            validation_loss_stderr: validation.and_then(|score| score.stderr),
            validation_sequences: validation.map(|score| score.n),
            difference: record.difference.map(|difference| difference.value),
            difference_stderr: record.difference.and_then(|difference| difference.stderr),
            decision: record.decision.map(|decision| decision.as_str()),
            problem: record.given_up.as_deref().or(record.benchmarks_problem.as_deref()),
        }
    }
}

fn stage(run: &Run, record: &ModelRecord) -> &'static str {
    match &run.state {
        _ if record.given_up.is_some() => "given_up",
        RunState::Slicing(model) if *model == record.model => "slicing",
        RunState::Training(model) if *model == record.model => "training",
        RunState::Evaluating(model) if *model == record.model => "evaluating",
        // A failed or cancelled run, or another model's turn: derive the stage from what exists.
        _ if record.validation.is_some() || record.scores.is_some() => "done",
        _ if record.checkpoint.is_some() => "evaluating",
        _ if record.initial.is_some() => "training",
        _ => "slicing",
    }
}

/// Replaces the rows of all models of `run`.
pub(crate) async fn write(conn: &mut PgConnection, id: RunId, run: &Run) -> Result<(), StoreError> {
    let models: Vec<ModelRow<'_>> =
        run.models.iter().enumerate().map(|(position, record)| ModelRow::new(id, run, position, record)).collect();
    sqlx::query!("-- run_models.delete\nDELETE FROM run_models WHERE run_id = $1", id.0).execute(&mut *conn).await?;
    sqlx::query!(
        "-- run_models.insert
         INSERT INTO run_models SELECT m.* FROM jsonb_populate_recordset(NULL::run_models, $1) AS m",
        rows::to_json(&models, "models of a run")?,
    )
    .execute(conn)
    .await?;
    Ok(())
}
