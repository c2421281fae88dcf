//! A whole evaluate job: queue, worker, model, published scores; and the service's own answers.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use inheritune_api::v1::evaluation_service_server::EvaluationService as _;
use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::job::{JobStatus, RetryPolicy};
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, JobOutcome, JobSpec};
use inheritune_runtime::worker::{WorkerConfig, run_worker};
use inheritune_store::jobs::NewJob;
use inheritune_store::local_postgres::LocalPostgres;
use inheritune_store::objects::{ObjectsConfig, StorageConfig};
use inheritune_store::{Store, StoreConfig};
use support::{VOCAB_SIZE, write_model, write_tokens};
use tokio_util::sync::CancellationToken;

/// Far beyond what any of this takes: only a hanging test meets it.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evaluate_job_publishes_its_scores() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("model"), |_, tensor| tensor);
    write_tokens(&dir.path().join("tokens"), VOCAB_SIZE, 100);
    let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
    let storage = StorageConfig::folder(dir.path().join("objects"));
    let allowed = format!("file://{}/", dir.path().display());
    let objects = ObjectsConfig { storage, allowed_uris: vec![allowed.clone()] };
    let config = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects };
    let store = Store::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    let tokens = store
        .register_artifact(ArtifactKind::TokenSet, &format!("{allowed}tokens"), serde_json::json!({}), None)
        .await
        .unwrap();

    let spec = EvaluateSpec {
        checkpoint: Location::Uri(format!("{allowed}model")),
        tasks: vec![EvaluationTask::ValidationLoss { tokens: tokens.id, block_size: 16, max_sequences: None }],
        batch_size: 4,
    };
    let job = NewJob {
        label: "evaluate".to_owned(),
        spec: JobSpec::Evaluate(spec),
        priority: 0,
        retry: RetryPolicy::default(),
        run: None,
    };
    let job = store.submit_job(&job, None).await.unwrap().id;
    let stop = CancellationToken::new();
    let worker = WorkerConfig { cache_dir: dir.path().join("cache"), threads: Some(1), ..WorkerConfig::default() };
    let worker = tokio::spawn(run_worker(store.clone(), inheritune_evaluator::handler(), worker, stop.clone()));
    let finished = async {
        loop {
            let record = store.job(job).await.unwrap();
            if record.status.is_final() {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let record = tokio::time::timeout(LIMIT, finished).await.unwrap();
    assert_eq!((record.status, record.error.as_deref()), (JobStatus::Succeeded, None));
    assert_eq!((record.progress.done, record.progress.total), (99, 99));
    let Some(JobOutcome::Evaluated(evaluated)) = record.outcome else { panic!("another outcome") };
    let score = evaluated.validation_loss().unwrap();
    assert_eq!((score.metric.as_str(), score.n), ("loss_nats", 7));
    assert_eq!(evaluated.parameters, evaluated.config.parameters());

    let artifact = store.artifact(evaluated.scores_artifact).await.unwrap();
    assert_eq!(artifact.kind, ArtifactKind::Scores);
    let folder = store.open(&Location::Artifact(artifact.id)).await.unwrap();
    let rows = folder.read("scores.jsonl", 1 << 20).await.unwrap();
    let rows: Vec<serde_json::Value> =
        std::str::from_utf8(&rows).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 7);
    assert_eq!(rows[6]["tokens"], 3);
    let sum: f64 = rows.iter().map(|row| row["sum_nats"].as_f64().unwrap()).sum();
    assert!((sum / 99.0 - score.value).abs() < 1e-12);
    let summary = folder.read("scores.json", 1 << 20).await.unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["scores"][0]["value"].as_f64(), Some(score.value));

    stop.cancel();
    worker.await.unwrap().unwrap();
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn tasks_are_listed_with_their_metrics() {
    let request = tonic::Request::new(inheritune_api::v1::ListTasksRequest {});
    let tasks = inheritune_evaluator::grpc::Evaluation.list_tasks(request).await.unwrap().into_inner().tasks;
    let names: Vec<_> = tasks.iter().map(|task| (task.name.as_str(), task.metrics.len())).collect();
    assert_eq!(names, [("rolling_perplexity", 4), ("validation_loss", 2)]);
    assert!(tasks.iter().all(|task| !task.description.is_empty() && !task.input.is_empty()));
}

#[test]
fn the_sample_configuration_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/evaluator.toml");
    let config: inheritune_evaluator::EvaluatorConfig = inheritune_runtime::config::load(&path).unwrap();
    assert_eq!(config.worker.lease_ms, 5000);
}
