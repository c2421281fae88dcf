//! An object store that fails occasionally, or is unavailable.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cluster::{Cluster, Setup};
use crate::faulty_s3::FaultyS3;

/// A run on a server that fails one request in ten, and is unavailable once for `away`. No job
/// fails because of it.
async fn storm(away: Duration, seed: u64) {
    let s3 = FaultyS3::start(0.1, seed).await;
    let setup = Setup { storage: Some(s3.storage()), env: FaultyS3::env(), ..Setup::default() };
    let mut cluster = Cluster::start(setup).await;
    let run = cluster.create_run().await;
    while cluster.count("SELECT count(*) FROM artifacts").await < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.check_all_run();
    }
    s3.faults.outage.store(true, Ordering::Relaxed);
    tokio::time::sleep(away).await;
    s3.faults.outage.store(false, Ordering::Relaxed);
    cluster.finish(run).await.check_equals_calm().await;
    eprintln!("{} s unavailable; {}", away.as_secs(), s3.faults.show());
    assert!(s3.faults.total() >= 10, "hardly any faults");
    let failed = "SELECT format('%s attempt %s %s: %s', j.label, a.attempt, a.ended, a.error)
                  FROM job_attempts a JOIN jobs j ON j.id = a.job_id WHERE a.ended IS DISTINCT FROM 'succeeded'";
    let failed: Vec<String> = sqlx::query_scalar(failed).fetch_all(cluster.store.pool()).await.unwrap();
    assert_eq!(failed, Vec::<String>::new(), "attempts failed or were lost because of it");
    cluster.check_nothing_is_lost_or_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_object_store_changes_nothing() {
    storm(Duration::from_secs(2), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn an_object_store_that_is_away_for_a_minute_changes_nothing() {
    storm(Duration::from_secs(60), 4).await;
}
