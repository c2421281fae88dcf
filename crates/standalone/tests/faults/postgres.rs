//! A database that restarts, loses its connections, or is unavailable.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::cluster::{Cluster, Setup, now_s};
use crate::support::LIMIT;

/// Longest time from the database's return to the first work, in seconds.
const RETURN_LIMIT_S: f64 = 5.0;

/// Waits until some work was done after `since_s`. Returns how many seconds after.
async fn first_work(cluster: &Cluster, since_s: f64) -> f64 {
    // Leases claimed and renewed, metric points written, jobs created and finished.
    let done = "SELECT min(extract(epoch FROM at))::float8 FROM (
                    SELECT heartbeat_at AS at FROM job_queue UNION ALL SELECT created_at FROM metric_points
                    UNION ALL SELECT started_at FROM job_attempts UNION ALL SELECT finished_at FROM jobs
                ) work WHERE at > to_timestamp($1)";
    let started = Instant::now();
    loop {
        let found = sqlx::query_scalar::<_, Option<f64>>(done).bind(since_s).fetch_one(cluster.store.pool()).await;
        if let Ok(Some(at_s)) = found {
            return at_s - since_s;
        }
        assert!(started.elapsed() < LIMIT, "no work is done");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the run, or a new one if it has already finished, as on a fast machine.
async fn underway(cluster: &mut Cluster, run: Uuid) -> Uuid {
    if cluster.status(run).await.as_deref() != Some("SUCCEEDED") {
        return run;
    }
    cluster.finish(run).await.check_equals_calm().await;
    cluster.create_run().await
}

/// Runs during which the database fails once in each of several ways, the last time for `away`.
async fn storm(away: Duration) {
    let mut cluster = Cluster::start(Setup::default()).await;
    let mut run = cluster.create_run().await;
    let mut story = Vec::new();
    for (what, signal, away) in [
        ("connections killed", None, Duration::ZERO),
        ("kill -9 and restart", Some("KILL"), Duration::ZERO),
        ("immediate stop and restart", Some("QUIT"), Duration::ZERO),
        ("away", Some("KILL"), away),
    ] {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        run = underway(&mut cluster, run).await;
        match signal {
            None => {
                let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                              WHERE pid <> pg_backend_pid() AND datname = current_database()";
                assert!(cluster.count(others).await > 8, "hardly any connections");
            }
            Some(signal) => {
                cluster.kill_postgres(signal).await;
                tokio::time::sleep(away).await;
                cluster.check_all_run();
                cluster.start_postgres().await;
            }
        }
        let back_s = now_s();
        run = underway(&mut cluster, run).await;
        let wait_s = first_work(&cluster, back_s).await;
        story.push(format!("{what} ({} s): work resumed after {wait_s:.2} s", away.as_secs()));
        assert!(wait_s <= RETURN_LIMIT_S, "{story:#?}");
    }
    eprintln!("{story:#?}");
    cluster.finish(run).await.check_equals_calm().await;
    cluster.check_nothing_is_lost_or_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_changes_nothing() {
    storm(Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn a_database_that_is_away_for_half_a_minute_changes_nothing() {
    storm(Duration::from_secs(30)).await;
}
