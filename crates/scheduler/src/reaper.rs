//! Finds leases that have run out by the database's clock: their workers are dead, their jobs are tried again.

use std::time::Duration;

use inheritune_store::Store;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Sweeps every `interval` until `stop`.
pub(crate) async fn reap(store: Store, interval: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    // After a database that did not answer, one sweep finds all; there is nothing to catch up on.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match store.expire_leases().await {
            Ok(0) => {}
            Ok(expired) => tracing::info!(expired, "leases ran out; their jobs are tried again"),
            Err(error) => tracing::warn!(%error, "leases could not be swept"),
        }
    }
}
