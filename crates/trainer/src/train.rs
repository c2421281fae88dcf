//! The train job: fetch, train on a thread of its own, publish a checkpoint that loads anywhere.

use std::path::Path;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::artifact::{Artifact, ArtifactKind, Location};
use inheritune_domain::model_card::CardMetadata;
use inheritune_domain::spec::{Ceilings, TrainSpec, Trained, TrainingSpec};
use inheritune_lm::tokenizer::vocabulary_sha256;
use inheritune_lm::tokens::{TOKENS_FILE, TokenSetMeta};
use inheritune_lm::{Device, device};
use inheritune_runtime::machine;
use inheritune_runtime::worker::{JobContext, JobError};
use inheritune_store::artifacts::ArtifactFilter;
use inheritune_store::jobs::Page;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::data_order::StepShape;
use crate::estimate::estimate;
use crate::gang::Ranks;
use crate::inputs::{Inputs, read_json};
use crate::recorder;
use crate::resume::{self, WEIGHTS_FILE};
use crate::retry::Tries;
use crate::training_loop::{Finished, Interrupted, Training};
use crate::{file_error, lm_error};

const README_FILE: &str = "README.md";

/// What the artifact's row keeps of a training; with the artifact's id, a [`Trained`].
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    steps: u64,
    tokens_seen: u64,
    epochs: f64,
    first_loss_nats: f64,
    last_loss_nats: f64,
    wall_s: f64,
}

/// Carries out one train job.
///
/// # Errors
/// As [`Training::run`]; besides, a token set of another tokenizer than the checkpoint's.
pub async fn run(spec: TrainSpec, context: JobContext, ranks: &Ranks) -> Result<Trained, JobError> {
    if let Some(trained) = published_before(&context, &spec.training).await? {
        return Ok(trained);
    }
    let (checkpoint, config) = context.fetch_checkpoint(&spec.checkpoint, "checkpoint").await?;
    check_memory(&context.ceilings, &config, &spec.training)?;
    let tokens = context.fetch(&Location::Artifact(spec.tokens), "tokens").await?;
    check_tokenizer((&checkpoint, &spec.checkpoint), &tokens).await?;
    let inputs = Inputs { spec, checkpoint, tokens };
    let mut tries = Tries::new(&inputs.spec.training);
    let finished = loop {
        match train(&context, &inputs, (tries.shape(), ranks.clone())).await? {
            Ok(finished) => break finished,
            Err(interrupted) => tries.after(interrupted)?,
        }
    };
    let artifact = publish(&context, &inputs, finished).await?;
    resume::clear(&context.store, context.lease.job, &inputs.spec.training).await;
    trained(&artifact)
}

/// One try, from the newest training state to the end.
async fn train(
    context: &JobContext,
    inputs: &Inputs,
    (shape, ranks): (StepShape, Ranks),
) -> Result<Result<Finished, Interrupted>, JobError> {
    let saved = resume::newest(context, &inputs.spec).await?;
    let (recorder, writer) = recorder::channel(context.clone(), inputs.clone());
    let training = Training {
        inputs: inputs.clone(),
        scratch: context.cache_dir.clone(),
        saved,
        shape,
        threads: context.threads,
        stop: context.stop.clone(),
        progress: context.progress.clone(),
        recorder,
    };
    // The writer ends when the training drops its side, with all that was handed over written.
    let (ended, written) = tokio::join!(context.run_blocking("train", move || Ok(training.run(&ranks))), writer.run());
    device::release_memory();
    // A writer that failed made the training stop: its error is the reason.
    written?;
    ended
}

/// The result of an earlier attempt that published it and died before it could say so.
async fn published_before(context: &JobContext, training: &TrainingSpec) -> Result<Option<Trained>, JobError> {
    let job = context.lease.job;
    let filter = ArtifactFilter { kind: Some(ArtifactKind::Checkpoint), job: Some(job), run: None };
    let found = context.store.list_artifacts(&filter, &Page { size: 1, token: None }).await?;
    let Some(artifact) = found.items.first() else { return Ok(None) };
    tracing::info!(artifact = %artifact.id, "an earlier attempt has published the result");
    resume::clear(&context.store, job, training).await;
    trained(artifact).map(Some)
}

fn trained(artifact: &Artifact) -> Result<Trained, JobError> {
    let summary: Summary = serde_json::from_value(artifact.metadata.clone())
        .map_err(|error| JobError::Permanent(format!("metadata of artifact {}: {error}", artifact.id)))?;
    Ok(Trained {
        checkpoint: artifact.id,
        steps: summary.steps,
        tokens_seen: summary.tokens_seen,
        epochs: summary.epochs,
        first_loss_nats: summary.first_loss_nats,
        last_loss_nats: summary.last_loss_nats,
        wall_s: summary.wall_s,
    })
}

