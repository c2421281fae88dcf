//! The metrics that services offer to Prometheus: their names, which dashboards and alerts rely on.

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

/// Every metric, and what it says.
pub const METRICS: [(&str, &str); 20] = [
    (BUILD_INFO, "1; the version is a label"),
    (GRPC_REQUESTS, "gRPC calls answered, by method and status code"),
    (GRPC_REQUEST_SECONDS, "Time to the first answer of a gRPC call in seconds"),
    (CONNECTIONS, "Connections that are open, by listener: grpc, operations"),
    (CONNECTIONS_ACCEPTED, "Connections that were let in"),
    (CONNECTIONS_REFUSED, "Connections that were not let in: calls run on all that there may be"),
    (
        CONNECTIONS_CLOSED,
        "Connections that the service closed: no first_call in time, idle too long, or to make room for a new one",
    ),
    (JOBS_CLAIMED, "Jobs that this worker took"),
    (JOB_ATTEMPTS, "Attempts of this worker that ended: succeeded, failed, released (given back) or lost (its lease)"),
    (JOB_ATTEMPT_SECONDS, "Length of attempts in seconds"),
    (JOBS_RUNNING, "Jobs in this worker's hands"),
    (CLAIM_FAILURES, "Looks at the queue that failed: the database did not answer"),
    (HEARTBEAT_FAILURES, "Heartbeats that did not get through"),
    (JOBS, "Jobs that are not over, in the whole database"),
    (QUEUE_OLDEST, "Age in seconds of the oldest job that may be claimed, in the whole database; 0 when there is none"),
    (RUNS, "Runs, in the whole database"),
    (LEASES_EXPIRED, "Leases that this scheduler found run out: their workers are dead or cut off"),
    (RUN_STEPS, "Steps that this scheduler moved runs on by"),
    (TRAINING_TOKENS, "Tokens that this worker trained on"),
    (PUBLISHED_BYTES, "Bytes of artifacts that this service published"),
];

/// Bounds of the buckets for calls.
const CALL_SECONDS: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
/// Bounds of the buckets for attempts.
const ATTEMPT_SECONDS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6.0 * 3600.0, 24.0 * 3600.0];
/// Samples of histograms are folded into their buckets so often, whether anyone asks for them or not.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts to count; a process calls it once, further calls change nothing. Without it, nothing is kept.
pub(super) fn install() -> Result<(), BuildError> {
    if are_kept() {
        return Ok(());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(GRPC_REQUEST_SECONDS.to_owned()), &CALL_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(JOB_ATTEMPT_SECONDS.to_owned()), &ATTEMPT_SECONDS)?
        .install_recorder()?;
    for (name, help) in METRICS {
        // The kind of a metric is that of its first use; descriptions are kept by name.
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

/// Whether values are kept: what is set only for them need not be found out otherwise.
#[must_use]
pub fn are_kept() -> bool {
    HANDLE.get().is_some()
}

/// All values as Prometheus reads them; empty when nothing is counted.
pub(crate) fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

pub(crate) fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}
