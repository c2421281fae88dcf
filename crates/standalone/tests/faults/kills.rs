//! kill -9 of any service at any time.

use std::time::Duration;

use inheritune_domain::id::JobId;
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{JobOutcome, JobSpec, TrainSpec};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::cluster::{Cluster, Setup};
use crate::jobs::{model, submit_for_one_failure, token_set, wait};

const SERVICES: [&str; 4] = ["scheduler", "slicer", "trainer", "evaluator"];
/// A job fails after ten deaths of its worker without progress in between. No test must reach that.
const KILLS_OF_A_SERVICE: usize = 3;

/// Kills random services during runs of one recipe, until there were `kills`.
async fn storm(kills: usize, kills_a_run: usize, seed: u64) {
    // A shorter lease than the default allows more kills in the same time.
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

/// Submits a training without a run, which saves a training state every few steps.
async fn training(cluster: &mut Cluster, steps: u64) -> JobId {
    let (tokens, _) = token_set(cluster).await;
    let training = serde_json::json!({
        "block_size": 16, "micro_batch": 2, "steps": steps, "lr_max": 1e-3, "checkpoint_every_steps": 10, "keep_newest": 3,
    });
    let spec = JobSpec::Train(TrainSpec {
        checkpoint: model(),
        tokens,
        training: serde_json::from_value(training).unwrap(),
        data_fraction: 1.0,
        seed: 1,
        expect_inherited: false,
    });
    submit_for_one_failure(cluster, spec).await
}

/// Kills the trainer `kills` times, mostly after progress, sometimes right after its start.
async fn kill_a_training(kills: u32, steps: u64) {
    let services = vec!["scheduler", "trainer"];
    let worker = "heartbeat_ms = 300\nlease_ms = 1500";
    let mut cluster = Cluster::start(Setup { services, worker, ..Setup::default() }).await;
    let job = training(&mut cluster, steps).await;
    let newest = "SELECT coalesce(max(step), 0) FROM artifacts WHERE kind = 'training_state'";
    for kill in 0..kills {
        let before = cluster.count(newest).await;
        if kill % 3 == 2 {
            wait(&mut cluster, job, |job| job.status == JobStatus::Running).await;
        } else {
            while cluster.count(newest).await == before {
                cluster.check_all_run();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        cluster.kill_9("trainer");
        cluster.start_service("trainer");
        let lost = "SELECT count(*) FROM job_attempts WHERE ended = 'expired'";
        while cluster.count(lost).await <= i64::from(kill) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let counts = cluster.store.job(job).await.unwrap().counts;
        eprintln!("kill {kill} at step {}: {counts:?}", cluster.count(newest).await);
        assert_eq!((counts.failed, counts.lost), (0, u32::from(kill % 3 == 2)));
    }
    let record = wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
    let Some(JobOutcome::Trained(trained)) = record.outcome else { panic!("no outcome") };
    assert_eq!(trained.steps, steps);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_a_training_that_is_killed_again_and_again_is_finished() {
    kill_a_training(5, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn r1_a_training_that_is_killed_thirty_times_is_finished() {
    kill_a_training(30, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_a_failed_run_is_retried_once_its_reason_is_gone() {
    let mut cluster = Cluster::start(Setup::default()).await;
    cluster.kill_9("trainer");
    let run = cluster.create_run().await;
    let corpus = cluster.dir.path().join("corpus.txt");
    let text = std::fs::read(&corpus).unwrap();
    std::fs::remove_file(&corpus).unwrap();
    cluster.start_service("trainer");
    while cluster.status(run).await.as_deref() != Some("FAILED") {
        cluster.check_all_run();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::write(&corpus, text).unwrap();
    let retried = cluster.json(&["run", "retry", &run.to_string()]).await;
    assert_eq!(retried["status"], "RUNNING", "{retried}");
    cluster.finish(run).await.check_equals_calm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn a_hundred_killed_services_change_nothing() {
    storm(100, 8, 100).await;
}
