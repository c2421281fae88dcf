//! Handles the events in the runs' inboxes, one run at a time, and waits for more.

use std::time::Duration;

use inheritune_runtime::telemetry::metric;
use inheritune_store::Store;
use inheritune_store::notify::{Topic, Wakeups};
use tokio_util::sync::CancellationToken;

/// Wait after the first failed attempt; doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait between attempts, so that work resumes soon after a database outage.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Drives runs until `stop`; `poll` is the longest wait for a notification.
pub(crate) async fn drive(store: Store, mut wakeups: Wakeups, poll: Duration, stop: CancellationToken) {
    let mut retry = RETRY_MIN;
    while !stop.is_cancelled() {
        let wait = async {
            // A step is one transaction. It is never interrupted: `stop` is only checked while
            // waiting.
            match store.drive_one_run().await {
                Ok(Some(run)) => {
                    retry = RETRY_MIN;
                    metrics::counter!(metric::RUN_STEPS).increment(1);
                    tracing::debug!(%run, "run driven");
                    None
                }
                Ok(None) => {
                    retry = RETRY_MIN;
                    Some(Wait::ForEvents)
                }
                Err(error) => {
                    let wait = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "cannot drive runs; retrying");
                    Some(Wait::AfterError(wait))
                }
            }
        }
        .await;
        let waiting = async {
            match wait {
                None => {}
                Some(Wait::ForEvents) => wakeups.changed(Topic::Runs, poll).await,
                Some(Wait::AfterError(wait)) => tokio::time::sleep(wait).await,
            }
        };
        tokio::select! {
            () = waiting => {}
            () = stop.cancelled() => {}
        }
    }
}

enum Wait {
    ForEvents,
    AfterError(Duration),
}
