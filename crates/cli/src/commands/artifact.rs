//! `inheritune artifact …`

use std::path::{Path, PathBuf};

use inheritune_api::client::Client;
use inheritune_api::v1;
use inheritune_domain::model_card::Measured;
use uuid::Uuid;

use super::{absent, connect, job, location, page, print, say, screen};
use crate::args::{ArtifactCommand, Global, ImportCheckpoint, Output};
use crate::destination::check_destination;
use crate::export::{self, Existing};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::show;

pub(super) async fn run(global: &Global, command: ArtifactCommand) -> Result<(), Failure> {
    match command {
        ArtifactCommand::Register { kind, location: place, metadata, request_id } => {
            let request = v1::RegisterArtifactRequest {
                kind: v1::ArtifactKind::from(kind).into(),
                uri: location(&place)?,
                metadata_json: metadata,
                request_id: request_id.unwrap_or_else(Uuid::new_v4).to_string(),
            };
            let reply = connect(global).await?.artifacts().register_artifact(request).await?.into_inner();
            print_artifact(global, reply.artifact)
        }
        ArtifactCommand::Import(args) => import(global, args).await,
        ArtifactCommand::Get { id } => {
            let reply = get(&connect(global).await?, id).await?;
            print(global, &reply, "GetArtifactResponse", |r| {
                r.artifact.as_ref().map(|artifact| show::artifact(artifact, &r.files)).unwrap_or_default()
            })
        }
        ArtifactCommand::List(args) => {
            let request = v1::ListArtifactsRequest {
                kind: super::on_wire::<_, v1::ArtifactKind>(args.kind),
                run_id: args.run.map(|id| id.to_string()).unwrap_or_default(),
                job_id: args.job.map(|id| id.to_string()).unwrap_or_default(),
                page_size: args.page.limit,
                page_token: args.page.page_token,
            };
            let reply = connect(global).await?.artifacts().list_artifacts(request).await?.into_inner();
            print(global, &reply, "ListArtifactsResponse", |r| page(show::artifacts(&r.artifacts), &r.next_page_token))
        }
        ArtifactCommand::Export { id, to, force } => {
            // The folder may already contain this artifact.
            check_destination(&to, Existing::Replace)?;
            let client = connect(global).await?;
            let paths = export(&client, id, &to, existing(force), &screen(global)).await?;
            export::add_results(&to, &measured(&client, id).await, &[]).await?;
            match global.output {
                Output::Table => paths.iter().try_for_each(|path| say(&path.display().to_string())),
                Output::Json => say(&serde_json::json!({ "files": paths }).to_string()),
            }
        }
        ArtifactCommand::Pin { id } => {
            let request = v1::PinArtifactRequest { id: id.to_string() };
            let reply = connect(global).await?.artifacts().pin_artifact(request).await?.into_inner();
            print_artifact(global, reply.artifact)
        }
        ArtifactCommand::Unpin { id } => {
            let request = v1::UnpinArtifactRequest { id: id.to_string() };
            let reply = connect(global).await?.artifacts().unpin_artifact(request).await?.into_inner();
            print_artifact(global, reply.artifact)
        }
        ArtifactCommand::Delete { id } => {
            let request = v1::DeleteArtifactRequest { id: id.to_string() };
            let reply = connect(global).await?.artifacts().delete_artifact(request).await?.into_inner();
            print(global, &reply, "DeleteArtifactResponse", |_| format!("deleted artifact {id}"))
        }
    }
}

/// Prints the artifact of a reply without its files; a reply without an artifact is an error.
fn print_artifact(global: &Global, artifact: Option<v1::Artifact>) -> Result<(), Failure> {
    print(global, &artifact.ok_or_else(|| absent("artifact"))?, "Artifact", |artifact| show::artifact(artifact, &[]))
}

/// Imports a checkpoint with a slice job of all its layers. Asks the server for their number first.
async fn import(global: &Global, args: ImportCheckpoint) -> Result<(), Failure> {
    let checkpoint = location(&args.checkpoint)?;
    let client = connect(global).await?;
    let request = v1::InspectRequest { checkpoint: checkpoint.clone() };
    let config = client.slicing().inspect(request).await?.into_inner().config.ok_or_else(|| absent("config"))?;
    let label = if args.label.is_empty() { label("import ", &checkpoint) } else { args.label };
    let reference = v1::CheckpointSource { checkpoint, layers: config.n_layers, ..v1::CheckpointSource::default() };
    let source = Some(v1::slice_spec::Source::Reference(reference));
    let max_shard_size_bytes = args.max_shard_size;
    let spec = v1::SliceSpec { source, max_shard_size_bytes, ..v1::SliceSpec::default() };
    let spec = v1::job_spec::Spec::Slice(spec);
    let request = v1::SubmitJobRequest {
        label,
        spec: Some(v1::JobSpec { spec: Some(spec) }),
        priority: 0,
        retry: None,
        request_id: args.request_id.unwrap_or_else(Uuid::new_v4).to_string(),
    };
    let submitted = job::submitted(&client, request).await?;
    if !args.watch {
        return job::print_submitted(global, &submitted);
    }
    let done = job::followed(global, &client, submitted.id.parse().map_err(|_| absent("job id"))?).await?;
    let Some(v1::job_outcome::Outcome::Sliced(sliced)) = done.outcome.and_then(|outcome| outcome.outcome) else {
        return Err(absent("imported checkpoint"));
    };
    let id = sliced.checkpoint_artifact_id.parse().map_err(|_| absent("artifact id"))?;
    print_artifact(global, get(&client, id).await?.artifact)
}

/// A label of bounded length. A long location keeps its end, which tells the most.
pub(super) fn label(verb: &str, checkpoint: &str) -> String {
    const MAX_CHARS: usize = 150;
    let skipped = checkpoint.chars().count().saturating_sub(MAX_CHARS);
    let end: String = checkpoint.chars().skip(skipped).collect();
    format!("{verb}{}{end}", if skipped > 0 { "…" } else { "" })
}

/// The meaning of `--force`.
pub(super) fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Refuse }
}

/// Copies the artifact's files to `to`.
pub(super) async fn export(
    client: &Client,
    id: Uuid,
    to: &Path,
    existing: Existing,
    screen: &Screen,
) -> Result<Vec<PathBuf>, Failure> {
    let files = get(client, id).await?.files;
    let bar = screen.bytes("export", files.iter().map(|file| file.size_bytes).sum());
    let written = export::export(&files, to, existing, &bar).await;
    bar.finish_and_clear();
    written
}

/// The newest score of a checkpoint for each task and metric; empty if the server has none or
/// fails.
pub(super) async fn measured(client: &Client, id: Uuid) -> Vec<Measured> {
    let Ok(reply) = client.evaluation().list_model_scores(v1::ListModelScoresRequest::default()).await else {
        return Vec::new();
    };
    let checkpoint = format!("artifact://{id}");
    let mut found: Vec<Measured> = Vec::new();
    let models = reply.into_inner().models.into_iter().filter(|model| model.checkpoint == checkpoint);
    for v1::Score { task, metric, value, .. } in models.flat_map(|model| model.scores) {
        if !found.iter().any(|known| known.task == task && known.metric == metric) {
            found.push(Measured { task, metric, value });
        }
    }
    found
}

async fn get(client: &Client, id: Uuid) -> Result<v1::GetArtifactResponse, Failure> {
    Ok(client.artifacts().get_artifact(v1::GetArtifactRequest { id: id.to_string() }).await?.into_inner())
}
