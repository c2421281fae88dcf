//! Conversions for evaluations.

use inheritune_domain::artifact::Location;
use inheritune_domain::comparison::Difference;
use inheritune_domain::id::{ArtifactId, RunId};
use inheritune_domain::spec::limits;
use inheritune_domain::spec::{EvaluateSpec, Evaluated, EvaluationTask, Score, ScoreDifference, defaults};
use inheritune_domain::violation::Violations;
use uuid::Uuid;

use super::fields::{Field, Notes};
use super::slicing::config;
use crate::v1;

pub(super) fn evaluate_spec(field: &mut Field<'_>, message: v1::EvaluateSpec) -> EvaluateSpec {
    let checkpoint = field.at("checkpoint").location(&message.checkpoint);
    let mut at = field.at("tasks");
    let tasks =
        message.tasks.into_iter().enumerate().map(|(i, task)| evaluation_task(&mut at.index(i), task)).collect();
    EvaluateSpec {
        batch_size: message.batch_size.unwrap_or(defaults::batch_size()),
        max_batch_tokens: message.max_batch_tokens.unwrap_or(defaults::max_batch_tokens()),
        add_bos_token: message.add_bos_token,
        one_by_one: message.one_by_one,
        baseline: field.at("baseline_artifact_id").optional_id(&message.baseline_artifact_id),
        helps: field.at("helps_job_id").optional_id(&message.helps_job_id),
        ..EvaluateSpec::new(checkpoint, tasks)
    }
}

fn evaluation_task(field: &mut Field<'_>, message: v1::EvaluationTask) -> EvaluationTask {
    match message.task {
        Some(v1::evaluation_task::Task::ValidationLoss(task)) => {
            let mut field = field.at("validation_loss");
            EvaluationTask::ValidationLoss {
                tokens: field.at("tokens_artifact_id").id(&task.tokens_artifact_id),
                block_size: task.block_size,
                max_sequences: task.max_sequences,
            }
        }
        Some(v1::evaluation_task::Task::RollingPerplexity(task)) => EvaluationTask::RollingPerplexity {
            source: field.at("rolling_perplexity").at("source").location(&task.source),
        },
        Some(v1::evaluation_task::Task::Benchmark(task)) => EvaluationTask::Benchmark {
            name: task.name,
            data: field.at("benchmark").at("data").location(&task.data),
            limit: task.limit,
        },
        None => {
            field.bad("give validation_loss, rolling_perplexity or benchmark");
            EvaluationTask::RollingPerplexity { source: Location::Artifact(ArtifactId(Uuid::nil())) }
        }
    }
}

/// Returns the path in [`v1::EvaluateSpec`] of a path reported by the domain's validation of an
/// evaluation: the fields of a task are below its kind.
pub(super) fn renamed(spec: &EvaluateSpec, path: &str) -> String {
    let task = || {
        let (number, field) = path.strip_prefix("tasks[")?.split_once("].")?;
        let kind = match spec.tasks.get(number.parse::<usize>().ok()?)? {
            EvaluationTask::ValidationLoss { .. } => "validation_loss",
            EvaluationTask::RollingPerplexity { .. } => "rolling_perplexity",
            EvaluationTask::Benchmark { .. } => "benchmark",
        };
        Some(format!("tasks[{number}].{kind}.{field}"))
    };
    task().unwrap_or_else(|| path.to_owned())
}

/// Returns the evaluations in a [`v1::CompareScoresRequest`]: jobs or scores.
///
/// # Errors
/// All violations.
pub fn compared(request: &v1::CompareScoresRequest) -> Result<[Uuid; 2], Violations> {
    let mut notes = Notes::default();
    let mut field = Field::root(&mut notes);
    let ids = [field.at("first_id").id(&request.first_id), field.at("second_id").id(&request.second_id)];
    notes.into_result(ids)
}

/// What a [`v1::ListModelScoresRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedScores {
    /// Only models of this run.
    pub run: Option<RunId>,
    /// Maximum number of models.
    pub size: usize,
    /// Where the page begins; empty for the first one.
    pub page_token: String,
}

impl TryFrom<&v1::ListModelScoresRequest> for ListedScores {
    type Error = Violations;

