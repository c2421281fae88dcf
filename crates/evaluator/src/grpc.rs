//! The evaluator's gRPC service: lists the tasks and compares the scores of models.

use inheritune_api::convert;
use inheritune_api::convert::evaluation::ListedScores;
use inheritune_api::convert::page::Room;
use inheritune_api::v1::evaluation_service_server::{EvaluationService, EvaluationServiceServer};
use inheritune_api::{status, v1};
use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::spec::{Evaluated, JobOutcome, JobSpec};
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::store_status::store_status;
use inheritune_runtime::worker::JobError;
use inheritune_store::scores::{ModelScores, ScoreOrigin};
use inheritune_store::{Store, StoreError};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::comparison::differences;
use crate::publish::read_rows;
use crate::tasks::{Row, TaskDescription, catalogue};

/// Full name of the service, for health checks and reflection.
pub const SERVICE_NAME: &str = "inheritune.v1.EvaluationService";

/// Returns the services of the evaluator.
pub fn services(store: &Store) -> GrpcServices {
    let evaluation = Evaluation { store: store.clone() };
    let routes = tonic::service::Routes::new(EvaluationServiceServer::new(evaluation));
    GrpcServices { routes, names: vec![SERVICE_NAME] }
}

/// Implements `EvaluationService`.
struct Evaluation {
    store: Store,
}

#[tonic::async_trait]
impl EvaluationService for Evaluation {
    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksResponse>, Status> {
        let tasks = catalogue().into_iter().map(task_info).collect();
        Ok(Response::new(v1::ListTasksResponse { tasks }))
    }

    async fn compare_scores(
        &self,
        request: Request<v1::CompareScoresRequest>,
    ) -> Result<Response<v1::CompareScoresResponse>, Status> {
        let compared = convert::evaluation::compared(request.get_ref());
        let [first, second] = compared.map_err(|violations| status::invalid_argument(&violations))?;
        let first = self.evaluation("first_id", first).await?;
        let second = self.evaluation("second_id", second).await?;
        let differences = differences(&first.rows, &second.rows);
        Ok(Response::new(v1::CompareScoresResponse {
            first_checkpoint: first.checkpoint,
            second_checkpoint: second.checkpoint,
            first: first.evaluated.scores.iter().map(v1::Score::from).collect(),
            second: second.evaluated.scores.iter().map(v1::Score::from).collect(),
            differences: differences.iter().map(v1::ScoreDifference::from).collect(),
        }))
    }

    async fn list_model_scores(
        &self,
        request: Request<v1::ListModelScoresRequest>,
    ) -> Result<Response<v1::ListModelScoresResponse>, Status> {
        let ListedScores { run, size, page_token } =
            request.get_ref().try_into().map_err(|violations| status::invalid_argument(&violations))?;
        let bad_token =
            || status::unusable("page_token", "is not a token that this service returned; start with the first page");
        let first: usize = if page_token.is_empty() { 0 } else { page_token.parse().map_err(|_| bad_token())? };
        let models = self.store.model_scores(run).await.map_err(|e| store_status(&e, "run_id"))?;
        let all = models.len();
        let mut room = Room::after(0);
        let page = models.into_iter().skip(first).take(size).map(model_scores);
        let page: Vec<v1::ModelScores> = page.take_while(|model| room.takes(model)).collect();
        let next = first.saturating_add(page.len());
        let next_page_token = if next < all { next.to_string() } else { String::new() };
        Ok(Response::new(v1::ListModelScoresResponse { models: page, next_page_token }))
    }
}

/// A successful evaluation.
struct Ended {
    checkpoint: String,
    evaluated: Evaluated,
    rows: Vec<Row>,
}

impl Evaluation {
    /// Returns the evaluation with the id of its job or of its scores artifact.
    async fn evaluation(&self, field: &str, id: Uuid) -> Result<Ended, Status> {
        let no_scores = |problem: &str| status::failed_precondition(field, &format!("{id}: {problem}"));
        let job = match self.store.job(JobId(id)).await {
            Err(StoreError::NotFound { .. }) => {
                let artifact = self.store.artifact(ArtifactId(id)).await.map_err(|e| store_status(&e, field))?;
                if artifact.kind != ArtifactKind::Scores {
                    return Err(no_scores("not a scores artifact"));
                }
                let job = artifact.job.ok_or_else(|| no_scores("was registered, not measured by an evaluate job"))?;
                self.store.job(job).await
            }
            found => found,
        };
        let job = job.map_err(|e| store_status(&e, field))?;
        let (JobSpec::Evaluate(spec), Some(JobOutcome::Evaluated(evaluated))) = (job.spec, job.outcome) else {
            return Err(no_scores("not an evaluate job that succeeded"));
        };
        let rows = read_rows(&self.store, evaluated.scores_artifact).await.map_err(|error| match error {
            JobError::Stopped => status::internal(&"stopped"),
            error => status::unusable(field, &error.to_string()),
        })?;
        Ok(Ended { checkpoint: spec.checkpoint.to_string(), evaluated, rows })
    }
}

fn task_info(task: TaskDescription) -> v1::TaskInfo {
    v1::TaskInfo {
        name: task.name.to_owned(),
        description: task.description,
        metrics: task.metrics.iter().map(|metric| (*metric).to_owned()).collect(),
        input: task.input,
    }
}

fn model_scores(model: ModelScores) -> v1::ModelScores {
    let scores = model.scores.iter().map(v1::Score::from).collect();
    let named = v1::ModelScores { model: model.model, scores, ..v1::ModelScores::default() };
    match model.origin {
        ScoreOrigin::Published { source } => v1::ModelScores { published_in: source, ..named },
        ScoreOrigin::Measured { checkpoint, job, run, parameters } => v1::ModelScores {
            checkpoint,
            job_id: job.to_string(),
            run_id: run.map(|run| run.to_string()).unwrap_or_default(),
            parameters,
            ..named
        },
    }
}
