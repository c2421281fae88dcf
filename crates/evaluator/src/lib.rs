//! The evaluator: measures checkpoints.
//!
//! Owns: the tasks ([`tasks`]: validation loss, rolling perplexity, the benchmarks of lm-evaluation-harness), what those ask
//! ([`benchmarks`]) and in which tokens ([`encoding`]), which forward passes answer it ([`prefix_tree`], [`scorer`]), the
//! statistics over the answers ([`metrics`], [`comparison`]; pure), and the job that ties them together ([`harness`]).
//!
//! Entry point: [`handler`] works evaluate jobs; [`services`] answers what can be measured, and what was.
//!
//! Must never: decide what a score means for a run (that is `inheritune_domain::run`), pad a sequence, or let the
//! batch size or the number of workers change a number beyond float noise.

pub mod metrics;
pub mod answer;
pub mod windows;
pub mod encoding;
pub mod prefix_tree;
pub mod scorer;
pub mod documents;
pub mod benchmarks;
pub mod tasks;
pub mod harness;
pub mod comparison;
pub mod publish;
mod shift;
pub mod grpc;

pub use grpc::{SERVICE_NAME, services};
pub use harness::{Evaluator, KINDS};

/// The evaluator's configuration file: what every worker service has.
pub type EvaluatorConfig = inheritune_runtime::service::ServiceConfig;

/// Works jobs of kind `evaluate`.
pub fn handler() -> Evaluator {
    Evaluator
}
