//! `RunService`.

use std::collections::HashMap;

use futures::stream::BoxStream;
use inheritune_api::convert::page::Room;
use inheritune_api::convert::run::{ListedRuns, NewRun, RunTimes, run_message};
use inheritune_api::v1::run_service_server::RunService;
use inheritune_api::{convert, status, v1};
use inheritune_domain::id::RunId;
use inheritune_domain::run::RunEvent;
use inheritune_store::runs::{RunNote, RunRecord};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::rounds::Round;
use super::watch::{Look, Watched, stream};
use super::{Shared, fitting, page, recent_jobs, store_status};

/// `RunService` over the store.
pub(super) struct Runs {
    shared: Shared,
}

impl Runs {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    async fn post(&self, id: &str, event: RunEvent) -> Result<v1::Run, Status> {
        let id: RunId = convert::id("id", id).map_err(|e| status::invalid_argument(&e))?;
        let record = self.shared.store.post_run_event(id, &event).await.map_err(|e| store_status(&e))?;
        self.detailed(&record).await
    }

    /// Returns the run with its notes and unfinished jobs.
    async fn detailed(&self, record: &RunRecord) -> Result<v1::Run, Status> {
        let store = &self.shared.store;
        let notes = store.run_notes(record.id, 0).await.map_err(|e| store_status(&e))?;
        let mut run = brief(record);
        run.notes = notes.iter().map(note).collect();
        run.current_jobs = recent_jobs(store, record.id).await.map_err(|e| store_status(&e))?;
        run.current_jobs.retain(|job| !is_final(job));
        Ok(run)
    }
}

