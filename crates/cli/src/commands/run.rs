//! `inheritune run …`

use std::collections::BTreeSet;
use std::path::Path;

use inheritune_api::client::Client;
use inheritune_api::v1;
use inheritune_domain::model_card;
use inheritune_domain::report_data::ReportData;
use inheritune_domain::spec::RunSpec;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::asked::Asked;
use super::{absent, artifact, connect, page, print, read_recipe_to_run, say, screen};
use crate::args::{CreateRun, Ending, Global, Output, RunCommand};
use crate::destination::{check_apart, check_destination};
use crate::export::Existing;
use crate::failure::Failure;
use crate::screen::{Screen, is_final};
use crate::show;
use crate::watch;
use inheritune_report as report;

/// Maximum number of runs of one recipe that `--request-id-from-recipe` looks through.
const MAX_RUNS_OF_RECIPE: u32 = 1000;

pub(super) async fn run(global: &Global, command: RunCommand) -> Result<(), Failure> {
    match command {
        RunCommand::Create(args) => create(global, args).await,
        RunCommand::Get { id } => {
            let run = get(&connect(global).await?, id).await?;
            print(global, &run, "Run", show::run)
        }
        RunCommand::List(args) => {
            let request = v1::ListRunsRequest {
                status: super::on_wire::<_, v1::JobStatus>(args.status),
                page_size: args.page.limit,
                page_token: args.page.page_token,
                include_spec: false,
            };
            let reply = connect(global).await?.runs().list_runs(request).await?.into_inner();
            print(global, &reply, "ListRunsResponse", |r| page(show::runs(&r.runs), &r.next_page_token))
        }
        RunCommand::Watch { id, ending } => {
            let client = connect(global).await?;
            if ending.is_something() {
                check_ending(&ending, !is_final(get(&client, id).await?.status))?;
            }
            follow(global, &client, id, &ending).await
        }
        RunCommand::Cancel { id } => {
            let client = connect(global).await?;
            let reply = client.runs().cancel_run(v1::CancelRunRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Cancel, reply.into_inner().run).await
        }
        RunCommand::Pause { id } => {
            let client = connect(global).await?;
            let reply = client.runs().pause_run(v1::PauseRunRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Pause, reply.into_inner().run).await
        }
        RunCommand::Resume { id } => {
            let client = connect(global).await?;
            let reply = client.runs().resume_run(v1::ResumeRunRequest { id: id.to_string() }).await?;
            print_asked(global, &client, Asked::Resume, reply.into_inner().run).await
        }
        RunCommand::Retry { id } => {
            let id = id.to_string();
            let reply = connect(global).await?.runs().retry_run(v1::RetryRunRequest { id }).await?;
            print(global, &reply.into_inner().run.ok_or_else(|| absent("run"))?, "Run", show::run)
        }
        RunCommand::Report { id, output_dir } => {
            check_destination(&output_dir, Existing::Replace)?;
            let paths = write_report(&connect(global).await?, id, &output_dir).await?;
            match global.output {
                Output::Table => paths.iter().try_for_each(|path| say(&path.display().to_string())),
                Output::Json => say(&serde_json::json!({ "files": paths }).to_string()),
            }
        }
    }
}

/// Prints a run as soon as its status reflects the request.
async fn print_asked(global: &Global, client: &Client, asked: Asked, run: Option<v1::Run>) -> Result<(), Failure> {
    let run = run.ok_or_else(|| absent("run"))?;
    let id = run.id.parse().map_err(|_| absent("run id"))?;
    let run = asked.shown(run, |run| run.status, async || get(client, id).await).await?;
    print(global, &run, "Run", show::run)
}

async fn create(global: &Global, args: CreateRun) -> Result<(), Failure> {
    let spec = read_recipe_to_run(global, &args.recipe, &args.corpus)?;
    // A repeated request may belong to a run that was already exported.
    let is_new = !args.request_id_from_recipe && args.request_id.is_none();
    check_ending(&args.ending, is_new)?;
    let client = connect(global).await?;
    let run = if args.request_id_from_recipe {
        run_of_recipe(&client, &spec, &screen(global)).await?
    } else {
        create_once(&client, &spec, args.request_id.unwrap_or_else(Uuid::new_v4)).await?
    };
    if !args.watch && !args.ending.is_something() {
        return print(global, &run, "Run", |run| {
            format!("{}\n\nFollow it with: inheritune run watch {}", show::run(run), run.id)
        });
    }
    let id = run.id.parse().map_err(|_| absent("run id"))?;
    follow(global, &client, id, &args.ending).await
}

async fn create_once(client: &Client, spec: &RunSpec, request_id: Uuid) -> Result<v1::Run, Failure> {
    let request = v1::CreateRunRequest { spec: Some(spec.into()), request_id: request_id.to_string() };
    client.runs().create_run(request).await?.into_inner().run.ok_or_else(|| absent("run"))
}

