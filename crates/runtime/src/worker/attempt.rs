//! One attempt at a job: runs the handler, sends heartbeats meanwhile, and reports the result.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt as _;
use inheritune_domain::job::FailureClass;
use inheritune_domain::spec::JobOutcome;
use inheritune_store::StoreError;
use inheritune_store::jobs::{Lease, LeaseKey};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::telemetry::{metric, traces};

use super::context::panic_error;
use super::heartbeat::Heartbeat;
use super::{JobContext, JobError, JobHandler, ProgressSender, StopReason, StopSignal, Worker};

/// First wait before the report is retried; doubles with each retry.
const REPORT_RETRY: Duration = Duration::from_millis(100);
/// Longest wait before the report is retried.
const REPORT_RETRY_MAX: Duration = Duration::from_secs(1);
/// Longest error text that is stored with an attempt.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// Runs one job, from its claim (requested at `claimed_at`) to its report.
pub(super) async fn run<H: JobHandler>(worker: &Worker<H>, lease: Lease, claimed_at: Instant) {
    let span = span(&lease, lease.trace_parent.as_deref(), "consumer");
    Attempt { worker, key: lease.key, stop: StopSignal::default(), progress: ProgressSender::default() }
        .run(lease, claimed_at)
        .instrument(span)
        .await;
}

/// Returns the span of a job, in its worker or in its own process, as a part of the trace
/// `trace_parent`.
pub(super) fn span(lease: &Lease, trace_parent: Option<&str>, kind: &'static str) -> tracing::Span {
    let span = tracing::info_span!(
        "job",
        job = %lease.key.job,
        kind = lease.spec.kind().as_str(),
        attempt = lease.attempt,
        run = lease.run.map(tracing::field::display),
        otel.name = format!("{} {}", lease.spec.kind().as_str(), lease.label),
        otel.kind = kind,
        ended = tracing::field::Empty,
    );
    traces::continue_from(&span, trace_parent);
    span
}

struct Attempt<'w, H> {
    worker: &'w Worker<H>,
    key: LeaseKey,
    stop: StopSignal,
    progress: ProgressSender,
}

