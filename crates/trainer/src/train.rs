//! The train job: fetches the inputs, trains on a dedicated thread, and publishes the checkpoint.

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
use crate::inputs::{Inputs, read_json};
use crate::process_group::Ranks;
use crate::recorder;
use crate::resume::{self, WEIGHTS_FILE};
use crate::retry::Attempts;
use crate::training_loop::{Finished, Interrupted, Training};
use crate::{file_error, lm_error};

const README_FILE: &str = "README.md";

/// The metadata that the artifact's row keeps. Together with the artifact's id it makes a
/// [`Trained`].
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    steps: u64,
    tokens_seen: u64,
    epochs: f64,
    first_loss_nats: f64,
    last_loss_nats: f64,
    wall_s: f64,
}

/// Runs one train job.
///
/// # Errors
/// Same as [`Training::run`]; also if the token set was made with a different tokenizer than the
/// checkpoint's.
pub async fn run(spec: TrainSpec, context: JobContext, ranks: &Ranks) -> Result<Trained, JobError> {
    if let Some(trained) = published_before(&context, &spec.training).await? {
        return Ok(trained);
    }
    let (checkpoint, config) = context.fetch_checkpoint(&spec.checkpoint, "checkpoint").await?;
    check_memory(&context.ceilings, &config, &spec.training)?;
    let tokens = context.fetch(&Location::Artifact(spec.tokens), "tokens").await?;
    check_tokenizer((&checkpoint, &spec.checkpoint), &tokens).await?;
    let inputs = Inputs { spec, checkpoint, tokens };
    let mut attempts = Attempts::new(&inputs.spec.training);
    let finished = loop {
        match train(&context, &inputs, (attempts.shape(), ranks.clone())).await? {
            Ok(finished) => break finished,
            Err(interrupted) => attempts.after(interrupted)?,
        }
    };
    let artifact = publish(&context, &inputs, finished).await?;
    resume::clear(&context.store, context.lease.job, &inputs.spec.training).await;
    trained(&artifact)
}

/// Trains once, from the newest training state to the end.
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
    // When the training drops its recorder, the writer finishes what it was given and returns.
    let (ended, written) = tokio::join!(context.run_blocking("train", move || Ok(training.run(&ranks))), writer.run());
    device::release_memory();
    // If the writer failed, the training stopped because of it, so its error is the one to report.
    written?;
    ended
}

/// The result of an earlier attempt that published it but died before it could report it.
async fn published_before(context: &JobContext, training: &TrainingSpec) -> Result<Option<Trained>, JobError> {
    let job = context.lease.job;
    let filter = ArtifactFilter { kind: Some(ArtifactKind::Checkpoint), job: Some(job), run: None };
    let found = context.store.list_artifacts(&filter, &Page { size: 1, token: None }).await?;
    let Some(artifact) = found.items.first() else { return Ok(None) };
    tracing::info!(artifact = %artifact.id, "an earlier attempt already published the result");
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

/// Rejects a training that cannot fit in memory. If a ceiling is configured, the whole estimate
/// must fit, with the micro-batch that a retry after running out of memory would use. Otherwise
/// only weights, gradients and optimizer moments must fit.
fn check_memory(ceilings: &Ceilings, config: &DecoderConfig, training: &TrainingSpec) -> Result<(), JobError> {
    let micro_batch = StepShape::of(training).halved().map_or(training.micro_batch, |shape| shape.micro_batch);
    let found = estimate(config, &TrainingSpec { micro_batch, ..training.clone() }, 0, 1.0);
    let (bytes, machine_bytes) = match (ceilings.max_memory_bytes, device::default_device().map_err(lm_error)?) {
        (Some(_), _) => (found.state_bytes.saturating_add(found.activation_bytes), u64::MAX),
        (None, Device::Cpu) => (found.state_bytes, machine::memory_bytes()),
        // The memory of other devices is not known in advance: allocation fails if it is too small.
        (None, _) => return Ok(()),
    };
    ceilings.check_memory(bytes, machine_bytes).map_err(JobError::Permanent)
}

/// Rejects a token set whose ids mean something else to the model.
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
        "the token set was made with a different tokenizer (SHA-256 {of_tokens}) than the checkpoint's \
         ({of_checkpoint}): tokenize the corpus with the checkpoint's tokenizer"
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

/// The model card's section about the training.
fn training_section(spec: &TrainSpec, finished: &Finished) -> String {
    let (training, state) = (&spec.training, &finished.state);
    format!(
        "\n## Training\n\n| | |\n|---|---|\n| steps | {} |\n| tokens seen | {} |\n| passes over the data | {:.2} |\n\
         | tokens per step | {} |\n| block size | {} |\n| precision | {} |\n| learning rate | {} to {} |\n\
         | optimizer | AdamW, betas {} and {}, weight decay {} |\n\
         | training loss, first and last | {:.4}, {:.4} nats |\n| seed of the data order | {} |\n",
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
