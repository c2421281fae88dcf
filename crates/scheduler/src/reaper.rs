//! Finds leases that have run out by the database's clock: their workers are dead, their jobs are tried again. Fails jobs that
//! have waited too long for something outside. Far less often, removes what dead workers left in the object store. Ends
//! queries of dashboards that take too long.

use std::time::Duration;

use inheritune_runtime::telemetry::metric;
use inheritune_store::Store;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::SchedulerConfig;

/// Between two looks at the leases: one that has ended may be locked by the heartbeat that came too late.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// No query or transaction of a dashboard lasts longer: its own `statement_timeout` is a default that it may change.
const DASHBOARD_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks at the dashboards' queries.
const DASHBOARD_SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks through the object store: each one lists every artifact.
const ORPHAN_SWEEP_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// Files without a row are kept this long, for people who look into why.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Sweeps leases as they end, and every so often, until `stop`, and orphaned files at its own slow pace.
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
                tracing::warn!(given_up, wait_limit_s = config.wait_limit_s, "jobs waited too long and failed");
            }
            let expired = store.expire_leases().await?;
            if expired > 0 {
                metrics::counter!(metric::LEASES_EXPIRED).increment(expired);
                tracing::info!(expired, "leases ran out; their jobs are tried again");
            }
            store.next_lease_end().await
        };
        let wait = match swept.await {
            Ok(next_end) => next_look(interval, next_end),
            Err(error) => {
                tracing::warn!(%error, "leases could not be swept");
                interval
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The wait before the next look: until the first lease ends, so that a dead worker's job waits for nothing else.
fn next_look(interval: Duration, next_end: Option<Duration>) -> Duration {
    next_end.map_or(interval, |end| end.max(SHORTEST_WAIT)).min(interval)
}

async fn end_dashboard_queries(store: &Store, stop: &CancellationToken) {
    let mut ticks = ticks(DASHBOARD_SWEEP_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match store.end_dashboard_queries(DASHBOARD_LIMIT).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, limit_s = DASHBOARD_LIMIT.as_secs(), "queries of dashboards were ended"),
            Err(error) => tracing::debug!(%error, "the queries of dashboards could not be looked at"),
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
        // A sweep may take long and can be broken off anywhere.
        let swept = tokio::select! {
            swept = sweep => swept,
            () = stop.cancelled() => return,
        };
        match swept {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "files of unpublished artifacts were deleted"),
            Err(error) => tracing::warn!(%error, "orphaned files could not be swept"),
        }
    }
}

/// After a database that did not answer, one sweep finds all; there is nothing to catch up on.
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
