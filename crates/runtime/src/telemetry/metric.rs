//! The Prometheus metrics of the services. Dashboards and alerts rely on their names.

use std::sync::OnceLock;
use std::time::Duration;

use inheritune_store::artifacts::PUBLISHED_BYTES;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Gauge `{version}`: 1.
pub const BUILD_INFO: &str = "inheritune_build_info";
/// Counter `{method,code}`.
pub const GRPC_REQUESTS: &str = "inheritune_grpc_requests_total";
/// Histogram `{method}`, in seconds.
pub const GRPC_REQUEST_SECONDS: &str = "inheritune_grpc_request_seconds";
/// Counter `{kind}`.
pub const JOBS_CLAIMED: &str = "inheritune_jobs_claimed_total";
/// Counter `{kind,ended}`; `ended` is succeeded, failed, released or lost.
pub const JOB_ATTEMPTS: &str = "inheritune_job_attempts_total";
/// Histogram `{kind,ended}`, in seconds.
pub const JOB_ATTEMPT_SECONDS: &str = "inheritune_job_attempt_seconds";
/// Gauge `{kind}`.
pub const JOBS_RUNNING: &str = "inheritune_jobs_running";
/// Gauge `{listener}`.
pub const CONNECTIONS: &str = "inheritune_connections";
/// Counter `{listener}`.
pub const CONNECTIONS_ACCEPTED: &str = "inheritune_connections_accepted_total";
/// Counter `{listener}`.
pub const CONNECTIONS_REFUSED: &str = "inheritune_connections_refused_total";
/// Counter `{listener,reason}`.
pub const CONNECTIONS_CLOSED: &str = "inheritune_connections_closed_total";
/// Counter.
pub const CLAIM_FAILURES: &str = "inheritune_claim_failures_total";
/// Counter.
pub const HEARTBEAT_FAILURES: &str = "inheritune_heartbeat_failures_total";
/// Gauge `{kind,status}`.
pub const JOBS: &str = "inheritune_jobs";
/// Gauge `{kind}`, in seconds.
pub const QUEUE_OLDEST: &str = "inheritune_queue_oldest_seconds";
/// Gauge `{status}`.
pub const RUNS: &str = "inheritune_runs";
/// Counter.
pub const LEASES_EXPIRED: &str = "inheritune_leases_expired_total";
/// Counter.
pub const RUN_STEPS: &str = "inheritune_run_steps_total";
/// Counter.
pub const TRAINING_TOKENS: &str = "inheritune_training_tokens_total";

/// Every metric with its description.
pub const METRICS: [(&str, &str); 20] = [
    (BUILD_INFO, "1; the version is a label"),
    (GRPC_REQUESTS, "gRPC calls answered, by method and status code"),
    (GRPC_REQUEST_SECONDS, "Time to the first answer of a gRPC call in seconds"),
    (CONNECTIONS, "Open connections, by listener: grpc, operations"),
    (CONNECTIONS_ACCEPTED, "Accepted connections"),
    (CONNECTIONS_REFUSED, "Refused connections: the limit was reached and all open connections had calls in progress"),
    (
        CONNECTIONS_CLOSED,
        "Connections that the service closed: no first_call in time, idle too long, or to make room for a new one",
    ),
    (JOBS_CLAIMED, "Jobs that this worker claimed"),
    (
        JOB_ATTEMPTS,
        "Finished attempts of this worker: succeeded, failed, released (returned to the queue) or lost (lease)",
    ),
    (JOB_ATTEMPT_SECONDS, "Duration of attempts in seconds"),
    (JOBS_RUNNING, "Jobs that this worker is running"),
    (CLAIM_FAILURES, "Failed attempts to claim jobs: the database did not answer"),
    (HEARTBEAT_FAILURES, "Failed heartbeats"),
    (JOBS, "Unfinished jobs, in the whole database"),
    (QUEUE_OLDEST, "Age in seconds of the oldest job that may be claimed, in the whole database; 0 when there is none"),
    (RUNS, "Runs, in the whole database"),
    (LEASES_EXPIRED, "Leases that this scheduler found expired: their workers are dead or disconnected"),
    (RUN_STEPS, "Steps by which this scheduler advanced runs"),
    (TRAINING_TOKENS, "Tokens that this worker trained on"),
    (PUBLISHED_BYTES, "Bytes of artifacts that this service published"),
];

/// Upper bounds of the buckets for calls, in seconds.
const CALL_SECONDS: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
/// Upper bounds of the buckets for attempts, in seconds.
const ATTEMPT_SECONDS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6.0 * 3600.0, 24.0 * 3600.0];
/// How often samples of histograms are folded into their buckets, whether or not they are scraped.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts collecting metrics. A process calls this once; further calls have no effect. Without it,
/// nothing is collected.
pub(super) fn install() -> Result<(), BuildError> {
    if are_kept() {
        return Ok(());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(GRPC_REQUEST_SECONDS.to_owned()), &CALL_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(JOB_ATTEMPT_SECONDS.to_owned()), &ATTEMPT_SECONDS)?
        .install_recorder()?;
    for (name, help) in METRICS {
        // The first use of a metric decides its kind; descriptions are stored by name.
        match name {
            GRPC_REQUEST_SECONDS | JOB_ATTEMPT_SECONDS => metrics::describe_histogram!(name, help),
            BUILD_INFO | CONNECTIONS | JOBS_RUNNING | JOBS | QUEUE_OLDEST | RUNS => {
                metrics::describe_gauge!(name, help)
            }
            _ => metrics::describe_counter!(name, help),
        }
    }
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    HANDLE.get_or_init(|| handle);
    Ok(())
}

/// Returns whether metrics are collected. If not, values that only metrics need can be skipped.
#[must_use]
pub fn are_kept() -> bool {
    HANDLE.get().is_some()
}

/// Returns all values in Prometheus's text format; empty if nothing is collected.
pub(crate) fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

pub(crate) fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}
