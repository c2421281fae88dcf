//! One attempt at one job: the handler, its heartbeat beside it, and the report at the end.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt as _;
use inheritune_domain::job::FailureClass;
use inheritune_domain::spec::JobOutcome;
use inheritune_store::StoreError;
use inheritune_store::jobs::{Lease, LeaseKey};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::telemetry::{metric, traces};

use super::context::panic_error;
use super::heartbeat::Heartbeat;
use super::{JobContext, JobError, JobHandler, ProgressSender, StopReason, StopSignal, Worker};

/// First wait between two tries to report; doubles with each.
const REPORT_RETRY: Duration = Duration::from_millis(100);
/// Longest wait between two tries to report.
const REPORT_RETRY_MAX: Duration = Duration::from_secs(1);
/// Longest error text that is kept with an attempt.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// Does one job, from its claim (requested at `claimed_at`) to its report.
pub(super) async fn run<H: JobHandler>(worker: &Worker<H>, lease: Lease, claimed_at: Instant) {
    let span = tracing::info_span!(
        "job",
        job = %lease.key.job,
        kind = lease.spec.kind().as_str(),
        attempt = lease.attempt,
        run = lease.run.map(tracing::field::display),
        otel.name = format!("{} {}", lease.spec.kind().as_str(), lease.label),
        otel.kind = "consumer",
        ended = tracing::field::Empty,
    );
    traces::continue_from(&span, lease.trace_parent.as_deref());
    Attempt { worker, key: lease.key, stop: StopSignal::default(), progress: ProgressSender::default() }
        .run(lease, claimed_at)
        .instrument(span)
        .await;
}

struct Attempt<'w, H> {
    worker: &'w Worker<H>,
    key: LeaseKey,
    stop: StopSignal,
    progress: ProgressSender,
}

impl<H: JobHandler> Attempt<'_, H> {
    async fn run(self, lease: Lease, claimed_at: Instant) {
        let heartbeat = Heartbeat {
            store: self.worker.store.clone(),
            lease: self.key,
            stop: self.stop.clone(),
            progress: self.progress.clone(),
        };
        // Goes on through the report, so that the lease lasts for it; dropped, and thereby ended, after it.
        let mut heartbeats = JoinSet::new();
        heartbeats.spawn(heartbeat.keep_alive(self.worker.config.clone(), claimed_at).in_current_span());
        tracing::info!(label = lease.label, "job started");
        let kind = lease.spec.kind().as_str();
        metrics::counter!(metric::JOBS_CLAIMED, "kind" => kind).increment(1);
        metrics::gauge!(metric::JOBS_RUNNING, "kind" => kind).increment(1.0);
        let result = self.work(lease).await;
        let ended = self.report(result).await;
        tracing::Span::current().record("ended", ended);
        metrics::gauge!(metric::JOBS_RUNNING, "kind" => kind).decrement(1.0);
        metrics::counter!(metric::JOB_ATTEMPTS, "kind" => kind, "ended" => ended).increment(1);
        metrics::histogram!(metric::JOB_ATTEMPT_SECONDS, "kind" => kind, "ended" => ended)
            .record(claimed_at.elapsed().as_secs_f64());
    }

    /// Runs the handler; gives it up when it has not stopped within the grace of a shutdown.
    async fn work(&self, lease: Lease) -> Result<JobOutcome, JobError> {
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
                // A thread that hangs cannot be ended; as above, its folder is left to the next worker.
                self.stop.request(StopReason::Shutdown);
                return Err(JobError::Retryable(format!(
                    "no progress for {limit_s} s{last} (worker.stall_ms): the attempt is given up; restart this worker if it \
                     hangs again"
                )));
            }
            () = grace_over => {
                tracing::warn!(grace_ms = grace.as_millis() as u64, "the job did not stop in time; giving it up");
                // Its thread may still write to the folder, which the next worker on this machine removes.
                return Err(JobError::Stopped);
            }
        };
        if let Err(error) = tokio::fs::remove_dir_all(&cache_dir).await {
            tracing::warn!(path = %cache_dir.display(), %error, "the job's folder cannot be removed");
        }
        result
    }

    /// Tells the database how it went; says how the attempt ended: succeeded, released, lost, or how it failed.
    async fn report(&self, result: Result<JobOutcome, JobError>) -> &'static str {
        let report = match result {
            Ok(outcome) => {
                self.send_last_progress().await;
                Report::Complete(Box::new(outcome))
            }
            Err(error) => match (error.failure(), self.stop.requested()) {
                (Some((class, error)), _) => Report::Fail(class, shorten(error)),
                (None, Some(StopReason::Shutdown)) => Report::Release("worker is shutting down"),
                (None, Some(StopReason::Pause)) => Report::Release("pause was asked for"),
                (None, Some(StopReason::Cancel)) => Report::Release("cancel was asked for"),
                (None, Some(StopReason::LeaseLost)) => {
                    tracing::warn!("job stopped: its lease was lost");
                    return LOST;
                }
                // Most likely a write was refused before a heartbeat was: then this report is refused, too.
                (None, None) => Report::Fail(FailureClass::Retryable, "stopped without being told to".to_owned()),
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
                tracing::error!(%error, "the report did not get through");
                LOST
            }
            Err(error) => {
                tracing::error!(%error, "the report was refused; failing the job");
                let refused = Report::Fail(FailureClass::Permanent, shorten(format!("report refused: {error}")));
                match self.send(&refused).await {
                    Ok(()) => refused.ended(),
                    Err(error) => {
                        tracing::error!(%error, "the job could not be failed; its lease will run out");
                        LOST
                    }
                }
            }
        }
    }

    /// So that a finished job does not stand at the progress of its last heartbeat. Only for show: not repeated.
    async fn send_last_progress(&self) {
        if let Some(progress) = self.progress.newest() {
            let sent = self.worker.store.heartbeat(self.key, Some(&progress), self.worker.config.lease());
            if let Ok(Err(error)) = tokio::time::timeout(REPORT_RETRY_MAX, sent).await {
                tracing::debug!(%error, "the last progress did not get through");
            }
        }
    }

    /// Sends a report, again and again while the lease lasts: the heartbeat beside it says when it does not.
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
                Err(error) if error.is_retryable() => tracing::warn!(%error, "reporting failed; trying on"),
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

/// How an attempt ended that could not say how.
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
            Self::Fail(FailureClass::Unavailable, error) => tracing::warn!(error, "attempt given up; it is waited for"),
            Self::Fail(FailureClass::Crashed | FailureClass::Killed, error) => tracing::error!(error, "attempt died"),
            Self::Fail(FailureClass::Permanent, error) => tracing::error!(error, "job failed"),
            Self::Release(reason) => tracing::info!(reason, "job given back"),
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
