//! Periodic cleanup. Finds leases that have expired by the database's clock: their workers are
//! dead, and their jobs are retried. Fails jobs that have waited too long for an external resource.
//! Cancels dashboard queries that take too long. Much less often, deletes files that dead workers
//! left in the object store.

use std::time::Duration;

use inheritune_runtime::telemetry::metric;
use inheritune_store::Store;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::SchedulerConfig;

/// Shortest wait between two lease sweeps: an expired lease may still be locked by a late
/// heartbeat.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// Longest query or transaction of a dashboard. The role's `statement_timeout` is not enough,
/// because it is only a default that a session may change.
const DASHBOARD_LIMIT: Duration = Duration::from_secs(15);
/// Interval between two checks of dashboard queries.
const DASHBOARD_SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two sweeps of the object store; each sweep lists every artifact.
const ORPHAN_SWEEP_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// Files without a row are kept this long, so that their cause can be investigated.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Sweeps leases, orphaned files and dashboard queries until `stop`. Leases are swept at a fixed
/// interval, and also as soon as one expires.
pub(crate) async fn reap(store: Store, config: SchedulerConfig, stop: CancellationToken) {
    tokio::join!(
        sweep_jobs(&store, &config, &stop),
        sweep_orphans(&store, &stop),
        end_dashboard_queries(&store, &stop)
    );
}

async fn sweep_jobs(store: &Store, config: &SchedulerConfig, stop: &CancellationToken) {
    let interval = config.sweep();
    loop {
        let swept = async {
            let given_up = store.give_up_waiting(config.wait_limit()).await?;
            if given_up > 0 {
                tracing::warn!(given_up, wait_limit_s = config.wait_limit_s, "failed jobs that waited too long");
            }
            let expired = store.expire_leases().await?;
            if expired > 0 {
                metrics::counter!(metric::LEASES_EXPIRED).increment(expired);
                tracing::info!(expired, "leases expired; their jobs will be retried");
            }
            store.next_lease_end().await
        };
        let wait = match swept.await {
            Ok(next_end) => next_look(interval, next_end),
            Err(error) => {
                tracing::warn!(%error, "cannot sweep leases");
                interval
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Returns the wait before the next sweep: until the first lease expires, so that a dead worker's
/// job is retried without further delay, but at most `interval`.
fn next_look(interval: Duration, next_end: Option<Duration>) -> Duration {
    next_end.map_or(interval, |end| end.max(SHORTEST_WAIT)).min(interval)
}

async fn end_dashboard_queries(store: &Store, stop: &CancellationToken) {
    let mut ticks = ticks(DASHBOARD_SWEEP_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match store.end_dashboard_queries(DASHBOARD_LIMIT).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, limit_s = DASHBOARD_LIMIT.as_secs(), "cancelled dashboard queries"),
            Err(error) => tracing::debug!(%error, "cannot check dashboard queries"),
        }
    }
}

async fn sweep_orphans(store: &Store, stop: &CancellationToken) {
    let mut ticks = ticks(ORPHAN_SWEEP_INTERVAL);
    loop {
        let sweep = async {
            ticks.tick().await;
            store.sweep_orphans(ORPHAN_AGE).await
        };
        // A sweep may take long, and can be interrupted anywhere.
        let swept = tokio::select! {
            swept = sweep => swept,
            () = stop.cancelled() => return,
        };
        match swept {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "deleted files of unpublished artifacts"),
            Err(error) => tracing::warn!(%error, "cannot sweep orphaned files"),
        }
    }
}

/// Returns an interval that skips missed ticks: after a database outage, one sweep finds
/// everything.
pub(crate) fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_when_the_first_lease_ends_or_as_usual() {
        let ms = Duration::from_millis;
        assert_eq!(next_look(ms(1000), None), ms(1000));
        assert_eq!(next_look(ms(1000), Some(ms(4200))), ms(1000));
        assert_eq!(next_look(ms(1000), Some(ms(320))), ms(320));
        assert_eq!(next_look(ms(1000), Some(ms(0))), SHORTEST_WAIT);
        assert_eq!(next_look(ms(5), Some(ms(0))), ms(5));
    }
}
