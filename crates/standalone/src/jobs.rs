//! The handler for jobs of every kind, which runs in the processes of jobs.

use inheritune_domain::spec::{JobKind, JobOutcome};
use inheritune_evaluator::Evaluator;
use inheritune_runtime::worker::{JobContext, JobError, JobHandler};
use inheritune_slicer::SliceHandler;
use inheritune_store::Store;
use inheritune_store::jobs::Lease;
use inheritune_trainer::TrainerHandler;
use inheritune_trainer::process_group::Ranks;

/// Runs jobs of all kinds.
#[derive(Debug, Clone)]
pub struct Jobs {
    slicer: SliceHandler,
    trainer: TrainerHandler,
    evaluator: Evaluator,
}

/// Returns the handler of a job's process.
pub fn jobs(store: &Store) -> Jobs {
    Jobs {
        slicer: inheritune_slicer::handler(store),
        trainer: inheritune_trainer::handler(Ranks::alone()),
        evaluator: inheritune_evaluator::handler(),
    }
}

impl JobHandler for Jobs {
    fn kinds(&self) -> &[JobKind] {
        &JobKind::ALL
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        match job.spec.kind() {
            JobKind::Slice => self.slicer.run(job, context).await,
            JobKind::Tokenize | JobKind::Train => self.trainer.run(job, context).await,
            JobKind::Evaluate => self.evaluator.run(job, context).await,
        }
    }
}
