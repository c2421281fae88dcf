//! How a training goes on after a stop: what is saved, and which of the saved states is taken up.
//!
//! A training state holds the weights, both moments of AdamW and [`TrainingState`]. The data need nothing but the
//! step number ([`crate::data_order`]), and nothing in a step is random, so a resumed training gives the weights of an
//! uninterrupted one bit for bit (on a CPU, with the same number of threads).

use std::path::{Path, PathBuf};

use inheritune_domain::artifact::{Artifact, Location};
use inheritune_domain::id::{JobId, Sha256Digest};
use inheritune_domain::spec::{TrainSpec, TrainingSpec};
use inheritune_lm::optimizer::AdamW;
use inheritune_lm::{Decoder, LmError, Snapshot};
use inheritune_objects::ObjectError;
use inheritune_runtime::worker::{JobContext, JobError};
use inheritune_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{file_error, lm_error};

/// The weights; as in a checkpoint.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The optimizer's moments and step count.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The [`TrainingState`].
pub const STATE_FILE: &str = "state.json";
const VERSION: u32 = 1;
/// In the metadata of a state that was the best when it was saved: its validation loss in nats.
const BEST_KEY: &str = "best_validation_nats";

/// Where a training stands, besides weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Version of this file.
    pub version: u32,
    /// Digest of the job's [`TrainSpec`]: a state of another training is not taken up.
    pub spec_sha256: Sha256Digest,
    /// Updates made.
    pub step: u64,
    /// Tokens behind them.
    pub tokens_seen: u64,
    /// Time spent training so far, over all attempts.
    pub wall_s: f64,
    /// Loss of the first step's micro-batches, before any update; none before the first step.
    pub first_loss_nats: Option<f64>,
    /// Loss of the last logged step.
    pub last_loss_nats: Option<f64>,
    /// Sum of the losses of the steps since the last metric point.
    pub window_loss_sum: f64,
    /// Those steps.
    pub window_steps: u64,
    /// Lowest validation loss so far, where states are kept by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_validation_nats: Option<f64>,
}

impl TrainingState {
    /// Before the first step.
    pub fn start(spec: &TrainSpec) -> Self {
        Self {
            version: VERSION,
            spec_sha256: spec.digest(),
            step: 0,
            tokens_seen: 0,
            wall_s: 0.0,
            first_loss_nats: None,
            last_loss_nats: None,
            window_loss_sum: 0.0,
            window_steps: 0,
            best_validation_nats: None,
        }
    }
}

/// A state to go on from, in a local folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Holds the weights and the moments.
    pub dir: PathBuf,
    /// Where the training stands.
    pub state: TrainingState,
}

/// A training as it stands between two steps, in memory of its own.
#[derive(Debug)]
pub struct Moment {
    weights: Snapshot,
    optimizer: Snapshot,
    state: TrainingState,
    /// Its validation loss is the lowest so far.
    is_best: bool,
}

impl Moment {
    /// Copies the model and the optimizer.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn of(model: &Decoder, optimizer: &AdamW, (state, is_best): (&TrainingState, bool)) -> Result<Self, LmError> {
        Ok(Self { weights: model.snapshot()?, optimizer: optimizer.snapshot()?, state: state.clone(), is_best })
    }

    /// What its artifact's row keeps of it.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({ "step": self.state.step });
        if self.is_best {
            metadata[BEST_KEY] = json!(self.state.best_validation_nats);
        }
        metadata
    }

    /// Updates made by then.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Writes it into the new folder `dir`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(self, dir: &Path) -> Result<(), JobError> {
        std::fs::create_dir_all(dir).map_err(|error| file_error(dir, error))?;
        self.weights.write(&dir.join(WEIGHTS_FILE)).map_err(lm_error)?;
        self.optimizer.write(&dir.join(OPTIMIZER_FILE)).map_err(lm_error)?;
        let path = dir.join(STATE_FILE);
        let json = serde_json::to_vec_pretty(&self.state)
            .map_err(|error| JobError::Retryable(format!("{STATE_FILE}: {error}")))?;
        std::fs::write(&path, json).map_err(|error| file_error(&path, error))
    }
}

