//! A full disk, a damaged file, a missing one: the error names file and cause, and is tried again where that may help.

use std::process::Command;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, JobSpec};

use crate::cluster::{Cluster, Setup};
use crate::jobs::{model, submit, token_set, wait};
use crate::support::root;

fn validation_loss(tokens: ArtifactId) -> JobSpec {
    let task = EvaluationTask::ValidationLoss { tokens, block_size: 16, max_sequences: None };
    JobSpec::Evaluate(EvaluateSpec::new(model(), vec![task]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_missing_files_fail_a_job_at_once_by_name() {
    let services = vec!["scheduler", "trainer", "evaluator"];
    let mut cluster = Cluster::start(Setup { services, ..Setup::default() }).await;
    let (tokens, path) = token_set(&mut cluster).await;
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let cases: [(&str, Option<&[u8]>); 3] =
        [("SHA-256", Some(&flipped)), ("bytes, not the", Some(&whole[1..])), ("is missing", None)];
    for (cause, found) in cases {
        std::fs::remove_file(&path).unwrap();
        if let Some(bytes) = found {
            std::fs::write(&path, bytes).unwrap();
        }
        let job = submit(&cluster, validation_loss(tokens)).await;
        let record = wait(&mut cluster, job, |job| job.status == JobStatus::Failed).await;
        let error = record.error.unwrap();
        eprintln!("{error}");
        assert!(error.contains(&name) && error.contains(cause), "{name}, {cause}: {error}");
        assert_eq!(record.attempts, 1, "it was tried again, though it is as damaged as before");
        std::fs::write(&path, &whole).unwrap();
    }
    let job = submit(&cluster, validation_loss(tokens)).await;
    wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_tried_again() {
    let mounts = Command::new("unshare").args(["-m", "true"]).output();
    if !mounts.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: only root may mount a small disk (unshare -m)");
    }
    let mut cluster = Cluster::start(Setup { services: vec!["scheduler", "evaluator"], ..Setup::default() }).await;
    let cache = cluster.cache_dir("evaluator");
    let mount = format!("mount -t tmpfs -o size=64k tmpfs '{}' && exec \"$0\" \"$@\"", cache.display());
    cluster.kill_9("evaluator");
    std::fs::create_dir_all(&cache).unwrap();
    cluster.start_within("evaluator", &["unshare", "-m", "sh", "-c", &mount]);
    let data = root().join("crates/evaluator/tests/golden/data");
    let data = Location::Uri(format!("file://{}", data.display()));
    let task = EvaluationTask::Benchmark { name: "piqa".to_owned(), data, limit: None };
    let job = submit(&cluster, JobSpec::Evaluate(EvaluateSpec::new(model(), vec![task]))).await;
    let record = wait(&mut cluster, job, |job| job.error.is_some()).await;
    let error = record.error.unwrap();
    eprintln!("{error}");
    assert!(error.contains(cache.to_str().unwrap()) && error.contains("No space left on device"), "{error}");
    assert_eq!(record.status, JobStatus::Queued, "a full disk is worth another try");
    // Nothing of the attempt is left on the disk.
    cluster.kill_9("evaluator");
    cluster.start_service("evaluator");
    let record = wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
    assert_eq!(record.attempts, 2);
}
