//! Finds leases that have run out by the database's clock: their workers are dead, their jobs are tried again. Far less
//! often, removes what dead workers left in the object store.

use std::time::Duration;

use inheritune_runtime::telemetry::metric;
use inheritune_store::Store;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Between two looks through the object store: each one lists every artifact.
const ORPHAN_SWEEP_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// Files without a row are kept this long, for people who look into why.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Sweeps leases every `interval` until `stop`, and orphaned files at its own slow pace.
pub(crate) async fn reap(store: Store, interval: Duration, stop: CancellationToken) {
    tokio::join!(expire_leases(&store, interval, &stop), sweep_orphans(&store, &stop));
}

async fn expire_leases(store: &Store, interval: Duration, stop: &CancellationToken) {
    let mut ticks = ticks(interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match store.expire_leases().await {
            Ok(0) => {}
            Ok(expired) => {
                metrics::counter!(metric::LEASES_EXPIRED).increment(expired);
                tracing::info!(expired, "leases ran out; their jobs are tried again");
            }
            Err(error) => tracing::warn!(%error, "leases could not be swept"),
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
fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
