//! The slice job from end to end.

use bytes::Bytes;
use inheritune_checkpoint::shard_index::INDEX_FILE;
use inheritune_domain::artifact::{Artifact, ArtifactKind};
use inheritune_domain::job::Progress;
use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec, SliceSpec, Sliced};
use inheritune_runtime::worker::{JobContext, JobError, JobHandler, StopReason};
use inheritune_store::Store;
use inheritune_store::artifacts::ArtifactWriter;
use inheritune_store::jobs::Lease;
use serde_json::json;

use crate::copy::Copier;
use crate::error::SlicerError;
use crate::layout;
use crate::plan::PlannedSlice;
use crate::record::{CARD_FILE, InheritanceRecord, RECORD_FILE, metadata, readme};

/// The kinds of jobs that this handler runs.
pub const KINDS: [JobKind; 1] = [JobKind::Slice];

/// Runs slice jobs.
#[derive(Debug, Clone)]
pub struct SliceHandler;

/// The handler of slice jobs. The handler of every service is made from the store; this one does
/// not need it until a job starts.
pub fn handler(_store: &Store) -> SliceHandler {
    SliceHandler
}

impl SliceHandler {
    async fn slice(&self, spec: &SliceSpec, context: &JobContext) -> Result<Sliced, JobError> {
        context.progress.set(Progress { message: "reading headers".to_owned(), ..Progress::default() });
        let planned = tokio::select! {
            planned = PlannedSlice::new(&context.store, spec) => planned?,
            _ = context.stop.wait() => return Err(JobError::Stopped),
        };
        let (plan, config) = (&planned.plan, planned.plan.config());
        tracing::info!(
            family = config.family.as_str(),
            layers = config.n_layers.0,
            bytes = plan.size_bytes(),
            copied_bytes = plan.copied_bytes(),
            "planned"
        );
        context.ceilings.check_model(config).map_err(JobError::Permanent)?;
        context.ceilings.check_bytes(plan.size_bytes()).map_err(JobError::Permanent)?;
        context.store.objects().check_room(plan.size_bytes()).await?;
        let mut artifact = context.store.begin_artifact(ArtifactKind::Checkpoint, context.lease);
        let written = self.write(&planned, spec, (&mut artifact, context)).await.map_err(JobError::from);
        if let Err(error) = written {
            let cancelled = context.stop.requested() == Some(StopReason::Cancel);
            let over = cancelled || matches!(error, JobError::Permanent(_));
            let left = if over { artifact.abandon().await } else { artifact.suspend().await };
            if let Err(error) = left {
                // Nothing refers to the upload; the sweep deletes it later.
                tracing::warn!(%error, "cannot delete an unfinished upload");
            }
            return Err(error);
        }
        let artifact = publish(artifact, &planned).await?;
        Ok(Sliced {
            checkpoint: artifact.id,
            config: config.clone(),
            reference_layers: planned.reference_layers(),
            parameters: config.parameters(),
            copied_tensors: plan.copied().count() as u32,
            fresh_tensors: plan.fresh_tensors().count() as u32,
            copied_bytes: plan.copied_bytes(),
        })
    }

    async fn write(
        &self,
        planned: &PlannedSlice,
        spec: &SliceSpec,
        (artifact, context): (&mut ArtifactWriter, &JobContext),
    ) -> Result<(), SlicerError> {
        let seed = spec.seed;
        let files = layout::files(&planned.plan, spec.max_shard_size_bytes)?;
        let mut copier = Copier::new(planned, seed, context);
        for file in &files {
            copier.write(file, artifact).await?;
        }
        if let Some(index) = layout::index(&files) {
            artifact.put_bytes(INDEX_FILE, Bytes::from(index)).await?;
        }
        let record = InheritanceRecord::new(planned, seed, &copier.into_digests());
        artifact.put_bytes("config.json", Bytes::from(format!("{:#}\n", planned.config_json))).await?;
        artifact.put_bytes(RECORD_FILE, Bytes::from(record.to_json())).await?;
        let card = readme(planned, &metadata(planned).await, seed);
        artifact.put_bytes(CARD_FILE, Bytes::from(card)).await?;
        for source in &planned.carried {
            for name in source.names() {
                let bytes = match planned.rewritten.iter().find(|(file, _)| file == name) {
                    Some((_, json)) => Bytes::from(format!("{json:#}\n")),
                    None => source.read(name).await?,
                };
                artifact.put_bytes(name, bytes).await?;
            }
        }
        Ok(())
    }
}

impl JobHandler for SliceHandler {
    fn kinds(&self) -> &[JobKind] {
        &KINDS
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        match &job.spec {
            JobSpec::Slice(spec) => Ok(JobOutcome::Sliced(self.slice(spec, &context).await?)),
            JobSpec::Tokenize(_) | JobSpec::Train(_) | JobSpec::Evaluate(_) => {
                Err(JobError::Permanent(format!("the slicer does not run {} jobs", job.spec.kind().as_str())))
            }
        }
    }
}

async fn publish(artifact: ArtifactWriter, planned: &PlannedSlice) -> Result<Artifact, SlicerError> {
    let config = planned.plan.config();
    let metadata = json!({
        "family": config.family.as_str(),
        "layers": config.n_layers.0,
        "parameters": config.parameters(),
        "vocab_size": config.vocab_size,
        "trained_steps": 0,
        "reference": planned.reference.as_ref().map(|reference| reference.location.to_string()),
    });
    Ok(artifact.publish(None, metadata).await?)
}
