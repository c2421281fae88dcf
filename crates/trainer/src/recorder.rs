//! What a training leaves behind while it runs: metric points and training states, written off its thread.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::job::MetricPoint;
use inheritune_runtime::worker::{JobContext, JobError};
use tokio::sync::mpsc;

use crate::file_error;
use crate::inputs::Inputs;
use crate::resume::{self, Moment, OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE};

/// Points that wait to be written; the training waits when there are more.
const WAITING_POINTS: usize = 1024;
/// Points of one write.
const POINTS_A_WRITE: usize = 256;
/// States that wait to be uploaded, besides the one being uploaded; the training waits when there are more.
const WAITING_STATES: usize = 1;
/// Tries of one write of points.
const WRITE_TRIES: u32 = 5;
/// Wait between two of them.
const WRITE_WAIT: Duration = Duration::from_millis(500);

/// The training thread's side. Its methods block while the other side is behind.
#[derive(Debug)]
pub struct Recorder(Option<Senders>);

#[derive(Debug)]
struct Senders {
    points: mpsc::Sender<MetricPoint>,
    states: mpsc::Sender<Moment>,
}

/// The asynchronous side: [`Writer::run`] must be polled while the training runs.
pub struct Writer {
    context: JobContext,
    inputs: Inputs,
    points: mpsc::Receiver<MetricPoint>,
    states: mpsc::Receiver<Moment>,
}

/// Both sides, connected.
pub fn channel(context: JobContext, inputs: Inputs) -> (Recorder, Writer) {
    let (points, point_receiver) = mpsc::channel(WAITING_POINTS);
    let (states, state_receiver) = mpsc::channel(WAITING_STATES);
    (
        Recorder(Some(Senders { points, states })),
        Writer { context, inputs, points: point_receiver, states: state_receiver },
    )
}

impl Recorder {
    /// One that drops what it is given.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Hands a point over.
    ///
    /// # Errors
    /// [`JobError::Stopped`] when the writer has failed: its own error says why.
    pub fn point(&self, point: MetricPoint) -> Result<(), JobError> {
        let Some(senders) = &self.0 else { return Ok(()) };
        senders.points.blocking_send(point).map_err(|_| JobError::Stopped)
    }

    /// Hands over a training state to be uploaded.
    ///
    /// # Errors
    /// As [`Recorder::point`].
    pub fn state(&self, moment: Moment) -> Result<(), JobError> {
        let Some(senders) = &self.0 else { return Ok(()) };
        senders.states.blocking_send(moment).map_err(|_| JobError::Stopped)
    }
}

impl Writer {
    /// Writes what comes until the training drops its side.
    ///
    /// # Errors
    /// The lease is lost ([`JobError::Stopped`]) or the store does not answer.
    pub async fn run(self) -> Result<(), JobError> {
        let Self { context, inputs, points, states } = self;
        // Points do not wait for a large upload. The first error ends both, and with them the training.
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
            tracing::warn!(%error, tries, "metric points cannot be written; trying again");
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
    mut states: mpsc::Receiver<Moment>,
) -> Result<(), JobError> {
    while let Some(moment) = states.recv().await {
        let step = moment.step();
        let dir = context.cache_dir.join(format!("state-{step}"));
        match save(context, inputs, (moment, &dir)).await {
            Ok(()) => resume::prune(&context.store, context.lease.job, &inputs.spec.training).await,
            // The training itself is well, and the next state may fare better.
            Err(JobError::Retryable(error) | JobError::Unavailable(error)) => {
                tracing::warn!(step, error, "training state not uploaded")
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

/// Writes a state to the local disk, and from there to the store, with all that makes its weights a model.
async fn save(context: &JobContext, inputs: &Inputs, (moment, dir): (Moment, &Path)) -> Result<(), JobError> {
    let (step, metadata, local) = (moment.step(), moment.metadata(), dir.to_owned());
    context.run_blocking("save", move || moment.write(&local)).await?;
    let mut artifact = context.store.begin_artifact(ArtifactKind::TrainingState, context.lease);
    for name in [WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE] {
        artifact.put_file(name, &dir.join(name)).await?;
    }
    inputs.put_model_files(&mut artifact).await?;
    let artifact = artifact.publish(Some(step), metadata).await?;
    tracing::info!(artifact = %artifact.id, step, size_bytes = artifact.size_bytes, "training state saved");
    Ok(())
}