/// Refuses what cannot fit: where the site has set a ceiling by the whole estimate, in the smallest micro-batches that a
/// lack of memory is answered with; else what weights, gradients and moments alone leave no room for.
fn check_memory(ceilings: &Ceilings, config: &DecoderConfig, training: &TrainingSpec) -> Result<(), JobError> {
    let micro_batch = StepShape::of(training).halved().map_or(training.micro_batch, |shape| shape.micro_batch);
    let found = estimate(config, &TrainingSpec { micro_batch, ..training.clone() }, 0, 1.0);
    let (bytes, machine_bytes) = match (ceilings.max_memory_bytes, device::default_device().map_err(lm_error)?) {
        (Some(_), _) => (found.state_bytes.saturating_add(found.activation_bytes), u64::MAX),
        (None, Device::Cpu) => (found.state_bytes, machine::memory_bytes()),
        // What the device has, the allocation will tell.
        (None, _) => return Ok(()),
    };
    ceilings.check_memory(bytes, machine_bytes).map_err(JobError::Permanent)
}

/// Refuses tokens whose ids mean other words to the model.
async fn check_tokenizer((checkpoint, location): (&Path, &Location), tokens: &Path) -> Result<(), JobError> {
    let of_checkpoint =
        vocabulary_sha256(checkpoint).map_err(|e| lm_error(e.shown_as(checkpoint, &location.to_string())))?;
    let Some(of_checkpoint) = of_checkpoint else { return Ok(()) };
    let meta: TokenSetMeta = read_json(&tokens.join(TOKENS_FILE)).await?;
    let Some(of_tokens) = meta.tokenizer_sha256 else { return Ok(()) };
    if of_tokens == of_checkpoint {
        return Ok(());
    }
    Err(JobError::Permanent(format!(
        "the token set was made with another tokenizer (SHA-256 {of_tokens}) than the checkpoint's ({of_checkpoint}): \
         tokenize the corpus with the checkpoint's own"
    )))
}

async fn publish(context: &JobContext, inputs: &Inputs, finished: Finished) -> Result<Artifact, JobError> {
    let Inputs { spec, checkpoint, .. } = inputs;
    let state = &finished.state;
    let mut artifact = context.store.begin_artifact(ArtifactKind::Checkpoint, context.lease);
    artifact.put_file(WEIGHTS_FILE, &finished.dir.join(WEIGHTS_FILE)).await?;
    inputs.put_model_files(&mut artifact).await?;
    let card = checkpoint.join(README_FILE);
    let card = if card.exists() {
        tokio::fs::read_to_string(&card).await.map_err(|error| file_error(&card, error))?
    } else {
        CardMetadata::default().to_yaml()
    };
    artifact.put_bytes(README_FILE, (card + &training_section(spec, &finished)).into()).await?;

    let summary = Summary {
        steps: state.step,
        tokens_seen: state.tokens_seen,
        epochs: finished.epochs,
        first_loss_nats: state.first_loss_nats.unwrap_or(f64::NAN),
        last_loss_nats: state.last_loss_nats.unwrap_or(f64::NAN),
        wall_s: state.wall_s,
    };
    let mut metadata = json!(summary);
    metadata["family"] = json!(finished.config.family);
    metadata["layers"] = json!(finished.config.n_layers);
    metadata["parameters"] = json!(finished.config.parameters());
    metadata["trained_from"] = json!(spec.checkpoint.to_string());
    let artifact = artifact.publish(Some(state.step), metadata).await?;
    tracing::info!(artifact = %artifact.id, steps = state.step, wall_s = state.wall_s, "trained checkpoint published");
    Ok(artifact)
}

/// What the model card says of the training.
fn training_section(spec: &TrainSpec, finished: &Finished) -> String {
    let (training, state) = (&spec.training, &finished.state);
    format!(
        "\n## Training\n\n| | |\n|---|---|\n| steps | {} |\n| tokens seen | {} |\n| passes over the data | {:.2} |\n\
         | tokens a step | {} |\n| block size | {} |\n| precision | {} |\n| learning rate | {} to {} |\n| optimizer | AdamW, betas {} and {}, \
         weight decay {} |\n| training loss, first and last | {:.4}, {:.4} nats |\n| seed of the data order | {} |\n",
        state.step,
        state.tokens_seen,
        finished.epochs,
        training.tokens_per_step(),
        training.block_size,
        training.precision.as_str(),
        training.lr_max,
        training.lr_min,
        training.beta1,
        training.beta2,
        training.weight_decay,
        state.first_loss_nats.unwrap_or(f64::NAN),
        state.last_loss_nats.unwrap_or(f64::NAN),
        spec.seed,
    )
}