    fn try_from(request: &v1::ListModelScoresRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let run = field.at("run_id").optional_id(&request.run_id);
        if !limits::PAGE_SIZE.holds(request.page_size) {
            field.at("page_size").bad(format!("{} is negative; use 0 for as many as fit", request.page_size));
        }
        let size = match usize::try_from(request.page_size) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(size) => size,
        };
        field.at("page_token").text(limits::PAGE_TOKEN, &request.page_token);
        notes.into_result(Self { run, size, page_token: request.page_token.clone() })
    }
}

pub(super) fn evaluated(field: &mut Field<'_>, message: v1::Evaluated) -> Evaluated {
    Evaluated {
        scores_artifact: field.at("scores_artifact_id").id(&message.scores_artifact_id),
        scores: message.scores.into_iter().map(Score::from).collect(),
        config: config(&mut field.at("config"), message.config),
        parameters: message.parameters,
        differences: message.differences.into_iter().map(ScoreDifference::from).collect(),
    }
}

impl From<v1::ScoreDifference> for ScoreDifference {
    fn from(message: v1::ScoreDifference) -> Self {
        let v1::ScoreDifference { task, metric, value, stderr, n, .. } = message;
        Self { task, metric, difference: Difference { value, stderr, n } }
    }
}

impl From<&ScoreDifference> for v1::ScoreDifference {
    fn from(difference: &ScoreDifference) -> Self {
        let ScoreDifference { task, metric, difference } = difference.clone();
        let (low, high) = difference.confidence_interval().unzip();
        Self {
            task,
            metric,
            value: difference.value,
            stderr: difference.stderr,
            n: difference.n,
            confidence_low: low,
            confidence_high: high,
            p_value: difference.p_value(),
        }
    }
}

impl From<v1::Score> for Score {
    fn from(score: v1::Score) -> Self {
        let v1::Score { task, metric, value, stderr, n, chance, majority, chance_p_value } = score;
        Self { task, metric, value, stderr, n, chance, majority, chance_p_value }
    }
}

impl From<&Score> for v1::Score {
    fn from(score: &Score) -> Self {
        let Score { task, metric, value, stderr, n, chance, majority, chance_p_value } = score.clone();
        Self { task, metric, value, stderr, n, chance, majority, chance_p_value }
    }
}

impl From<&EvaluateSpec> for v1::EvaluateSpec {
    fn from(spec: &EvaluateSpec) -> Self {
        Self {
            checkpoint: spec.checkpoint.to_string(),
            tasks: spec.tasks.iter().map(v1::EvaluationTask::from).collect(),
            batch_size: Some(spec.batch_size),
            max_batch_tokens: Some(spec.max_batch_tokens),
            add_bos_token: spec.add_bos_token,
            one_by_one: spec.one_by_one,
            baseline_artifact_id: spec.baseline.map(|id| id.to_string()).unwrap_or_default(),
            helps_job_id: spec.helps.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&EvaluationTask> for v1::EvaluationTask {
    fn from(task: &EvaluationTask) -> Self {
        let task = match task {
            EvaluationTask::ValidationLoss { tokens, block_size, max_sequences } => {
                v1::evaluation_task::Task::ValidationLoss(v1::ValidationLossTask {
                    tokens_artifact_id: tokens.to_string(),
                    block_size: *block_size,
                    max_sequences: *max_sequences,
                })
            }
            EvaluationTask::Benchmark { name, data, limit } => {
                let (name, data) = (name.clone(), data.to_string());
                v1::evaluation_task::Task::Benchmark(v1::BenchmarkTask { name, data, limit: *limit })
            }
            EvaluationTask::RollingPerplexity { source } => {
                v1::evaluation_task::Task::RollingPerplexity(v1::RollingPerplexityTask { source: source.to_string() })
            }
        };
        Self { task: Some(task) }
    }
}

impl From<&Evaluated> for v1::Evaluated {
    fn from(evaluated: &Evaluated) -> Self {
        Self {
            scores_artifact_id: evaluated.scores_artifact.to_string(),
            scores: evaluated.scores.iter().map(v1::Score::from).collect(),
            config: Some((&evaluated.config).into()),
            parameters: evaluated.parameters,
            differences: evaluated.differences.iter().map(v1::ScoreDifference::from).collect(),
        }
    }
}
