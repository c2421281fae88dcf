//! Job processes that are killed, frozen or run out of memory, and workers that are frozen or
//! killed while they run a job: the service stays up, and the results are the same as without
//! faults.

use std::path::Path;
use std::time::{Duration, Instant};

use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{JobOutcome, JobSpec, TrainSpec};
use serde_json::json;

use crate::cluster::{Cluster, Setup, below, send};
use crate::jobs::{model, submit, token_set, wait};
use crate::support::LIMIT;

fn training(tokens: ArtifactId, steps: u32, micro_batch: u32) -> JobSpec {
    let training = json!({
        "block_size": 32, "micro_batch": micro_batch, "steps": steps, "lr_max": 1e-3, "checkpoint_every_steps": 10,
        "keep_newest": 2,
    });
    JobSpec::Train(TrainSpec {
        checkpoint: model(),
        tokens,
        training: serde_json::from_value(training).unwrap(),
        data_fraction: 1.0,
        seed: 7,
        expect_inherited: false,
    })
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the process of the only job that a worker is running.
async fn job_process(cluster: &Cluster, worker: &str) -> u32 {
    let pid = cluster.pid(worker);
    until("no process of a job", || below(pid).len() == 1).await;
    below(pid)[0]
}

async fn has_trained(cluster: &mut Cluster, job: JobId) {
    wait(cluster, job, |job| job.progress.unit == "tokens" && job.progress.done > 0).await;
}

async fn trained(cluster: &mut Cluster, job: JobId) -> (u32, u64) {
    let record = wait(cluster, job, |job| job.status == JobStatus::Succeeded).await;
    let Some(JobOutcome::Trained(trained)) = record.outcome else { panic!("{record:?}") };
    (record.attempts, trained.steps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_job_that_is_killed_or_frozen_leaves_the_trainer_up() {
    let worker = "heartbeat_ms = 300\nlease_ms = 2000";
    let services = vec!["scheduler", "trainer"];
    let mut cluster = Cluster::start(Setup { services, worker, ..Setup::default() }).await;
    let (tokens, _) = token_set(&mut cluster).await;
    for signal in ["KILL", "SEGV", "ABRT"] {
        let job = submit(&cluster, training(tokens, 400, 8)).await;
        has_trained(&mut cluster, job).await;
        let process = job_process(&cluster, "trainer").await;
        send(process, signal);
        // Rust's own handler, which checks for a stack overflow, handles the first SIGSEGV, and two that
        // come before it has run are one. A real fault would be raised again by itself.
        while signal == "SEGV" && lives(process) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _gone = std::process::Command::new("kill").args(["-SEGV", &process.to_string()]).status();
        }
        let record = wait(&mut cluster, job, |job| job.error.is_some()).await;
        let error = record.error.unwrap();
        eprintln!("{error}");
        assert!(error.starts_with("the job's process was terminated by signal") && error.contains(signal), "{error}");
        cluster.check_all_run();
        until("the process is still alive", || !lives(process)).await;
        // The same worker resumes the job.
        let (attempts, steps) = trained(&mut cluster, job).await;
        assert_eq!((attempts, steps), (2, 400));
    }
    // A frozen worker cannot extend the lease. Its job stops by itself, soon after another worker
    // may have claimed it.
    let job = submit(&cluster, training(tokens, 100_000, 8)).await;
    has_trained(&mut cluster, job).await;
    let process = job_process(&cluster, "trainer").await;
    send(cluster.pid("trainer"), "STOP");
    let frozen = Instant::now();
    // It becomes a zombie, because the worker that would reap it is frozen.
    until("the job of a frozen worker continues", || !lives(process)).await;
    eprintln!("the job of the frozen worker ended after {:.1} s", frozen.elapsed().as_secs_f64());
    assert!(frozen.elapsed() < Duration::from_secs(30));
    send(cluster.pid("trainer"), "CONT");
    has_trained(&mut cluster, job).await;
    // The job's process ends when its worker is killed.
    let process = job_process(&cluster, "trainer").await;
    cluster.kill_9("trainer");
    until("the job of a killed worker continues", || !lives(process)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_job_beyond_its_memory_fails_alone() {
    let services = vec!["scheduler", "trainer"];
    let mut cluster = Cluster::start(Setup { services, ..Setup::default() }).await;
    let (tokens, _) = token_set(&mut cluster).await;
    cluster.kill_9("trainer");
    cluster.add_to_config("trainer", "[worker]\n", "job_memory_max_bytes = 400000000\n");
    cluster.start_service("trainer");
    // Several GiB of activations, even after the micro-batches are halved.
    let job = submit(&cluster, training(tokens, 1, 65_536)).await;
    let record = wait(&mut cluster, job, |job| job.error.is_some()).await;
    let error = record.error.unwrap();
    eprintln!("{error}");
    assert!(error.contains("memory"), "{error}");
    cluster.check_all_run();
    let job = submit(&cluster, training(tokens, 20, 8)).await;
    assert_eq!(trained(&mut cluster, job).await, (1, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_ranks_end_with_the_process_of_their_job() {
    let services = vec!["scheduler", "trainer"];
    let mut cluster = Cluster::start(Setup { services, ..Setup::default() }).await;
    let (tokens, _) = token_set(&mut cluster).await;
    cluster.kill_9("trainer");
    cluster.add_argument("trainer", "--ranks=2");
    cluster.start_service("trainer");
    let mut spec = training(tokens, 100_000, 4);
    if let JobSpec::Train(spec) = &mut spec {
        spec.training.gradient_accumulation = 2;
    }
    let job = submit(&cluster, spec).await;
    has_trained(&mut cluster, job).await;
    let processes = below(cluster.pid("trainer"));
    assert_eq!(processes.len(), 2, "the job's process and one more rank");
    for process in &processes {
        assert!(Path::new(&format!("/proc/{process}")).exists());
    }
    send(processes[0], "KILL");
    until("a rank is still alive", || processes.iter().all(|process| !lives(*process))).await;
    has_trained(&mut cluster, job).await;
    let processes = below(cluster.pid("trainer"));
    cluster.kill_9("trainer");
    until("a rank of a killed trainer is still alive", || processes.iter().all(|process| !lives(*process))).await;
}
