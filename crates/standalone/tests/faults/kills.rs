//! kill -9 of any service at any moment.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::cluster::{Cluster, Setup};

const SERVICES: [&str; 4] = ["scheduler", "slicer", "trainer", "evaluator"];
/// A job is given up after five lost attempts; no storm is to get there.
const KILLS_OF_A_SERVICE: usize = 3;

/// Kills one service after the other during runs of one recipe, until there were `kills`.
async fn storm(kills: usize, kills_a_run: usize, seed: u64) {
    // A shorter lease than by default: more kills in the time.
    let mut cluster = Cluster::start(Setup { worker: "heartbeat_ms = 500\nlease_ms = 2500", ..Setup::default() }).await;
    let mut random = StdRng::seed_from_u64(seed);
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        let run = cluster.create_run().await;
        let mut victims: Vec<&str> = SERVICES.iter().flat_map(|name| [*name; KILLS_OF_A_SERVICE]).collect();
        for _ in 0..kills_a_run {
            tokio::time::sleep(Duration::from_millis(random.random_range(100..1500))).await;
            if cluster.status(run).await.as_deref() == Some("SUCCEEDED") {
                break;
            }
            let victim = victims.swap_remove(random.random_range(0..victims.len()));
            cluster.kill_9(victim);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            cluster.start_service(victim);
            killed += 1;
        }
        cluster.finish(run).await.check_equals_calm().await;
        runs += 1;
        eprintln!("{killed} kills in {runs} runs");
    }
    cluster.check_nothing_is_lost_or_left().await;
    let lost = cluster.count("SELECT count(*) FROM job_attempts WHERE ended = 'expired'").await;
    eprintln!("{killed} kills in {runs} runs, {lost} attempts lost: every run ended with the same weights");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_services_change_nothing() {
    storm(6, 6, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn a_hundred_killed_services_change_nothing() {
    storm(100, 8, 100).await;
}