/// The latest run of exactly this recipe, or a new one if that has failed or was cancelled.
async fn run_of_recipe(client: &Client, spec: &RunSpec, screen: &Screen) -> Result<v1::Run, Failure> {
    for n in 0..MAX_RUNS_OF_RECIPE {
        let run = create_once(client, spec, request_id_of(spec, n)?).await?;
        match run.status() {
            v1::JobStatus::Failed | v1::JobStatus::Cancelled | v1::JobStatus::Cancelling => {}
            v1::JobStatus::Paused | v1::JobStatus::Pausing => {
                screen.say(&format!("run {0} is paused; resume it with: inheritune run resume {0}", run.id))?;
                return Ok(run);
            }
            v1::JobStatus::Unspecified | v1::JobStatus::Queued | v1::JobStatus::Running | v1::JobStatus::Succeeded => {
                screen.say(&format!("run {} ({})", run.id, show::one_line(&run.state)))?;
                return Ok(run);
            }
        }
    }
    Err(Failure::Unsuccessful(format!("{MAX_RUNS_OF_RECIPE} runs of this recipe have failed or been cancelled")))
}

/// The request id of the `n`-th run of a recipe: a UUID made from a hash of both.
fn request_id_of(spec: &RunSpec, n: u32) -> Result<Uuid, Failure> {
    let json = serde_json::to_vec(spec).map_err(|e| Failure::Local(format!("cannot serialize the recipe: {e}")))?;
    let digest = Sha256::new().chain_update(&json).chain_update(n.to_le_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Ok(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

async fn get(client: &Client, id: Uuid) -> Result<v1::Run, Failure> {
    let request = v1::GetRunRequest { id: id.to_string() };
    client.runs().get_run(request).await?.into_inner().run.ok_or_else(|| absent("run"))
}

/// Checks that the report and the export can be written. A run that `is_new` cannot have been
/// exported yet.
fn check_ending(ending: &Ending, is_new: bool) -> Result<(), Failure> {
    if let Some(dir) = &ending.report {
        check_destination(dir, Existing::Replace)?;
    }
    let Some(dir) = &ending.export else { return Ok(()) };
    let existing = super::artifact::existing(ending.force);
    check_destination(dir, if is_new { existing } else { Existing::Replace })?;
    match &ending.report {
        Some(report) if existing == Existing::Refuse => check_apart(report, dir),
        Some(_) | None => Ok(()),
    }
}

async fn follow(global: &Global, client: &Client, id: Uuid, ending: &Ending) -> Result<(), Failure> {
    let mut screen = screen(global);
    watch::run(client, id, &mut screen).await?;
    let run = get(client, id).await?;
    if let Some(dir) = &ending.report {
        let paths = write_report(client, id, dir).await?;
        if let Some(page) = paths.first() {
            screen.say(&format!("report: {}", page.display()))?;
        }
    }
    if let (Some(dir), v1::JobStatus::Succeeded) = (&ending.export, run.status()) {
        let artifact = run.winner.as_ref().and_then(|winner| winner.checkpoint.strip_prefix("artifact://"));
        let artifact = artifact.and_then(|id| id.parse().ok()).ok_or_else(|| absent("target checkpoint"))?;
        artifact::export(client, artifact, dir, super::artifact::existing(ending.force), &screen).await?;
        let sources = run.spec.iter().filter_map(|spec| spec.corpus.as_ref()).flat_map(|corpus| &corpus.sources);
        let datasets: BTreeSet<String> = sources.filter_map(|source| model_card::dataset(source)).collect();
        let datasets: Vec<String> = datasets.into_iter().collect();
        crate::export::add_results(dir, &artifact::measured(client, artifact).await, &datasets).await?;
        screen.say(&format!("target: {}", dir.display()))?;
    }
    print(global, &run, "Run", show::run)?;
    outcome(&run)
}

fn outcome(run: &v1::Run) -> Result<(), Failure> {
    if !is_final(run.status) || run.status() == v1::JobStatus::Succeeded {
        return Ok(());
    }
    // The text of the state starts with `failed` or `cancelled`.
    Err(Failure::Unsuccessful(format!("run {} {}", run.id, show::one_line(&run.state))))
}

async fn write_report(client: &Client, id: Uuid, dir: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let request = v1::GetReportRequest { id: id.to_string() };
    let reply = client.runs().get_report(request).await?.into_inner();
    let data: ReportData = serde_json::from_str(&reply.report_json).map_err(|e| {
        Failure::Server(format!(
            "cannot read the report data ({e}); check that client and server have the same version"
        ))
    })?;
    Ok(report::write(&data, dir)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn request_ids_follow_from_the_recipe() {
        let text = include_str!("../../../../deploy/recipes/demo-full-data.toml");
        let spec = crate::recipe::parse(text, Path::new("/here")).unwrap();
        let elsewhere = crate::recipe::parse(text, Path::new("/tmp")).unwrap();
        let id = request_id_of(&spec, 0).unwrap();
        assert_eq!(id, request_id_of(&spec.clone(), 0).unwrap());
        assert_ne!(id, request_id_of(&spec, 1).unwrap());
        assert_ne!(id, request_id_of(&elsewhere, 0).unwrap());
        assert_eq!(id.get_version_num(), 8);
    }

    #[test]
    fn only_success_is_success() {
        let run = |status: v1::JobStatus| v1::Run { status: status.into(), ..v1::Run::default() };
        assert!(outcome(&run(v1::JobStatus::Succeeded)).is_ok());
        assert_eq!(outcome(&run(v1::JobStatus::Failed)).unwrap_err().exit_code(), 1);
        assert_eq!(outcome(&run(v1::JobStatus::Cancelled)).unwrap_err().exit_code(), 1);
    }
}
