//! The evaluator: measures checkpoints.
//!
//! Owns: the tasks ([`tasks`]: validation loss, rolling perplexity, the benchmarks of
//! lm-evaluation-harness), their requests ([`benchmarks`]) and the tokens of these ([`encoding`]),
//! the forward passes that answer them ([`prefix_tree`], [`scorer`]), the statistics over the
//! answers ([`metrics`], [`comparison`]; pure), and the job that connects them ([`harness`]).
//!
//! Entry points: [`handler`] runs evaluate jobs; [`services`] lists the tasks and compares scores.
//!
//! Must never: decide what a score means for a run (`inheritune_domain::run` does), pad a sequence,
//! or let the batch size or the number of workers change a result by more than rounding.

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
mod shared_units;
pub mod grpc;

pub use grpc::{SERVICE_NAME, services};
pub use harness::{Evaluator, KINDS};

/// The evaluator's configuration file: the same settings as every worker service.
pub type EvaluatorConfig = inheritune_runtime::service::ServiceConfig;

/// Returns the handler of evaluate jobs.
pub fn handler() -> Evaluator {
    Evaluator
}
