//! How a training resumes after a stop: what is saved, and which saved state is used.
//!
//! A training state holds the weights, both moments of AdamW and [`TrainingState`]. The step number
//! alone determines the position in the data ([`crate::data_order`]), and nothing in a step is
//! random. A resumed training therefore gives the same weights as an uninterrupted one, bit for bit
//! (on a CPU, with the same number of threads).

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

/// The file of the weights, named as in a checkpoint.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file of the optimizer's moments and step count.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file of the [`TrainingState`].
pub const STATE_FILE: &str = "state.json";
const VERSION: u32 = 1;
/// Metadata key of a state that was the best when it was saved; its value is the validation loss in
/// nats.
const BEST_KEY: &str = "best_validation_nats";

/// The progress of a training: everything that is saved besides weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Version of the file format.
    pub version: u32,
    /// Digest of the job's [`TrainSpec`]. A state with a different digest is never resumed.
    pub spec_sha256: Sha256Digest,
    /// Number of optimizer steps done.
    pub step: u64,
    /// Number of tokens trained on in those steps.
    pub tokens_seen: u64,
    /// Training time in seconds so far, over all attempts.
    pub wall_s: f64,
    /// Mean loss of the first step's micro-batches, before any update; `None` before the first
    /// step.
    pub first_loss_nats: Option<f64>,
    /// Loss of the last logged step.
    pub last_loss_nats: Option<f64>,
    /// Sum of the losses of the steps since the last metric point.
    pub window_loss_sum: f64,
    /// Number of steps since the last metric point.
    pub window_steps: u64,
    /// Lowest validation loss so far, if the best state is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_validation_nats: Option<f64>,
}

impl TrainingState {
    /// The state before the first step.
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

/// A saved training state in a local folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The folder of the weights and moments.
    pub dir: PathBuf,
    /// The progress of the training.
    pub state: TrainingState,
}

/// An in-memory copy of a training between two steps.
#[derive(Debug)]
pub struct TrainingSnapshot {
    weights: Snapshot,
    optimizer: Snapshot,
    state: TrainingState,
    /// Whether its validation loss is the lowest so far.
    is_best: bool,
}

impl TrainingSnapshot {
    /// Copies the model and the optimizer.
    ///
    /// # Errors
    /// There is not enough memory for the copy.
    pub fn of(model: &Decoder, optimizer: &AdamW, (state, is_best): (&TrainingState, bool)) -> Result<Self, LmError> {
        Ok(Self { weights: model.snapshot()?, optimizer: optimizer.snapshot()?, state: state.clone(), is_best })
    }

    /// The metadata for the row of its artifact.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({ "step": self.state.step });
        if self.is_best {
            metadata[BEST_KEY] = json!(self.state.best_validation_nats);
        }
        metadata
    }

    /// Number of optimizer steps done when it was taken.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Writes the snapshot into the new folder `dir`.
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

/// Fetches the newest training state of this job that is complete and has the same spec, or `None`
/// if there is none.
///
/// # Errors
/// The store does not answer. A damaged state is not an error: it is logged, and the state before
/// it is used.
pub async fn newest(context: &JobContext, spec: &TrainSpec) -> Result<Option<Saved>, JobError> {
    for artifact in context.store.training_states(context.lease.job).await? {
        let dir = context.cache_dir.join(format!("resume-{}", artifact.id));
        match fetch(&context.store, &artifact, &dir, spec).await {
            Ok(state) => {
                tracing::info!(artifact = %artifact.id, step = state.step, "resuming from a training state");
                return Ok(Some(Saved { dir, state }));
            }
            Err(Unusable::Store(error)) if error.is_retryable() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(artifact = %artifact.id, %error, "cannot use this training state; trying the one before")
            }
        }
    }
    Ok(None)
}

/// Deletes the training states of `job`, except for pinned ones and the newest and best ones that
/// `training` keeps. A state that cannot be deleted is logged and left in place.
pub async fn prune(store: &Store, job: JobId, training: &TrainingSpec) {
    delete_states(store, job, (training.keep_newest as usize, training.keep_best)).await;
}

/// Deletes the training states of `job` once its result is published, except for pinned ones and
/// the best one if `training` keeps it; see [`crate::train::run`].
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
            return Err(Unusable::State(format!("{name} is missing")));
        }
    }
    let path = dir.join(STATE_FILE);
    let json = tokio::fs::read(&path).await.map_err(|error| on_file(&path, error))?;
    let state: TrainingState =
        serde_json::from_slice(&json).map_err(|error| Unusable::State(format!("{STATE_FILE}: {error}")))?;
    if state.version != VERSION {
        return Err(Unusable::State(format!(
            "{STATE_FILE}: version {} is not supported (expected {VERSION})",
            state.version
        )));
    }
    if state.spec_sha256 != spec.digest() {
        return Err(Unusable::State("was saved by a training with a different spec".to_owned()));
    }
    Ok(state)
}

async fn delete_states(store: &Store, job: JobId, keep: (usize, bool)) {
    let states = match store.training_states(job).await {
        Ok(states) => states,
        Err(error) => {
            tracing::warn!(%job, %error, "cannot list training states; old ones are not deleted");
            return;
        }
    };
    for state in surplus(states, keep) {
        if let Err(error) = store.delete_artifact(state.id).await {
            tracing::warn!(artifact = %state.id, %error, "cannot delete an old training state");
        }
    }
}

/// Returns the states to delete. `states` are ordered newest first; pinned ones, the first `newest`
/// ones and, if `best` is set, the best one are kept.
fn surplus(states: Vec<Artifact>, (newest, best): (usize, bool)) -> impl Iterator<Item = Artifact> {
    let loss = |state: &Artifact| state.metadata[BEST_KEY].as_f64().unwrap_or(f64::INFINITY);
    let lowest = states.iter().map(loss).fold(f64::INFINITY, f64::min);
    let is_best = move |state: &Artifact| best && lowest.is_finite() && loss(state) <= lowest;
    states.into_iter().skip(newest).filter(move |state| !state.pinned && !is_best(state))
}
