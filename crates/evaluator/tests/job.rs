//! Complete evaluate jobs: queue, worker, model, published scores; and the catalogue of the
//! service.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::id::{ArtifactId, JobId, WorkerId};
use inheritune_domain::job::{JobRecord, JobStatus, RetryPolicy};
use inheritune_domain::spec::{EvaluateSpec, Evaluated, EvaluationTask, Helped, JobKind, JobOutcome, JobSpec};
use inheritune_evaluator::answer::to_bytes;
use inheritune_evaluator::harness::Measurement;
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::worker::{ProgressSender, StopSignal, WorkerConfig, run_worker};
use inheritune_store::artifacts::ArtifactFilter;
use inheritune_store::evaluation_units::NewUnit;
use inheritune_store::jobs::{JobFilter, NewJob, Page};
use inheritune_store::scores::ScoreOrigin;
use inheritune_store::{Store, StoreConfig};
use support::{VOCAB_SIZE, write_model, write_tokens};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Much longer than any of these tests takes, so only a hanging test reaches it.
const LIMIT: Duration = Duration::from_secs(240);

/// A new store, and a folder with files that jobs may read.
struct House {
    dir: tempfile::TempDir,
    postgres: LocalPostgres,
    store: Store,
}

impl House {
    async fn build() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let storage = StorageConfig::folder(dir.path().join("objects"));
        let golden = golden().canonicalize().unwrap();
        let allowed_uris = [dir.path(), &golden].map(|path| format!("file://{}/", path.display())).to_vec();
        let objects = ObjectsConfig { storage, allowed_uris };
        let config = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 8, objects };
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        Self { dir, postgres, store }
    }

    fn location(&self, name: &str) -> Location {
        Location::Uri(format!("file://{}/{name}", self.dir.path().display()))
    }

    async fn submit(&self, spec: EvaluateSpec) -> JobId {
        let (label, spec, retry) = ("evaluate".to_owned(), JobSpec::Evaluate(spec), RetryPolicy::default());
        self.store.submit_job(&NewJob { label, spec, priority: 0, retry, run: None }, None).await.unwrap().id
    }

    /// Starts `workers` workers, waits until `job` and all other jobs are final, and stops the
    /// workers.
    async fn work(&self, job: JobId, workers: usize) -> JobRecord {
        let stop = CancellationToken::new();
        let mut working = JoinSet::new();
        for number in 0..workers {
            let cache_dir = self.dir.path().join(format!("cache-{number}"));
            let config = WorkerConfig { cache_dir, threads: Some(1), ..WorkerConfig::default() };
            working.spawn(run_worker(self.store.clone(), inheritune_evaluator::handler(), config, stop.clone()));
        }
        let ended = async {
            loop {
                // The scheduler's task.
                self.store.expire_leases().await.unwrap();
                if self.store.job(job).await.unwrap().status.is_final()
                    && self.store.queue_depth().await.unwrap().is_empty()
                {
                    return self.store.job(job).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let record = tokio::time::timeout(LIMIT, ended).await.unwrap();
        stop.cancel();
        while let Some(ended) = working.join_next().await {
            ended.unwrap().unwrap();
        }
        record
    }

    async fn evaluated(&self, spec: EvaluateSpec, workers: usize) -> (JobId, Evaluated) {
        let job = self.submit(spec).await;
        let record = self.work(job, workers).await;
        assert_eq!((record.status, record.error.as_deref()), (JobStatus::Succeeded, None));
        let Some(JobOutcome::Evaluated(evaluated)) = record.outcome else { panic!("another outcome") };
        (job, evaluated)
    }

    async fn rows(&self, scores: ArtifactId) -> String {
        let folder = self.store.open(&Location::Artifact(scores)).await.unwrap();
        String::from_utf8(folder.read("scores.jsonl", 1 << 24).await.unwrap().to_vec()).unwrap()
    }

    /// Number of units that helper jobs measured.
    async fn helped(&self) -> u32 {
        let jobs = self.store.list_jobs(&JobFilter::default(), &Page { size: 1000, token: None }).await.unwrap().items;
        assert!(jobs.iter().all(|job| job.status == JobStatus::Succeeded), "{jobs:?}");
        let units = jobs.iter().map(|job| match job.outcome {
            Some(JobOutcome::Helped(Helped { units })) => units,
            _ => 0,
        });
        units.sum()
    }

    async fn close(self) {
        self.postgres.stop().await.unwrap();
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden_location(name: &str) -> Location {
    Location::Uri(format!("file://{}", golden().canonicalize().unwrap().join(name).display()))
}

/// A spec of benchmarks on the synthetic data sets.
fn benchmarks(model: &str, names: &[&str]) -> EvaluateSpec {
    let task = |name: &&str| EvaluationTask::Benchmark {
        name: (*name).to_owned(),
        data: golden_location("data"),
        limit: None,
    };
    EvaluateSpec::new(golden_location(model), names.iter().map(task).collect())
}

const MANY: [&str; 12] = [
    "arc_easy",
    "boolq",
    "hellaswag",
    "logiqa",
    "mmlu_anatomy",
    "mnli",
    "piqa",
    "qnli",
    "sciq",
    "truthfulqa_mc2",
    "winogrande",
    "wsc273",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evaluate_job_publishes_its_scores() {
    let house = House::build().await;
    write_model(&house.dir.path().join("model"), |_, tensor| tensor);
    write_tokens(&house.dir.path().join("tokens"), VOCAB_SIZE, 100);
    let Location::Uri(tokens) = house.location("tokens") else { panic!() };
    let kind = ArtifactKind::TokenSet;
    let tokens = house.store.register_artifact(kind, &tokens, serde_json::json!({}), None).await.unwrap();
    let task = EvaluationTask::ValidationLoss { tokens: tokens.id, block_size: 16, max_sequences: None };
    let job = house.submit(EvaluateSpec::new(house.location("model"), vec![task])).await;
    let record = house.work(job, 1).await;
    assert_eq!((record.status, record.error.as_deref()), (JobStatus::Succeeded, None));
    assert_eq!((record.progress.done, record.progress.total), (7, 7));
    let Some(JobOutcome::Evaluated(evaluated)) = record.outcome else { panic!("another outcome") };
    let score = evaluated.validation_loss().unwrap();
    assert_eq!((score.metric.as_str(), score.n), ("loss_nats", 7));
    assert_eq!(evaluated.parameters, evaluated.config.parameters());

    let artifact = house.store.artifact(evaluated.scores_artifact).await.unwrap();
    assert_eq!(artifact.kind, ArtifactKind::Scores);
    let rows = house.rows(artifact.id).await;
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 7);
    assert_eq!(rows[6]["tokens"], 3);
    let sum: f64 = rows.iter().map(|row| row["sum_nats"].as_f64().unwrap()).sum();
    assert!((sum / 99.0 - score.value).abs() < 1e-12);
    let folder = house.store.open(&Location::Artifact(artifact.id)).await.unwrap();
    let summary = folder.read("scores.json", 1 << 20).await.unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["scores"][0]["value"].as_f64(), Some(score.value));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_share_an_evaluation_get_the_results_of_a_single_worker() {
    let house = House::build().await;
    let spec = benchmarks("models/tiny-llama", &MANY);
    let (_, alone) = house.evaluated(spec.clone(), 1).await;
    let expected = house.rows(alone.scores_artifact).await;
    let items: u64 = alone.scores.iter().filter(|score| score.metric == "acc").map(|score| score.n).sum();
    assert_eq!(expected.lines().count() as u64, items);
    // On a busy machine the second worker may start too late.
    for _ in 0..10 {
        let (job, together) = house.evaluated(spec.clone(), 3).await;
        assert_eq!(together.scores, alone.scores);
        assert_eq!(house.rows(together.scores_artifact).await, expected);
        let points = house.store.metrics(job, &[], None).await.unwrap();
        assert!(points.iter().any(|point| point.name == "piqa.acc" && point.step == 7), "{points:?}");
        if house.helped().await > 0 {
            return house.close().await;
        }
    }
    panic!("no helper job measured a unit");
}

const MARK: f64 = 1e-9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_measured_is_not_measured_again() {
    let house = House::build().await;
    let spec = benchmarks("models/tiny-gpt2", &MANY);
    let (_, expected) = house.evaluated(spec.clone(), 1).await;
    let job = house.submit(spec.clone()).await;
    // A worker that measures three units, claims a fourth and then disappears.
    let dead = WorkerId(Uuid::now_v7());
    let lease = house.store.claim_jobs(dead, &[JobKind::Evaluate], 1, LIMIT).await.unwrap().remove(0);
    let inputs = vec![golden().join("data"); MANY.len()];
    let measurement = Measurement {
        checkpoint: golden().join("models/tiny-gpt2"),
        inputs,
        spec,
        threads: Some(1),
        stop: StopSignal::default(),
        progress: ProgressSender::default(),
    };
    let (units, answers) = tokio::task::spawn_blocking(move || {
        let mut prepared = measurement.prepare().unwrap();
        let units = prepared.units();
        let new = units.iter().map(|unit| NewUnit {
            task: prepared.tasks[unit.task].name().to_owned(),
            items: unit.items.start as u64..unit.items.end as u64,
            digest: prepared.tasks[unit.task].digest(&unit.items),
        });
        let new: Vec<NewUnit> = new.collect();
        // Differs slightly from what a worker measures, so that the test recognizes it.
        let marked = |unit| {
            let mut answers = prepared.measure(unit, 0).unwrap();
            answers.iter_mut().for_each(|answer| answer.log_likelihood *= 1.0 + MARK);
            to_bytes(&answers)
        };
        let answers: Vec<_> = units[..3].iter().map(marked).collect();
        (new, answers)
    })
    .await
    .unwrap();
    house.store.register_units(lease.key, &units).await.unwrap();
    for answers in &answers {
        let (unit, _) = house.store.claim_unit(lease.key, job).await.unwrap().unwrap();
        house.store.finish_unit(lease.key, job, unit, Ok(answers)).await.unwrap();
    }
    assert_eq!(house.store.claim_unit(lease.key, job).await.unwrap().unwrap().0, 3);
    house.store.heartbeat(lease.key, None, Duration::from_millis(1)).await.unwrap();
    let record = house.work(job, 1).await;
    assert_eq!((record.status, record.attempts), (JobStatus::Succeeded, 2));
    let Some(JobOutcome::Evaluated(evaluated)) = record.outcome else { panic!("another outcome") };
    let (rows, expected) = (house.rows(evaluated.scores_artifact).await, house.rows(expected.scores_artifact).await);
    for (row, expected) in rows.lines().zip(expected.lines()) {
        let [row, expected]: [serde_json::Value; 2] = [row, expected].map(|row| serde_json::from_str(row).unwrap());
        let mark = if MANY[..3].contains(&row["task"].as_str().unwrap()) { MARK } else { 0.0 };
        let value = |row: &serde_json::Value| row["log_likelihoods"][0].as_f64().unwrap();
        assert_eq!(value(&row), value(&expected) * (1.0 + mark), "{row}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_measured_is_kept_when_the_rest_cannot() {
    let house = House::build().await;
    let data = house.dir.path().join("data");
    let copy = |name: &str| {
        std::fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
        std::fs::read_to_string(golden().join("data").join(name)).unwrap()
    };
    let piqa = copy("piqa/validation.jsonl").replacen("\"sol1\"", "\"solution\"", 1);
    std::fs::write(data.join("piqa/validation.jsonl"), piqa).unwrap();
    let boolq = copy("boolq/validation.jsonl");
    std::fs::write(data.join("boolq/validation.jsonl"), &boolq).unwrap();
    // A word that is longer than the model's context.
    let endless = serde_json::json!({ "text": format!("An {}", "endless".repeat(400)) });
    std::fs::create_dir_all(data.join("lambada_openai")).unwrap();
    std::fs::write(data.join("lambada_openai/test.jsonl"), format!("{endless}\n")).unwrap();
    let mut spec = benchmarks("models/tiny-gpt2", &["piqa", "boolq", "qnli", "lambada_openai"]);
    for task in &mut spec.tasks {
        if let EvaluationTask::Benchmark { data, .. } = task {
            *data = house.location("data");
        }
    }
    let job = house.submit(spec).await;
    let record = house.work(job, 1).await;
    let error = record.error.unwrap();
    assert_eq!((record.status, record.attempts), (JobStatus::Failed, 1), "{error}");
    for expected in [
        "piqa: validation row 0: there is no column `sol1` (there are: goal, solution, sol2, label)",
        "qnli: found neither qnli/validation.jsonl nor qnli/validation.parquet nor a folder in the layout of \
         `hf download`; provide the rows and columns of nyu-mll/glue qnli",
        "lambada_openai: test row 0: the continuation has ",
        "1 tasks were measured: artifact ",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let filter = ArtifactFilter { job: Some(job), ..ArtifactFilter::default() };
    let artifacts = house.store.list_artifacts(&filter, &Page { size: 10, token: None }).await.unwrap().items;
    assert_eq!(artifacts.len(), 1);
    let rows = house.rows(artifacts[0].id).await;
    assert_eq!(rows.lines().count(), boolq.lines().count());
    assert!(rows.lines().all(|row| row.contains("\"task\":\"boolq\"")));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_models_are_compared_pair_by_pair() {
    let house = House::build().await;
    let names = ["piqa", "lambada_openai", "wikitext", "truthfulqa_mc2"];
    let (_, first) = house.evaluated(benchmarks("models/tiny-gpt2", &names), 1).await;
    let against = EvaluateSpec { baseline: Some(first.scores_artifact), ..benchmarks("models/tiny-llama", &names) };
    let (_, second) = house.evaluated(against, 1).await;
    let value = |evaluated: &Evaluated, task: &str, metric: &str| {
        evaluated.scores.iter().find(|score| score.task == task && score.metric == metric).unwrap().value
    };
    let difference = |task: &str, metric: &str| {
        let found = second.differences.iter().find(|d| d.task == task && d.metric == metric);
        found.unwrap_or_else(|| panic!("{task} {metric}: {:?}", second.differences)).difference
    };
    for (task, metric) in
        [("piqa", "acc"), ("piqa", "acc_norm"), ("truthfulqa_mc2", "acc"), ("wikitext", "bits_per_byte")]
    {
        let expected = value(&second, task, metric) - value(&first, task, metric);
        assert!((difference(task, metric).value - expected).abs() < 1e-9, "{task} {metric}");
    }
    let nats = value(&second, "lambada_openai", "perplexity").ln() - value(&first, "lambada_openai", "perplexity").ln();
    assert!((difference("lambada_openai", "nats").value - nats).abs() < 1e-9);
    // The tokenizers differ, and with them a word's tokens; the documents do not.
    assert_eq!((difference("piqa", "acc").n, difference("wikitext", "bits_per_byte").n), (7, 5));

    let models = house.store.model_scores(None).await.unwrap();
    let measured: Vec<_> = models.iter().filter(|m| matches!(m.origin, ScoreOrigin::Measured { .. })).collect();
    assert_eq!(measured.iter().map(|model| model.scores.len()).collect::<Vec<_>>(), [8, 8]);
    let published: Vec<_> = models.iter().filter(|m| matches!(m.origin, ScoreOrigin::Published { .. })).collect();
    assert!(published.iter().any(|model| model.model.contains("1.5B") && model.scores.len() == 10));
    house.close().await;
}

#[test]
fn tasks_are_listed_with_their_metrics() {
    let tasks = inheritune_evaluator::tasks::catalogue();
    assert!(tasks.iter().all(|task| !task.description.is_empty() && !task.input.is_empty()));
    let metrics = |name: &str| tasks.iter().find(|task| task.name == name).unwrap().metrics;
    assert_eq!(metrics("rolling_perplexity").len(), 4);
    assert_eq!(metrics("validation_loss"), ["loss_nats", "perplexity"]);
    assert_eq!(metrics("piqa"), ["acc", "acc_norm"]);
    assert_eq!(metrics("mmlu"), ["acc"]);
    assert_eq!(tasks.len(), 2 + 17 + 57 + 7);
}

#[test]
fn the_sample_configuration_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/evaluator.toml");
    let config: inheritune_evaluator::EvaluatorConfig = inheritune_runtime::config::load(&path).unwrap();
    assert_eq!(config.worker.lease_ms, 5000);
}
