//! `JobService`.

use std::collections::BTreeMap;

use futures::stream::BoxStream;
use inheritune_api::convert::job::{ListedJobs, SubmittedJob};
use inheritune_api::v1::job_service_server::JobService;
use inheritune_api::{convert, status, v1};
use inheritune_domain::id::JobId;
use inheritune_domain::job::{Directive, JobRecord, JobStatus};
use inheritune_store::jobs::{JobFilter, NewJob};
use inheritune_store::metrics::RecordedPoint;
use tonic::{Request, Response, Status};

use super::rounds::{JobWatch, Round};
use super::watch::{Look, Watched, stream};
use super::{Shared, fitting, page, store_status};

/// Maximum number of metric points per response.
const MAX_POINTS: usize = 10_000;

/// `JobService` over the store.
pub(super) struct Jobs {
    shared: Shared,
}

impl Jobs {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    async fn ask(&self, id: &str, directive: Directive) -> Result<Option<v1::Job>, Status> {
        let id: JobId = convert::id("id", id).map_err(|e| status::invalid_argument(&e))?;
        let job = self.shared.store.request_job(id, directive).await.map_err(|e| store_status(&e))?;
        Ok(Some((&job).into()))
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let SubmittedJob { label, spec, priority, retry, request_id } =
            request.into_inner().try_into().map_err(|e| status::invalid_argument(&e))?;
        let allowed = self.shared.ceilings.check_job(&spec);
        allowed.map_err(|beyond| status::failed_precondition("job", &beyond.to_string()))?;
        let job = NewJob { label, spec, priority, retry, run: None };
        let job = self.shared.store_in_trace().submit_job(&job, request_id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::SubmitJobResponse { job: Some((&job).into()) }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let id = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
        let job = self.shared.store.job(id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::GetJobResponse { job: Some((&job).into()) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let ListedJobs { run, kind, status: wanted, page: asked } =
            request.get_ref().try_into().map_err(|e| status::invalid_argument(&e))?;
        let filter = JobFilter { run, kind, status: wanted };
        let list = |page| {
            let filter = filter.clone();
            async move { self.shared.store.list_jobs(&filter, &page).await }
        };
        let include_spec = request.get_ref().include_spec;
        let summary = |record: &JobRecord| {
            let job = v1::Job::from(record);
            if include_spec { job } else { v1::Job { spec: None, ..job } }
        };
        let (jobs, next_page_token) = fitting(page(asked), list, summary).await?;
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let job = self.ask(&request.get_ref().id, Directive::Cancel).await?;
        Ok(Response::new(v1::CancelJobResponse { job }))
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::PauseJobResponse>, Status> {
        let job = self.ask(&request.get_ref().id, Directive::Pause).await?;
        Ok(Response::new(v1::PauseJobResponse { job }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let job = self.ask(&request.get_ref().id, Directive::Run).await?;
        Ok(Response::new(v1::ResumeJobResponse { job }))
    }

    async fn retry_job(&self, request: Request<v1::RetryJobRequest>) -> Result<Response<v1::RetryJobResponse>, Status> {
        let id: JobId = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
        let job = self.shared.store.retry_job(id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::RetryJobResponse { job: Some((&job).into()) }))
    }

    type WatchJobStream = BoxStream<'static, Result<v1::WatchJobResponse, Status>>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let convert::job::WatchedJob { id, metrics, after_step } =
            request.into_inner().try_into().map_err(|e| status::invalid_argument(&e))?;
        // An unknown id fails the call itself instead of its stream.
        let job = self.shared.store.job(id).await.map_err(|e| store_status(&e))?;
        let names = if metrics.is_empty() { job.spec.curves() } else { metrics };
        let grant = self.shared.watch().await?;
        let after = names.into_iter().map(|name| (name, after_step)).collect();
        let watch = grant.rounds.watch_job(id);
        Ok(Response::new(stream(WatchedJob { id, after, sent: None, _watch: watch }, grant)))
    }
}

struct WatchedJob {
    id: JobId,
    /// The last step that was sent for each metric. Metrics are written at different steps and
    /// times.
    after: BTreeMap<String, Option<u64>>,
    sent: Option<v1::Job>,
    _watch: JobWatch,
}

impl Watched for WatchedJob {
    type Response = v1::WatchJobResponse;

    async fn look(&mut self, round: &Round) -> Result<Look<v1::WatchJobResponse>, Status> {
        let record = round.job(self.id).await?;
        let job = v1::Job::from(record.as_ref());
        let unchanged = self.sent.as_ref() == Some(&job);
        if unchanged && matches!(record.status, JobStatus::Queued | JobStatus::Paused) {
            // Only a worker that holds a job writes points.
            return Ok(Look::Same);
        }
        let mut points = self.new_points(round).await?;
        // Points that do not fit are sent with the next look. The response is not the last one
        // then.
        let more = points.len() > MAX_POINTS;
        points.truncate(MAX_POINTS);
        for point in &points {
            if let Some(after) = self.after.get_mut(&point.name) {
                *after = Some(point.step);
            }
        }
        if unchanged && points.is_empty() {
            return Ok(Look::Same);
        }
        self.sent = Some(job.clone());
        let metric_points = points.iter().map(recorded).collect();
        let response = v1::WatchJobResponse { job: Some(job), metric_points };
        Ok(if record.status.is_final() && !more { Look::Last(response) } else { Look::New(response) })
    }
}

impl WatchedJob {
    /// Returns the points that were not sent yet, ordered by step.
    async fn new_points(&self, round: &Round) -> Result<Vec<RecordedPoint>, Status> {
        let names: Vec<String> = self.after.keys().cloned().collect();
        // Read from the step of the metric that is furthest behind, and drop points of other
        // metrics that were already sent.
        let oldest = self.after.values().min().copied().flatten();
        let points = round.points(self.id, names, oldest).await?;
        let is_new =
            |point: &&RecordedPoint| self.after.get(&point.name).is_some_and(|after| Some(point.step) > *after);
        let mut points: Vec<RecordedPoint> = points.iter().filter(is_new).cloned().collect();
        points.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
        Ok(points)
    }
}

fn recorded(point: &RecordedPoint) -> v1::MetricPoint {
    v1::MetricPoint { time: Some(convert::time::timestamp(point.at)), ..v1::MetricPoint::from(&point.point) }
}