impl<H: JobHandler> Attempt<'_, H> {
    async fn run(self, lease: Lease, claimed_at: Instant) {
        let lease_until = watch::Sender::new(claimed_at + self.worker.config.lease() * 9 / 10);
        let until = lease_until.subscribe();
        let heartbeat = Heartbeat {
            store: self.worker.store.clone(),
            lease: self.key,
            stop: self.stop.clone(),
            progress: self.progress.clone(),
            lease_until,
        };
        // Heartbeats continue during the report, so that the lease does not expire. They end when
        // the set is dropped.
        let mut heartbeats = JoinSet::new();
        heartbeats.spawn(heartbeat.keep_alive(self.worker.config.clone(), claimed_at).in_current_span());
        tracing::info!(label = lease.label, "job started");
        let kind = lease.spec.kind().as_str();
        metrics::counter!(metric::JOBS_CLAIMED, "kind" => kind).increment(1);
        metrics::gauge!(metric::JOBS_RUNNING, "kind" => kind).increment(1.0);
        let result = self.work(lease, until).await;
        let ended = self.report(result).await;
        tracing::Span::current().record("ended", ended);
        metrics::gauge!(metric::JOBS_RUNNING, "kind" => kind).decrement(1.0);
        metrics::counter!(metric::JOB_ATTEMPTS, "kind" => kind, "ended" => ended).increment(1);
        metrics::histogram!(metric::JOB_ATTEMPT_SECONDS, "kind" => kind, "ended" => ended)
            .record(claimed_at.elapsed().as_secs_f64());
    }

    /// Runs the handler. Abandons it if it does not stop within the grace period of a shutdown.
    async fn work(&self, lease: Lease, lease_until: watch::Receiver<Instant>) -> Result<JobOutcome, JobError> {
        if self.worker.stop.is_cancelled() {
            self.stop.request(StopReason::Shutdown);
            return Err(JobError::Stopped);
        }
        let cache_dir = self.worker.scratch.attempt_dir(self.key);
        create_dir(&cache_dir).await?;
        let context = JobContext {
            store: self.worker.store.clone(),
            lease: self.key,
            stop: self.stop.clone(),
            progress: self.progress.clone(),
            cache_dir: cache_dir.clone(),
            fetched: self.worker.fetched.clone(),
            threads: self.worker.config.threads,
            lease_until,
            ceilings: self.worker.config.ceilings,
        };
        let grace = Duration::from_millis(self.worker.config.shutdown_grace_ms);
        let grace_over = async {
            self.worker.stop.cancelled().await;
            self.stop.request(StopReason::Shutdown);
            tokio::time::sleep(grace).await;
        };
        let result = tokio::select! {
            result = AssertUnwindSafe(self.worker.handler.run(lease, context)).catch_unwind() => {
                result.unwrap_or_else(|panic| Err(panic_error(panic.as_ref())))
            }
            () = self.progress.stalled(Duration::from_millis(self.worker.config.stall_ms)) => {
                let last = self.progress.newest().map_or_else(String::new, |progress| format!(" after {}", progress.message));
                let limit_s = self.worker.config.stall_ms as f64 / 1000.0;
                self.stop.request(StopReason::Shutdown);
                Err(JobError::Retryable(format!("no progress for {limit_s} s{last} (worker.stall_ms); stopped the job")))
            }
            () = grace_over => {
                tracing::warn!(grace_ms = grace.as_millis() as u64, "the job did not stop in time; abandoning it");
                Err(JobError::Stopped)
            }
        };
        // A process that was just killed may still be writing files.
        if tokio::fs::remove_dir_all(&cache_dir).await.is_err() {
            tokio::time::sleep(REPORT_RETRY_MAX).await;
            if let Err(error) = tokio::fs::remove_dir_all(&cache_dir).await {
                tracing::warn!(path = %cache_dir.display(), %error, "cannot remove the job's folder");
            }
        }
        result
    }

    /// Reports the result to the database. Returns how the attempt ended: succeeded, released,
    /// lost, or how it failed.
    async fn report(&self, result: Result<JobOutcome, JobError>) -> &'static str {
        let report = match result {
            Ok(outcome) => {
                self.send_last_progress().await;
                Report::Complete(Box::new(outcome))
            }
            Err(error) => match (error.failure(), self.stop.requested()) {
                (Some((class, error)), _) => Report::Fail(class, shorten(error)),
                (None, Some(StopReason::Shutdown)) => Report::Release("worker is shutting down"),
                (None, Some(StopReason::Pause)) => Report::Release("pause was requested"),
                (None, Some(StopReason::Cancel)) => Report::Release("cancel was requested"),
                (None, Some(StopReason::LeaseLost)) => {
                    tracing::warn!("job stopped: its lease was lost");
                    return LOST;
                }
                // Most likely the lease was lost and a write was rejected before a heartbeat was.
                // Then this report is rejected too.
                (None, None) => Report::Fail(FailureClass::Retryable, "stopped without a request to stop".to_owned()),
            },
        };
        match self.send(&report).await {
            Ok(()) => {
                report.log();
                report.ended()
            }
            Err(StoreError::LeaseLost(_)) => {
                tracing::warn!("the lease was lost before the job could report");
                LOST
            }
            Err(error) if error.is_retryable() => {
                tracing::error!(%error, "cannot report the result");
                LOST
            }
            Err(error) => {
                tracing::error!(%error, "the report was rejected; failing the job");
                let refused = Report::Fail(FailureClass::Permanent, shorten(format!("report rejected: {error}")));
                match self.send(&refused).await {
                    Ok(()) => refused.ended(),
                    Err(error) => {
                        tracing::error!(%error, "cannot fail the job; its lease will expire");
                        LOST
                    }
                }
            }
        }
    }

    /// Sends the final progress, so that a finished job does not show that of its last heartbeat.
    /// It is only informational, so it is not retried.
    async fn send_last_progress(&self) {
        if let Some(progress) = self.progress.newest() {
            let sent = self.worker.store.heartbeat(self.key, Some(&progress), self.worker.config.lease());
            if let Ok(Err(error)) = tokio::time::timeout(REPORT_RETRY_MAX, sent).await {
                tracing::debug!(%error, "cannot send the last progress");
            }
        }
    }

    /// Sends a report, and retries until the heartbeat finds that the lease is lost.
    async fn send(&self, report: &Report) -> Result<(), StoreError> {
        let store = &self.worker.store;
        let mut wait = REPORT_RETRY;
        loop {
            let sent = async {
                match report {
                    Report::Complete(outcome) => store.complete_job(self.key, outcome).await,
                    Report::Fail(class, error) => store.fail_job(self.key, *class, error).await,
                    Report::Release(reason) => store.release_job(self.key, reason).await,
                }
            };
            let sent = tokio::select! {
                sent = sent => sent,
                () = self.lease_lost() => return Err(StoreError::LeaseLost(self.key.job)),
            };
            match sent {
                Err(error) if error.is_retryable() => tracing::warn!(%error, "cannot report the result; retrying"),
                sent => return sent,
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.lease_lost() => return Err(StoreError::LeaseLost(self.key.job)),
            }
            wait = (wait * 2).min(REPORT_RETRY_MAX);
        }
    }

    async fn lease_lost(&self) {
        while self.stop.requested() != Some(StopReason::LeaseLost) {
            tokio::time::sleep(REPORT_RETRY).await;
        }
    }
}

/// How an attempt ended whose result could not be reported.
const LOST: &str = "lost";

enum Report {
    Complete(Box<JobOutcome>),
    Fail(FailureClass, String),
    Release(&'static str),
}

impl Report {
    fn ended(&self) -> &'static str {
        match self {
            Self::Complete(_) => "succeeded",
            Self::Fail(FailureClass::Retryable | FailureClass::Permanent, _) => "failed",
            Self::Fail(FailureClass::Unavailable, _) => "unavailable",
            Self::Fail(FailureClass::Crashed, _) => "crashed",
            Self::Fail(FailureClass::Killed, _) => "killed",
            Self::Release(_) => "released",
        }
    }

    fn log(&self) {
        match self {
            Self::Complete(_) => tracing::info!("job succeeded"),
            Self::Fail(FailureClass::Retryable, error) => tracing::warn!(error, "attempt failed"),
            Self::Fail(FailureClass::Unavailable, error) => {
                tracing::warn!(error, "attempt failed: a resource is unavailable; the job waits for it");
            }
            Self::Fail(FailureClass::Crashed | FailureClass::Killed, error) => tracing::error!(error, "attempt died"),
            Self::Fail(FailureClass::Permanent, error) => tracing::error!(error, "job failed"),
            Self::Release(reason) => tracing::info!(reason, "job released"),
        }
    }
}

async fn create_dir(path: &Path) -> Result<(), JobError> {
    tokio::fs::create_dir_all(path).await.map_err(|e| JobError::io(path.display(), &e))
}

fn shorten(mut error: String) -> String {
    if error.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        error.truncate(end);
        error.push('…');
    }
    error
}
