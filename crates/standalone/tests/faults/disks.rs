//! A full disk, a damaged file, a missing file: the error names the file and the cause, and the job
//! is retried if that may help.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, LayerCount};
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, JobSpec, LayerMapRule, SliceSource, SliceSpec, defaults};

use crate::cluster::{Cluster, Setup};
use crate::jobs::{model, submit, submit_for_one_failure, token_set, tokenize, wait};
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
        [("SHA-256", Some(&flipped)), ("bytes, but the manifest lists", Some(&whole[1..])), ("is missing", None)];
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
        assert_eq!(record.attempts, 1, "it was retried, although the file is still damaged");
        std::fs::write(&path, &whole).unwrap();
    }
    let job = submit(&cluster, validation_loss(tokens)).await;
    wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_tried_again() {
    if !may_mount() {
        return;
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
    assert_eq!(record.status, JobStatus::Queued, "a full disk is worth a retry");
    // The attempt has left no files on the disk.
    cluster.kill_9("evaluator");
    cluster.start_service("evaluator");
    let record = wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
    assert_eq!(record.attempts, 2);
}

/// Returns whether this process may mount small disks.
fn may_mount() -> bool {
    let mounts = Command::new("unshare").args(["-m", "true"]).output();
    let may = mounts.is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("skipped: only root may mount a small disk (unshare -m)");
    }
    may
}

/// Restarts a service with its own, nearly full disk at `path`.
fn start_on_a_small_disk(cluster: &mut Cluster, service: &str, path: &Path) {
    cluster.kill_9(service);
    std::fs::create_dir_all(path).unwrap();
    let mount = format!("mount -t tmpfs -o size=8k tmpfs '{}' && exec \"$0\" \"$@\"", path.display());
    cluster.start_within(service, &["unshare", "-m", "sh", "-c", &mount]);
}

/// Enlarges the disk of a service.
fn make_room(cluster: &Cluster, service: &str, path: &Path) {
    let pid = cluster.pid(service).to_string();
    let grown = Command::new("nsenter")
        .args(["-t", &pid, "-m", "mount", "-o", "remount,size=256m"])
        .arg(path)
        .output()
        .unwrap();
    assert!(grown.status.success(), "{grown:?}");
}

/// Jobs of every kind wait for space on full disks, of their caches and of the object store. They
/// have only one attempt, so any failure would be final.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_a_full_disk_is_waited_for_by_every_kind_of_job() {
    if !may_mount() {
        return;
    }
    let mut cluster = Cluster::start(Setup::default()).await;
    let (tokens, _) = token_set(&mut cluster).await;
    let objects = cluster.objects.clone();
    let disks =
        [("trainer", cluster.cache_dir("trainer")), ("evaluator", cluster.cache_dir("evaluator")), ("slicer", objects)];
    for (service, path) in &disks {
        start_on_a_small_disk(&mut cluster, service, path);
    }
    let source = SliceSource::Checkpoint {
        checkpoint: model(),
        layers: LayerCount(1),
        layer_map: LayerMapRule::First,
        inherit: InheritSet::ALL,
        previous: None,
    };
    let max_shard_size_bytes = defaults::max_shard_size_bytes();
    let slice = JobSpec::Slice(SliceSpec { source, tokenizer: None, seed: 1, max_shard_size_bytes });
    let specs = [tokenize(&cluster), validation_loss(tokens), slice];
    let mut waiting = Vec::new();
    for spec in specs {
        waiting.push(submit_for_one_failure(&cluster, spec).await);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    for job in &waiting {
        let record = wait(&mut cluster, *job, |job| job.counts.waits >= 3).await;
        eprintln!("{}: {:?}: {}", record.spec.kind().as_str(), record.counts, record.error.as_deref().unwrap());
        assert!(record.counts.failed == 0 && record.counts.waiting_since.is_some());
        assert!(record.error.unwrap().contains("No space left on device"));
    }
    for (service, path) in &disks {
        make_room(&cluster, service, path);
    }
    for job in waiting {
        wait(&mut cluster, job, |job| job.status == JobStatus::Succeeded).await;
    }
}
