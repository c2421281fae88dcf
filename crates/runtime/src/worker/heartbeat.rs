//! Renews one lease, independently of its handler.

use std::time::Duration;

use inheritune_domain::job::Directive;
use inheritune_store::jobs::LeaseKey;
use inheritune_store::{Store, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::metric;

use super::{ProgressSender, StopReason, StopSignal, WorkerConfig};

/// Durations derived from the configuration.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// Duration of the lease, from the time the database receives the request.
    lease: Duration,
    /// Time between two successful heartbeats.
    interval: Duration,
    /// Time after a failed heartbeat.
    retry: Duration,
    /// Time for the last try, and also the time that is left of the lease when that has failed, in
    /// which the job must stop.
    margin: Duration,
    /// Longest wait for one response: a lost connection must leave time for a second try.
    answer_limit: Duration,
}

impl Timing {
    fn new(config: &WorkerConfig) -> Self {
        let lease = config.lease();
        let interval = Duration::from_millis(config.heartbeat_ms);
        Self { lease, interval, retry: interval / 4, margin: lease / 10, answer_limit: lease * 3 / 10 }
    }
}

/// One lease, and everything that depends on it.
pub(super) struct Heartbeat {
    pub(super) store: Store,
    pub(super) lease: LeaseKey,
    pub(super) stop: StopSignal,
    pub(super) progress: ProgressSender,
    /// Time until which the lease lasts, for a job that tracks the lease itself.
    pub(super) lease_until: watch::Sender<Instant>,
}

impl Heartbeat {
    /// Sends heartbeats until dropped. Returns early, with [`StopReason::LeaseLost`], if the
    /// database reports that the lease is lost, or if no heartbeat succeeded until shortly before
    /// the lease would expire. That time is measured by this machine's monotonic clock, from before
    /// the last successful request was sent, so it is never later than the expiry in the database.
    pub(super) async fn keep_alive(self, config: WorkerConfig, claimed_at: Instant) {
        let timing = Timing::new(&config);
        let mut last_try = claimed_at + timing.lease - 2 * timing.margin;
        let mut next = Instant::now() + timing.interval;
        let mut failures = 0_u32;
        loop {
            tokio::time::sleep_until(next.min(last_try)).await;
            let sent = Instant::now();
            let limit = timing.answer_limit.min(last_try.saturating_duration_since(sent)).max(timing.margin);
            let progress = self.progress.newest();
            let beat = self.store.heartbeat(self.lease, progress.as_ref(), timing.lease);
            let problem = match tokio::time::timeout(limit, beat).await {
                Ok(Ok(directive)) => {
                    if failures > 0 {
                        tracing::info!(failures, "heartbeats succeed again");
                    }
                    failures = 0;
                    last_try = sent + timing.lease - 2 * timing.margin;
                    self.lease_until.send_replace(sent + timing.lease - timing.margin);
                    next = sent + timing.interval;
                    self.obey(directive);
                    continue;
                }
                Ok(Err(StoreError::LeaseLost(_))) => {
                    tracing::warn!("the lease was lost; stopping the job");
                    self.stop.request(StopReason::LeaseLost);
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {} ms", limit.as_millis()),
            };
            metrics::counter!(metric::HEARTBEAT_FAILURES).increment(1);
            if Instant::now() >= last_try {
                tracing::warn!(problem, "no heartbeat succeeded before the lease expires; stopping the job");
                self.stop.request(StopReason::LeaseLost);
                return;
            }
            if failures == 0 {
                tracing::warn!(problem, "a heartbeat failed; retrying while the lease lasts");
            }
            failures += 1;
            next = Instant::now() + timing.retry;
        }
    }

    fn obey(&self, directive: Directive) {
        match directive {
            Directive::Run => {}
            Directive::Pause => self.stop.request(StopReason::Pause),
            Directive::Cancel => self.stop.request(StopReason::Cancel),
        }
    }
}
