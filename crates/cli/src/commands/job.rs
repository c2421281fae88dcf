//! `inheritune job …`

use std::path::PathBuf;

use inheritune_api::client::Client;
use inheritune_api::v1;
use uuid::Uuid;

use super::asked::Asked;
use super::{absent, connect, current_dir, page, print, read_file, screen};
use crate::args::{Global, JobCommand, Submission, SubmitJob};
use crate::destination::check_destination;
use crate::export::Existing;
use crate::failure::Failure;
use crate::job_file;
use crate::show;
use crate::tensorboard::EventFile;
use crate::watch;

pub(super) async fn run(global: &Global, command: JobCommand) -> Result<(), Failure> {
    match command {
        JobCommand::Submit(args) => submit(global, args).await,
        JobCommand::Get { id } => {
            let job = get(&connect(global).await?, id).await?;
            print(global, &job, "Job", show::job)
        }
        JobCommand::List(args) => {
            let request = v1::ListJobsRequest {
                run_id: args.run.map(|id| id.to_string()).unwrap_or_default(),
                kind: super::on_wire::<_, v1::JobKind>(args.kind),
                status: super::on_wire::<_, v1::JobStatus>(args.status),
                page_size: args.page.limit,
                page_token: args.page.page_token,
                include_spec: false,
            };
            let reply = connect(global).await?.jobs().list_jobs(request).await?.into_inner();
            print(global, &reply, "ListJobsResponse", |r| page(show::jobs(&r.jobs), &r.next_page_token))
        }
        JobCommand::Watch { id } => follow(global, &connect(global).await?, id).await,
        JobCommand::Metrics { id, tensorboard } => metrics(global, id, tensorboard).await,
        JobCommand::Cancel { id } => {
            let client = connect(global).await?;
            let reply = client.jobs().cancel_job(v1::CancelJobRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Cancel, reply.into_inner().job).await
        }
        JobCommand::Pause { id } => {
            let client = connect(global).await?;
            let reply = client.jobs().pause_job(v1::PauseJobRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Pause, reply.into_inner().job).await
        }
        JobCommand::Resume { id } => {
            let client = connect(global).await?;
            let reply = client.jobs().resume_job(v1::ResumeJobRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Resume, reply.into_inner().job).await
        }
        JobCommand::Retry { id } => {
            let id = id.to_string();
            let reply = connect(global).await?.jobs().retry_job(v1::RetryJobRequest { id }).await?;
            print(global, &reply.into_inner().job.ok_or_else(|| absent("job"))?, "Job", show::job)
        }
    }
}

async fn get(client: &Client, id: Uuid) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { id: id.to_string() };
    client.jobs().get_job(request).await?.into_inner().job.ok_or_else(|| absent("job"))
}

/// Prints a job as soon as its status reflects the request.
async fn print_asked(global: &Global, client: &Client, asked: Asked, job: Option<v1::Job>) -> Result<(), Failure> {
    let job = job.ok_or_else(|| absent("job"))?;
    let id = job.id.parse().map_err(|_| absent("job id"))?;
    let job = asked.shown(job, |job| job.status, async || get(client, id).await).await?;
    print(global, &job, "Job", show::job)
}

async fn submit(global: &Global, args: SubmitJob) -> Result<(), Failure> {
    let spec = job_file::parse(&read_file(&args.spec)?, &args.spec, &current_dir()?)?;
    let (request, watch) = request((&spec).into(), args.submission);
    let client = connect(global).await?;
    let job = submitted(&client, request).await?;
    if !watch {
        return print_submitted(global, &job);
    }
    follow(global, &client, job.id.parse().map_err(|_| absent("job id"))?).await
}

/// The request that submits a job, and whether to follow the job.
pub(super) fn request(spec: v1::JobSpec, submission: Submission) -> (v1::SubmitJobRequest, bool) {
    let Submission { label, priority, request_id, watch } = submission;
    let request_id = request_id.unwrap_or_else(Uuid::new_v4).to_string();
    (v1::SubmitJobRequest { label, spec: Some(spec), priority, retry: None, request_id }, watch)
}

/// Submits a job.
pub(super) async fn submitted(client: &Client, request: v1::SubmitJobRequest) -> Result<v1::Job, Failure> {
    client.jobs().submit_job(request).await?.into_inner().job.ok_or_else(|| absent("job"))
}

/// Prints a submitted job and the command that follows it.
pub(super) fn print_submitted(global: &Global, job: &v1::Job) -> Result<(), Failure> {
    print(global, job, "Job", |job| format!("{}\n\nFollow it with: inheritune job watch {}", show::job(job), job.id))
}

async fn follow(global: &Global, client: &Client, id: Uuid) -> Result<(), Failure> {
    let job = watch::job(client, id, &mut screen(global)).await?;
    print(global, &job, "Job", show::job)?;
    check_succeeded(&job)
}

/// Follows a job until it ends; a job that does not succeed is an error.
pub(super) async fn followed(global: &Global, client: &Client, id: Uuid) -> Result<v1::Job, Failure> {
    let job = watch::job(client, id, &mut screen(global)).await?;
    check_succeeded(&job)?;
    Ok(job)
}

async fn metrics(global: &Global, id: Uuid, tensorboard: Option<PathBuf>) -> Result<(), Failure> {
    if let Some(dir) = &tensorboard {
        check_destination(dir, Existing::Replace)?;
    }
    let client = connect(global).await?;
    let mut events = match tensorboard {
        None => None,
        Some(dir) => {
            let reply = client.jobs().get_job(v1::GetJobRequest { id: id.to_string() }).await?;
            Some(EventFile::create(&dir, &reply.into_inner().job.ok_or_else(|| absent("job"))?)?)
        }
    };
    let mut metric_points = Vec::new();
    let job = watch::metrics(&client, id, &mut screen(global), |points| {
        if let Some(events) = &mut events {
            events.append(&points)?;
        }
        metric_points.extend(points);
        Ok(())
    })
    .await?;
    let all = v1::WatchJobResponse { job: Some(job), metric_points };
    print(global, &all, "WatchJobResponse", |all| {
        let written = events.as_ref().map(|events| format!("\n\nWritten to {}", events.path().display()));
        show::metrics(&all.metric_points) + &written.unwrap_or_default()
    })
}

fn check_succeeded(job: &v1::Job) -> Result<(), Failure> {
    if job.status() == v1::JobStatus::Succeeded {
        return Ok(());
    }
    let status = show::status(job.status).to_lowercase();
    let because = if job.error.is_empty() { String::new() } else { format!(": {}", show::one_line(&job.error)) };
    Err(Failure::Unsuccessful(format!("job {} {status}{because}", job.id)))
}