/// The newest training state of this job that is whole and of the same spec, fetched; none where there is none.
///
/// # Errors
/// The store does not answer. A damaged state is no error: it is logged and the one before is taken.
pub async fn newest(context: &JobContext, spec: &TrainSpec) -> Result<Option<Saved>, JobError> {
    for artifact in context.store.training_states(context.lease.job).await? {
        let dir = context.cache_dir.join(format!("resume-{}", artifact.id));
        match fetch(&context.store, &artifact, &dir, spec).await {
            Ok(state) => {
                tracing::info!(artifact = %artifact.id, step = state.step, "going on from a training state");
                return Ok(Some(Saved { dir, state }));
            }
            Err(Unusable::Store(error)) if error.is_retryable() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(artifact = %artifact.id, %error, "training state cannot be used; trying the one before")
            }
        }
    }
    Ok(None)
}

/// Deletes training states of `job` but for those that are pinned, and the newest and the best that `training` keeps. What
/// cannot be deleted is logged and left.
pub async fn prune(store: &Store, job: JobId, training: &TrainingSpec) {
    delete_states(store, job, (training.keep_newest as usize, training.keep_best)).await;
}

/// Deletes them but for the pinned ones and the best, once the job's result is published: see [`crate::train::run`].
pub async fn clear(store: &Store, job: JobId, training: &TrainingSpec) {
    delete_states(store, job, (0, training.keep_best)).await;
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    State(String),
}

impl From<ObjectError> for Unusable {
    fn from(error: ObjectError) -> Self {
        Self::Store(error.into())
    }
}

async fn fetch(store: &Store, artifact: &Artifact, dir: &Path, spec: &TrainSpec) -> Result<TrainingState, Unusable> {
    let on_file = |path: &Path, source| StoreError::File { path: path.display().to_string(), source };
    let folder = store.open(&Location::Artifact(artifact.id)).await?;
    tokio::fs::create_dir_all(dir).await.map_err(|error| on_file(dir, error))?;
    folder.fetch(dir).await?;
    for name in [WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE] {
        if !folder.has(name) {
            return Err(Unusable::State(format!("has no {name}")));
        }
    }
    let path = dir.join(STATE_FILE);
    let json = tokio::fs::read(&path).await.map_err(|error| on_file(&path, error))?;
    let state: TrainingState =
        serde_json::from_slice(&json).map_err(|error| Unusable::State(format!("{STATE_FILE}: {error}")))?;
    if state.version != VERSION {
        return Err(Unusable::State(format!("{STATE_FILE} is of version {}; {VERSION} is read", state.version)));
    }
    if state.spec_sha256 != spec.digest() {
        return Err(Unusable::State("belongs to another spec".to_owned()));
    }
    Ok(state)
}

async fn delete_states(store: &Store, job: JobId, keep: (usize, bool)) {
    let states = match store.training_states(job).await {
        Ok(states) => states,
        Err(error) => {
            tracing::warn!(%job, %error, "training states cannot be listed; old ones stay");
            return;
        }
    };
    for state in surplus(states, keep) {
        if let Err(error) = store.delete_artifact(state.id).await {
            tracing::warn!(artifact = %state.id, %error, "an old training state cannot be deleted");
        }
    }
}

/// Of `states`, newest first, those that are neither pinned, nor among the `newest` first, nor, where the best is wanted,
/// it.
fn surplus(states: Vec<Artifact>, (newest, best): (usize, bool)) -> impl Iterator<Item = Artifact> {
    let loss = |state: &Artifact| state.metadata[BEST_KEY].as_f64().unwrap_or(f64::INFINITY);
    let lowest = states.iter().map(loss).fold(f64::INFINITY, f64::min);
    let is_best = move |state: &Artifact| best && lowest.is_finite() && loss(state) <= lowest;
    states.into_iter().skip(newest).filter(move |state| !state.pinned && !is_best(state))
}
