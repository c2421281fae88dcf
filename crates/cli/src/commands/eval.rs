//! `inheritune eval …`

use inheritune_api::client::Client;
use inheritune_api::v1;
use inheritune_domain::benchmark;
use uuid::Uuid;

use super::{absent, artifact, connect, job, location, print, say, say_text, screen};
use crate::args::{EvalCommand, Global, Output, RunBenchmarks};
use crate::destination::check_destination;
use crate::failure::Failure;
use crate::harness_format;
use crate::scores;
use crate::show;

pub(super) async fn run(global: &Global, command: EvalCommand) -> Result<(), Failure> {
    let client = connect(global).await?;
    match command {
        EvalCommand::Tasks { names } => {
            let mut reply = client.evaluation().list_tasks(v1::ListTasksRequest {}).await?.into_inner();
            if names.is_empty() {
                return print(global, &reply, "ListTasksResponse", scores::tasks);
            }
            if let Some(unknown) = names.iter().find(|name| !reply.tasks.iter().any(|task| task.name == **name)) {
                let problem = benchmark::select(unknown).err();
                return Err(Failure::invalid(problem.unwrap_or_else(|| format!("the server has no task `{unknown}`"))));
            }
            reply.tasks.retain(|task| names.contains(&task.name));
            print(global, &reply, "ListTasksResponse", scores::tasks_in_full)
        }
        EvalCommand::Run(args) => measure(global, &client, args).await,
        EvalCommand::Scores { job } => {
            let (_, evaluated) = evaluation(&client, job).await?;
            print(global, &evaluated, "Evaluated", scores::evaluated)
        }
        EvalCommand::Compare { first, second } => {
            let request = v1::CompareScoresRequest { first_id: first.to_string(), second_id: second.to_string() };
            let reply = client.evaluation().compare_scores(request).await?.into_inner();
            print(global, &reply, "CompareScoresResponse", scores::compared)
        }
        EvalCommand::Leaderboard { run } => {
            let run_id = run.map(|id| id.to_string()).unwrap_or_default();
            let mut request = v1::ListModelScoresRequest { run_id, ..v1::ListModelScoresRequest::default() };
            let mut reply = v1::ListModelScoresResponse::default();
            loop {
                let page = client.evaluation().list_model_scores(request.clone()).await?.into_inner();
                reply.models.extend(page.models);
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
            print(global, &reply, "ListModelScoresResponse", scores::leaderboard)
        }
        EvalCommand::Export { job, to, force } => {
            check_destination(&to, artifact::existing(force))?;
            let (spec, evaluated) = evaluation(&client, job).await?;
            let id = evaluated.scores_artifact_id.parse().map_err(|_| absent("scores"))?;
            let scratch =
                tempfile::tempdir().map_err(|e| Failure::Local(format!("cannot create a temporary folder: {e}")))?;
            let existing = artifact::existing(true);
            artifact::export(&client, id, scratch.path(), existing, &screen(global)).await?;
            let paths = harness_format::write(&spec, &evaluated, scratch.path(), &to, artifact::existing(force))?;
            match global.output {
                Output::Table => paths.iter().try_for_each(|path| say(&path.display().to_string())),
                Output::Json => say(&serde_json::json!({ "files": paths }).to_string()),
            }
        }
    }
}

async fn measure(global: &Global, client: &Client, args: RunBenchmarks) -> Result<(), Failure> {
    let checkpoint = location(&args.checkpoint)?;
    let data = location(&args.data)?;
    let task = |name: &String| v1::EvaluationTask {
        task: Some(v1::evaluation_task::Task::Benchmark(v1::BenchmarkTask {
            name: name.clone(),
            data: data.clone(),
            limit: args.limit,
        })),
    };
    let mut submission = args.submission;
    if submission.label.is_empty() {
        submission.label = artifact::label("", &checkpoint);
    }
    let spec = v1::EvaluateSpec {
        checkpoint,
        tasks: args.tasks.iter().map(task).collect(),
        max_batch_tokens: args.max_batch_tokens,
        add_bos_token: args.add_bos_token,
        one_by_one: args.one_by_one,
        baseline_artifact_id: args.baseline.map(|id| id.to_string()).unwrap_or_default(),
        ..v1::EvaluateSpec::default()
    };
    let spec = v1::JobSpec { spec: Some(v1::job_spec::Spec::Evaluate(spec)) };
    let (request, watch) = job::request(spec, submission);
    let submitted = job::submitted(client, request).await?;
    if !watch {
        return job::print_submitted(global, &submitted);
    }
    let done = job::followed(global, client, submitted.id.parse().map_err(|_| absent("job id"))?).await?;
    match global.output {
        Output::Table => say_text(&format!("job {}\n\n{}", done.id, scores::evaluated(&outcome(&done)?))),
        Output::Json => say(&show::json(&done, "Job")?),
    }
}

/// The spec and the outcome of an evaluate job that has succeeded.
async fn evaluation(client: &Client, id: Uuid) -> Result<(v1::EvaluateSpec, v1::Evaluated), Failure> {
    let reply = client.jobs().get_job(v1::GetJobRequest { id: id.to_string() }).await?.into_inner();
    let job = reply.job.ok_or_else(|| absent("job"))?;
    let evaluated = outcome(&job)?;
    match job.spec.and_then(|spec| spec.spec) {
        Some(v1::job_spec::Spec::Evaluate(spec)) => Ok((spec, evaluated)),
        _ => Err(absent("evaluation")),
    }
}

fn outcome(job: &v1::Job) -> Result<v1::Evaluated, Failure> {
    match job.outcome.clone().and_then(|outcome| outcome.outcome) {
        Some(v1::job_outcome::Outcome::Evaluated(evaluated)) => Ok(evaluated),
        _ => Err(Failure::invalid(format!("job {} is not a finished evaluation", job.id))),
    }
}
