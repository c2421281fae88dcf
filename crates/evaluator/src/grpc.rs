//! What the evaluator answers itself: which tasks there are.

use inheritune_api::v1::evaluation_service_server::{EvaluationService, EvaluationServiceServer};
use inheritune_api::v1::{ListTasksRequest, ListTasksResponse, TaskInfo};
use tonic::{Request, Response, Status};

use crate::tasks::{CATALOGUE, TaskDescription};

/// Full name of the service, for health and reflection.
pub const SERVICE_NAME: &str = "inheritune.v1.EvaluationService";

/// EvaluationService.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evaluation;

/// The service, ready for a server.
pub fn service() -> EvaluationServiceServer<Evaluation> {
    EvaluationServiceServer::new(Evaluation)
}

#[tonic::async_trait]
impl EvaluationService for Evaluation {
    async fn list_tasks(&self, _: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let tasks = CATALOGUE.iter().map(task_info).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }
}

fn task_info(task: &TaskDescription) -> TaskInfo {
    TaskInfo {
        name: task.name.to_owned(),
        description: task.description.to_owned(),
        metrics: task.metrics.iter().map(|metric| metric.name.to_owned()).collect(),
        input: task.input.to_owned(),
    }
}
