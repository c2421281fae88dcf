//! Gauges of queued and running work in the whole database. Every scheduler reports the same
//! values, so dashboards take the maximum.

use std::time::Duration;

use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::JobKind;
use inheritune_runtime::telemetry::metric;
use inheritune_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::reaper::ticks;

/// Interval between two updates, which matches the usual scrape interval of Prometheus.
const INTERVAL: Duration = Duration::from_secs(15);

/// Updates the gauges until `stop`. They keep their values while the database does not answer. Does
/// nothing if no metrics are served.
pub(crate) async fn watch(store: Store, stop: CancellationToken) {
    if !metric::are_kept() {
        return;
    }
    let mut ticks = ticks(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = set(&store).await {
            tracing::debug!(%error, "cannot count the queue");
        }
    }
}

async fn set(store: &Store) -> Result<(), StoreError> {
    let (depths, runs) = (store.queue_depth().await?, store.run_counts().await?);
    for kind in JobKind::ALL {
        let of_kind = || depths.iter().filter(move |depth| depth.kind == kind);
        // Statuses that no longer occur must be reset to zero.
        for status in JobStatus::ALL.into_iter().filter(|status| !status.is_final()) {
            let jobs: u64 = of_kind().filter(|depth| depth.status == status).map(|depth| depth.jobs).sum();
            metrics::gauge!(metric::JOBS, "kind" => kind.as_str(), "status" => status.as_str()).set(jobs as f64);
        }
        let queued = of_kind().filter(|depth| depth.status == JobStatus::Queued);
        let oldest_seconds = queued.map(|depth| depth.oldest_seconds).fold(0.0, f64::max);
        metrics::gauge!(metric::QUEUE_OLDEST, "kind" => kind.as_str()).set(oldest_seconds);
    }
    for status in JobStatus::ALL {
        let n: u64 = runs.iter().filter(|(of, _)| *of == status).map(|(_, n)| n).sum();
        metrics::gauge!(metric::RUNS, "status" => status.as_str()).set(n as f64);
    }
    Ok(())
}
