//! Metric points and training states, written to the store while the training runs, off its thread.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::job::MetricPoint;
use inheritune_runtime::worker::{JobContext, JobError};
use tokio::sync::mpsc;

use crate::file_error;
use crate::inputs::Inputs;
use crate::resume::{self, OPTIMIZER_FILE, STATE_FILE, TrainingSnapshot, WEIGHTS_FILE};

/// Capacity of the queue of metric points; the training blocks while it is full.
const WAITING_POINTS: usize = 1024;
/// Maximum number of points per write.
const POINTS_A_WRITE: usize = 256;
/// Capacity of the queue of states, in addition to the one being uploaded; the training blocks
/// while it is full.
const WAITING_STATES: usize = 1;
/// Maximum number of tries to write a batch of points.
const WRITE_TRIES: u32 = 5;
/// Wait between two tries.
const WRITE_WAIT: Duration = Duration::from_millis(500);

/// The training thread's end of the queues. Its methods block while a queue is full.
#[derive(Debug)]
pub struct Recorder(Option<Senders>);

#[derive(Debug)]
struct Senders {
    points: mpsc::Sender<MetricPoint>,
    states: mpsc::Sender<TrainingSnapshot>,
}

/// The asynchronous end of the queues. [`Writer::run`] must be polled while the training runs.
pub struct Writer {
    context: JobContext,
    inputs: Inputs,
    points: mpsc::Receiver<MetricPoint>,
    states: mpsc::Receiver<TrainingSnapshot>,
}

/// Returns a connected recorder and writer.
pub fn channel(context: JobContext, inputs: Inputs) -> (Recorder, Writer) {
    let (points, point_receiver) = mpsc::channel(WAITING_POINTS);
    let (states, state_receiver) = mpsc::channel(WAITING_STATES);
    (
        Recorder(Some(Senders { points, states })),
        Writer { context, inputs, points: point_receiver, states: state_receiver },
    )
}

impl Recorder {
    /// A recorder that discards everything.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Sends a metric point to be written.
    ///
    /// # Errors
    /// [`JobError::Stopped`] if the writer has failed; the writer's own error gives the reason.
    pub fn point(&self, point: MetricPoint) -> Result<(), JobError> {
        let Some(senders) = &self.0 else { return Ok(()) };
        senders.points.blocking_send(point).map_err(|_| JobError::Stopped)
    }

    /// Sends a training state to be uploaded.
    ///
    /// # Errors
    /// Same as [`Recorder::point`].
    pub fn state(&self, snapshot: TrainingSnapshot) -> Result<(), JobError> {
        let Some(senders) = &self.0 else { return Ok(()) };
        senders.states.blocking_send(snapshot).map_err(|_| JobError::Stopped)
    }
}

impl Writer {
    /// Writes everything it receives until the training drops its [`Recorder`].
    ///
    /// # Errors
    /// The lease is lost ([`JobError::Stopped`]) or the store does not answer.
    pub async fn run(self) -> Result<(), JobError> {
        let Self { context, inputs, points, states } = self;
        // Run concurrently, so that points do not wait for a large upload. The first error ends
        // both and stops the training.
        tokio::try_join!(write_points(&context, points), upload_states(&context, &inputs, states))?;
        Ok(())
    }
}

async fn write_points(context: &JobContext, mut points: mpsc::Receiver<MetricPoint>) -> Result<(), JobError> {
    let mut batch = Vec::new();
    while points.recv_many(&mut batch, POINTS_A_WRITE).await > 0 {
        let mut tries = 1;
        while let Err(error) = context.store.add_metrics(context.lease, &batch).await {
            if !error.is_retryable() || tries == WRITE_TRIES {
                return Err(error.into());
            }
            tracing::warn!(%error, tries, "cannot write metric points; retrying");
            tries += 1;
            tokio::time::sleep(WRITE_WAIT).await;
        }
        batch.clear();
    }
    Ok(())
}

async fn upload_states(
    context: &JobContext,
    inputs: &Inputs,
    mut states: mpsc::Receiver<TrainingSnapshot>,
) -> Result<(), JobError> {
    while let Some(snapshot) = states.recv().await {
        let step = snapshot.step();
        let dir = context.cache_dir.join(format!("state-{step}"));
        match save(context, inputs, (snapshot, &dir)).await {
            Ok(()) => resume::prune(&context.store, context.lease.job, &inputs.spec.training).await,
            // The training itself is fine, and the next upload may succeed.
            Err(JobError::Retryable(error) | JobError::Unavailable(error)) => {
                tracing::warn!(step, error, "cannot upload the training state")
            }
            Err(error) => return Err(error),
        }
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_error(&dir, error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Writes a state to the local disk and uploads it, along with the files that make its weights a
/// complete model.
async fn save(
    context: &JobContext,
    inputs: &Inputs,
    (snapshot, dir): (TrainingSnapshot, &Path),
) -> Result<(), JobError> {
    let (step, metadata, local) = (snapshot.step(), snapshot.metadata(), dir.to_owned());
    context.run_blocking("save", move || snapshot.write(&local)).await?;
    let mut artifact = context.store.begin_artifact(ArtifactKind::TrainingState, context.lease);
    for name in [WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE] {
        artifact.put_file(name, &dir.join(name)).await?;
    }
    inputs.put_model_files(&mut artifact).await?;
    let artifact = artifact.publish(Some(step), metadata).await?;
    tracing::info!(artifact = %artifact.id, step, size_bytes = artifact.size_bytes, "training state saved");
    Ok(())
}
