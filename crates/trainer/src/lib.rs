//! The trainer service: makes token sets from text, and trains checkpoints.
//!
//! Owns: reading a corpus ([`corpus`]) and writing a token set ([`tokenize`]); the order of the
//! training data ([`data_order`]) and reading it ([`batches`]); the learning rate ([`schedule`]);
//! the training loop ([`training_loop`]), the metrics and training states that it writes
//! ([`recorder`]), resuming ([`resume`]) and retrying (`retry`) it, and sharing it between several
//! processes ([`process_group`]); cost estimates ([`estimate`], [`grpc`]).
//!
//! Entry point: [`handler`] runs `tokenize` and `train` jobs; [`services`] serves
//! `inheritune.v1.TrainingService`. To follow a training, start at [`train`], which fetches the
//! [`inputs`] and publishes the result. The loop in between runs on its own operating-system
//! thread.
//!
//! Must never: run the heartbeat on the training thread, write an artifact without the lease's
//! fence, decide which job comes next, or use anything but the step number to determine which data
//! comes next.

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
pub mod process_group;
pub mod estimate;
pub mod grpc;

use inheritune_domain::spec::{JobKind, JobOutcome, JobSpec};
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::worker::{JobContext, JobError, JobHandler};
use inheritune_store::Store;
use inheritune_store::jobs::Lease;

use crate::process_group::Ranks;

/// The job kinds that the trainer runs.
pub const KINDS: [JobKind; 2] = [JobKind::Tokenize, JobKind::Train];

/// Runs tokenize and train jobs.
#[derive(Debug, Clone)]
pub struct TrainerHandler {
    ranks: Ranks,
}

/// The trainer's configuration file, which is the same as for every worker service.
pub type TrainerConfig = inheritune_runtime::service::ServiceConfig;

/// Returns the handler of tokenize and train jobs. Each training is spread over `ranks`.
pub fn handler(ranks: Ranks) -> TrainerHandler {
    TrainerHandler { ranks }
}

/// The gRPC services of the trainer.
pub fn services(store: &Store) -> GrpcServices {
    GrpcServices { routes: tonic::service::Routes::new(grpc::service(store.clone())), names: vec![grpc::SERVICE_NAME] }
}

impl JobHandler for TrainerHandler {
    fn kinds(&self) -> &[JobKind] {
        &KINDS
    }

    async fn run(&self, job: Lease, context: JobContext) -> Result<JobOutcome, JobError> {
        if let Err(violations) = job.spec.validate() {
            return Err(JobError::Permanent(violations.to_string()));
        }
        match job.spec {
            JobSpec::Tokenize(spec) => tokenize::run(spec, context).await.map(JobOutcome::Tokenized),
            JobSpec::Train(spec) => train::run(spec, context, &self.ranks).await.map(JobOutcome::Trained),
            JobSpec::Slice(_) | JobSpec::Evaluate(_) => {
                Err(JobError::Permanent(format!("the trainer does not run {} jobs", job.spec.kind().as_str())))
            }
        }
    }
}

/// Converts an error of the lm crate into a job error.
fn lm_error(error: inheritune_lm::LmError) -> JobError {
    JobError::new(error.class(), error.to_string())
}

/// Converts an I/O error of a local file. The fault lies with the cache folder, so another attempt
/// may succeed.
fn file_error(path: &std::path::Path, error: std::io::Error) -> JobError {
    JobError::io(path.display(), &error)
}
