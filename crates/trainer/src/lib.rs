//! The trainer service: text to token sets, and checkpoints to trained checkpoints.
//!
//! Owns: reading a corpus ([`corpus`]) and writing a token set ([`tokenize`]); the order of the data
//! ([`data_order`]) and reading it ([`batches`]), the learning rate ([`schedule`]), the training itself ([`training_loop`]), what it leaves behind
//! while it runs ([`recorder`]) and how it goes on after a stop ([`resume`]) or an interruption (`retry`), and how several
//! processes share it ([`gang`]); what a training will cost
//! ([`estimate`], [`grpc`]).
//!
//! Entry point: [`handler`] works jobs of the kinds `tokenize` and `train`; [`services`] answers
//! `inheritune.v1.TrainingService`. The path of a training: [`train`] fetches the [`inputs`] and publishes the result, the
//! loop in between runs on an operating-system thread of its own.
//!
//! Must never: let the heartbeat share the training thread, write an artifact that does not carry the lease's fence,
//! decide which job comes next, or take anything but the step number to know which data follow.

pub mod corpus;
pub mod tokenize;
pub mod data_order;
pub mod batches;
pub mod schedule;
pub mod training_loop;
pub mod recorder;
pub mod resume;
pub mod inputs;
pub mod train;
mod retry;
pub mod gang;
pub mod estimate;
pub mod grpc;

use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec};
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::worker::{JobContext, JobError, JobHandler};
use inheritune_store::Store;
use inheritune_store::jobs::Lease;

use crate::gang::Ranks;

/// Works tokenize and train jobs.
#[derive(Debug, Clone)]
pub struct TrainerHandler {
    ranks: Ranks,
}

/// The trainer's configuration file: what every worker service has.
pub type TrainerConfig = inheritune_runtime::service::ServiceConfig;

/// Works jobs of the kinds `tokenize` and `train`, a training over so many processes.
pub fn handler(ranks: Ranks) -> TrainerHandler {
    TrainerHandler { ranks }
}

/// Everything that the trainer serves.
pub fn services(store: &Store) -> GrpcServices {
    GrpcServices { routes: tonic::service::Routes::new(grpc::service(store.clone())), names: vec![grpc::SERVICE_NAME] }
}

impl JobHandler for TrainerHandler {
    fn kinds(&self) -> &[JobKind] {
        &[JobKind::Tokenize, JobKind::Train]
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        if let Err(violations) = job.spec.validate() {
            return Err(JobError::Permanent(violations.to_string()));
        }
        match job.spec {
            JobSpec::Tokenize(spec) => tokenize::run(spec, context).await.map(JobOutcome::Tokenized),
            JobSpec::Train(spec) => train::run(spec, context, &self.ranks).await.map(JobOutcome::Trained),
            JobSpec::Slice(_) | JobSpec::Evaluate(_) => {
                Err(JobError::Permanent(format!("a trainer does not work jobs of kind {}", job.spec.kind().as_str())))
            }
        }
    }
}

/// An error of the lm crate as a job's.
fn lm_error(error: inheritune_lm::LmError) -> JobError {
    JobError::new(error.class(), error.to_string())
}

/// An error of a local file: the cache folder's trouble, which another attempt may not meet.
fn file_error(path: &std::path::Path, error: std::io::Error) -> JobError {
    JobError::io(path.display(), &error)
}
