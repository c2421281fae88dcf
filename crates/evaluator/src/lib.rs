//! The evaluator: measures checkpoints.
//!
//! Owns: the tasks ([`tasks`]: validation loss, rolling perplexity), how windows of tokens become losses ([`scorer`]),
//! the statistics over them ([`metrics`], pure), and the job that ties them together ([`harness`]).
//!
//! Entry point: [`handler`] works evaluate jobs; [`service`] answers what can be measured.
//!
//! Must never: decide what a score means for a run (that is `inheritune_domain::run`), pad a sequence, or let the
//! batch size change a number beyond float noise.

pub mod metrics;
pub mod windows;
pub mod scorer;
pub mod documents;
pub mod tasks;
pub mod harness;
pub mod grpc;

pub use grpc::{SERVICE_NAME, service};
pub use harness::Evaluator;

/// The evaluator's configuration file: what every worker service has.
pub type EvaluatorConfig = inheritune_runtime::service::ServiceConfig;

/// Works jobs of kind `evaluate`.
pub fn handler() -> Evaluator {
    Evaluator
}

/// Everything that the evaluator serves.
pub fn services() -> inheritune_runtime::serve::GrpcServices {
    inheritune_runtime::serve::GrpcServices {
        routes: tonic::service::Routes::new(service()),
        names: vec![SERVICE_NAME],
    }
}
