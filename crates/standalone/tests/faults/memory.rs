//! A trainer with less memory than its job needs uses smaller micro-batches and produces the same
//! model.

use std::time::Duration;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{JobOutcome, JobSpec, TrainSpec};
use serde_json::json;

use crate::cluster::{Cluster, Setup};
use crate::jobs::{model, submit, token_set, wait};

/// Sequences per optimizer step.
const SEQUENCES: u32 = 4096;

/// Trains with micro-batches of `micro_batch` sequences, which must succeed in one attempt. Returns
/// the weights and the peak size of the address space in KiB.
async fn train(cluster: &mut Cluster, tokens: ArtifactId, micro_batch: u32) -> (Vec<u8>, Option<u64>) {
    let training = json!({
        "block_size": 128, "micro_batch": micro_batch, "gradient_accumulation": SEQUENCES / micro_batch, "steps": 1,
        "lr_max": 1e-3,
    });
    let spec = TrainSpec {
        checkpoint: model(),
        tokens,
        training: serde_json::from_value(training).unwrap(),
        data_fraction: 1.0,
        seed: 7,
        expect_inherited: false,
    };
    let job = submit(cluster, JobSpec::Train(spec)).await;
    let mut peak_kib = None;
    while !cluster.store.job(job).await.unwrap().status.is_final() {
        peak_kib = cluster.peak_addresses_kib("trainer").max(peak_kib);
        cluster.check_all_run();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let record = wait(cluster, job, |job| job.status == JobStatus::Succeeded || job.error.is_some()).await;
    assert_eq!((record.attempts, &record.error), (1, &None));
    let Some(JobOutcome::Trained(trained)) = record.outcome else { panic!("{record:?}") };
    let folder = cluster.store.open(&Location::Artifact(trained.checkpoint)).await.unwrap();
    (folder.read("model.safetensors", 1 << 30).await.unwrap().to_vec(), peak_kib)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long; run by make test-slow"]
async fn too_large_micro_batches_are_halved_and_make_the_same_model() {
    let mut cluster = Cluster::start(Setup { services: vec!["trainer"], ..Setup::default() }).await;
    let tokens = token_set(&mut cluster).await.0;
    let (halves, halves_kib) = train(&mut cluster, tokens, SEQUENCES / 2).await;
    let Some(halves_kib) = halves_kib else {
        return eprintln!("skipped: this system has no /proc that reports the peak address space of a process");
    };
    let whole_kib = train(&mut cluster, tokens, SEQUENCES).await.1.unwrap();
    eprintln!("address space: {halves_kib} KiB with half-size, {whole_kib} KiB with full-size micro-batches");
    assert!(!cluster.log("trainer").contains("out of memory"));

    cluster.kill_9("trainer");
    // Full-size micro-batches could run with less than their peak, and half-size ones need more
    // after a failed try than in a fresh process. The limit is therefore between both peaks.
    let limit = format!("ulimit -v {} && exec \"$0\" \"$@\"", halves_kib + (whole_kib - halves_kib) / 3);
    cluster.start_within("trainer", &["sh", "-c", &limit]);
    let weights = train(&mut cluster, tokens, SEQUENCES).await.0;
    let log = cluster.log("trainer");
    assert_eq!(log.matches("out of memory: trying once with smaller micro-batches").count(), 1, "{log}");
    assert!(weights == halves, "the weights differ from those of a training with half-size micro-batches");
}