#[tonic::async_trait]
impl RunService for Runs {
    async fn create_run(
        &self,
        request: Request<v1::CreateRunRequest>,
    ) -> Result<Response<v1::CreateRunResponse>, Status> {
        let NewRun { spec, request_id } = request.into_inner().try_into().map_err(|e| status::invalid_argument(&e))?;
        let allowed = self.shared.ceilings.check_run(&spec);
        allowed.map_err(|beyond| status::failed_precondition("run", &beyond.to_string()))?;
        let record = self.shared.store_in_trace().create_run(&spec, request_id).await.map_err(|e| store_status(&e))?;
        let run = self.detailed(&record).await?;
        Ok(Response::new(v1::CreateRunResponse { run: Some(run) }))
    }

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::GetRunResponse>, Status> {
        let id = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
        let record = self.shared.store.run(id).await.map_err(|e| store_status(&e))?;
        let run = self.detailed(&record).await?;
        Ok(Response::new(v1::GetRunResponse { run: Some(run) }))
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsResponse>, Status> {
        let ListedRuns { status: wanted, page: asked } =
            request.get_ref().try_into().map_err(|e| status::invalid_argument(&e))?;
        let list = |page| async move { self.shared.store.list_runs(wanted, &page).await };
        let include_spec = request.get_ref().include_spec;
        let summary = |record: &RunRecord| {
            let run = brief(record);
            if include_spec { run } else { v1::Run { spec: None, ..run } }
        };
        let (runs, next_page_token) = fitting(page(asked), list, summary).await?;
        Ok(Response::new(v1::ListRunsResponse { runs, next_page_token }))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let run = self.post(&request.get_ref().id, RunEvent::CancelRequested).await?;
        Ok(Response::new(v1::CancelRunResponse { run: Some(run) }))
    }

    async fn pause_run(&self, request: Request<v1::PauseRunRequest>) -> Result<Response<v1::PauseRunResponse>, Status> {
        let run = self.post(&request.get_ref().id, RunEvent::PauseRequested).await?;
        Ok(Response::new(v1::PauseRunResponse { run: Some(run) }))
    }

    async fn resume_run(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<Response<v1::ResumeRunResponse>, Status> {
        let run = self.post(&request.get_ref().id, RunEvent::ResumeRequested).await?;
        Ok(Response::new(v1::ResumeRunResponse { run: Some(run) }))
    }

    async fn retry_run(&self, request: Request<v1::RetryRunRequest>) -> Result<Response<v1::RetryRunResponse>, Status> {
        let id: RunId = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
        let record = self.shared.store.retry_run(id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::RetryRunResponse { run: Some(self.detailed(&record).await?) }))
    }

    type WatchRunStream = BoxStream<'static, Result<v1::WatchRunResponse, Status>>;

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Result<Response<Self::WatchRunStream>, Status> {
        let request = request.into_inner();
        let id: RunId = convert::id("id", &request.id).map_err(|e| status::invalid_argument(&e))?;
        // An unknown id fails the call itself instead of its stream.
        self.shared.store.run(id).await.map_err(|e| store_status(&e))?;
        let grant = self.shared.watch().await?;
        let watched =
            WatchedRun { id, last_note: request.after_note_seq.max(0), sent_run: None, sent_jobs: HashMap::new() };
        Ok(Response::new(stream(watched, grant)))
    }

    async fn get_report(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::GetReportResponse>, Status> {
        let id = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
        let report = self.shared.store.report_data(id).await.map_err(|e| store_status(&e))?;
        let report_json = serde_json::to_string(&report).map_err(|e| status::internal(&e))?;
        Ok(Response::new(v1::GetReportResponse { report_json }))
    }
}

struct WatchedRun {
    id: RunId,
    last_note: i64,
    sent_run: Option<v1::Run>,
    sent_jobs: HashMap<String, v1::Job>,
}

impl Watched for WatchedRun {
    type Response = v1::WatchRunResponse;

    async fn look(&mut self, round: &Round) -> Result<Look<v1::WatchRunResponse>, Status> {
        // The order matters: if the run is final, its notes and jobs, which are read later, are
        // final too.
        let record = round.run(self.id).await?;
        let notes = round.notes(self.id, self.last_note).await?;
        let jobs = round.recent_jobs(self.id).await?;
        let run = brief(&record);

        let first = self.sent_run.is_none();
        if first {
            // Jobs that ended before the watch began are not reported.
            self.sent_jobs = jobs.iter().filter(|job| is_final(job)).map(|job| (job.id.clone(), job.clone())).collect();
        }
        let changed: Vec<&v1::Job> = jobs.iter().filter(|job| self.sent_jobs.get(&job.id) != Some(job)).collect();
        if self.sent_run.as_ref() == Some(&run) && notes.is_empty() && changed.is_empty() {
            return Ok(Look::Same);
        }
        // Entries that do not fit are sent with the next look. The response is not the last one
        // then.
        let mut room = Room::after(run.encoded_len());
        let new_notes: Vec<v1::RunNote> = notes.iter().map(note).take_while(|note| room.takes(note)).collect();
        let fit = if new_notes.len() < notes.len() { 0 } else { changed.len() };
        let new_jobs: Vec<v1::Job> =
            changed.iter().take(fit).map(|&job| job.clone()).take_while(|job| room.takes(job)).collect();
        let more = new_notes.len() < notes.len() || new_jobs.len() < changed.len();
        self.sent_jobs.retain(|id, _| jobs.iter().any(|job| job.id == *id));
        self.sent_jobs.extend(new_jobs.iter().map(|job| (job.id.clone(), job.clone())));
        self.last_note = new_notes.last().map_or(self.last_note, |note| note.seq);
        self.sent_run = Some(run.clone());
        let response = v1::WatchRunResponse { run: Some(run), notes: new_notes, jobs: new_jobs };
        Ok(if record.run.state.is_final() && !more { Look::Last(response) } else { Look::New(response) })
    }
}

fn brief(record: &RunRecord) -> v1::Run {
    let times =
        RunTimes { created_at: record.created_at, updated_at: record.updated_at, finished_at: record.finished_at };
    run_message(record.id, &record.run, times)
}

fn note(note: &RunNote) -> v1::RunNote {
    v1::RunNote { seq: note.seq, time: Some(convert::time::timestamp(note.at)), text: note.text.clone() }
}

fn is_final(job: &v1::Job) -> bool {
    match job.status() {
        v1::JobStatus::Succeeded | v1::JobStatus::Failed | v1::JobStatus::Cancelled => true,
        v1::JobStatus::Unspecified
        | v1::JobStatus::Queued
        | v1::JobStatus::Running
        | v1::JobStatus::Pausing
        | v1::JobStatus::Paused
        | v1::JobStatus::Cancelling => false,
    }
}
