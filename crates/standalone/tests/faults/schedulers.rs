//! Two schedulers on one database.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::cluster::{Cluster, Setup};

/// Longest wait of a run for its next job, in seconds.
const FAILOVER_LIMIT_S: f64 = 5.0;

/// Two schedulers drive runs, and one of them is killed at a time. If one is killed in the middle
/// of a step, the other continues.
async fn storm(runs: usize, seed: u64) {
    let services = vec!["scheduler-1", "scheduler-2", "slicer", "trainer", "evaluator"];
    let mut cluster = Cluster::start(Setup { services, ..Setup::default() }).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut kills = 0;
    for _ in 0..runs {
        let run = cluster.create_run().await;
        while cluster.status(run).await.as_deref() != Some("SUCCEEDED") {
            let victim = ["scheduler-1", "scheduler-2"][random.random_range(0..2)];
            cluster.kill_9(victim);
            kills += 1;
            tokio::time::sleep(Duration::from_millis(random.random_range(500..2000))).await;
            cluster.start_service(victim);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1000))).await;
        }
        cluster.finish(run).await.check_equals_calm().await;
    }
    // The time from the end of a run's job to the creation of its next job.
    let gap = "SELECT coalesce(max(extract(epoch FROM next.created_at - last.finished_at)), 0)::float8
               FROM jobs next, LATERAL (SELECT max(finished_at) AS finished_at FROM jobs j
                                        WHERE j.run_id = next.run_id AND j.finished_at <= next.created_at) last
               WHERE next.run_id IS NOT NULL";
    let gap: f64 = sqlx::query_scalar(gap).fetch_one(cluster.store.pool()).await.unwrap();
    eprintln!(
        "{kills} kills of one of two schedulers in {runs} runs: no job twice; longest wait for a next job {gap:.2} s"
    );
    assert!(gap <= FAILOVER_LIMIT_S, "a run waited {gap:.2} s for its next job");
    cluster.check_nothing_is_lost_or_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_schedulers_one_is_enough() {
    storm(1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn of_two_schedulers_one_is_enough_in_ten_runs() {
    storm(10, 10).await;
}
