//! Fixtures of the trainer's tests: a real store, a real worker, and tiny real models and token
//! sets.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::job::{JobRecord, JobStatus, RetryPolicy};
use inheritune_domain::spec::{JobSpec, TrainSpec, Trained, TrainingSpec};
use inheritune_lm::tokens::{NewTokenSet, TokenSetWriter};
use inheritune_lm::{Kind, Tensor};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::worker::{WorkerConfig, WorkerError, run_worker};
use inheritune_store::jobs::NewJob;
use inheritune_store::{Store, StoreConfig};
use inheritune_trainer::process_group::Ranks;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Timeout far above what any test needs; only a hanging test reaches it.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Number of rows in the tiny model's embedding.
pub const VOCAB_SIZE: u32 = 300;
/// Maximum sequence length of the tiny model.
pub const MAX_POSITIONS: u32 = 32;

pub struct Bench {
    // Fields drop in this order: Postgres stops before its folder is deleted.
    pub postgres: LocalPostgres,
    pub dir: tempfile::TempDir,
    pub store: Store,
    /// Used by workers that are started from now on.
    pub ranks: Ranks,
}

pub struct Worker {
    stop: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Worker {
    /// Stops the worker as SIGTERM does.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Bench {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let storage = StorageConfig::folder(dir.path().join("objects"));
        let objects = ObjectsConfig { storage, allowed_uris: vec![format!("file://{}/", dir.path().display())] };
        let config = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 8, objects };
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        Self { postgres, dir, store, ranks: Ranks::alone() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self, name: &str) -> Location {
        Location::Uri(format!("file://{}", self.path(name).display()))
    }

    pub async fn register_tokens(&self, name: &str) -> ArtifactId {
        let uri = self.uri(name).to_string();
        self.store.register_artifact(ArtifactKind::TokenSet, &uri, json!({}), None).await.unwrap().id
    }

    pub fn worker(&self, threads: usize) -> Worker {
        let config = WorkerConfig {
            heartbeat_ms: 100,
            poll_ms: 50,
            cache_dir: self.path("cache"),
            threads: Some(threads),
            ..WorkerConfig::default()
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_worker(
            self.store.clone(),
            inheritune_trainer::handler(self.ranks.clone()),
            config,
            stop.clone(),
        ));
        Worker { stop, task }
    }

    pub async fn submit(&self, spec: JobSpec) -> JobId {
        let retry = RetryPolicy { max_attempts: 2, backoff_ms: 1, backoff_max_ms: 1 };
        let job = NewJob { label: "test".to_owned(), spec, priority: 0, retry, run: None };
        self.store.submit_job(&job, None).await.unwrap().id
    }

    pub async fn ended(&self, job: JobId) -> JobRecord {
        self.until(job, |record| record.status.is_final()).await
    }

    pub async fn until(&self, job: JobId, reached: impl Fn(&JobRecord) -> bool) -> JobRecord {
        let wait = async {
            loop {
                let record = self.store.job(job).await.unwrap();
                if reached(&record) {
                    return record;
                }
                assert!(!record.status.is_final(), "{:?}: {:?}", record.status, record.error);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the job did not reach the expected state")
    }

    /// Waits until a metric point of `step` or later is written.
    pub async fn until_step(&self, job: JobId, step: u64) {
        let wait = async {
            while self.store.metrics(job, &["train_loss"], Some(step - 1)).await.unwrap().is_empty() {
                let record = self.store.job(job).await.unwrap();
                assert!(!record.status.is_final(), "{:?}: {:?}", record.status, record.error);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the training did not reach the step");
    }

    /// Runs one job from start to end.
    pub async fn work(&self, spec: JobSpec) -> JobRecord {
        let worker = self.worker(1);
        let record = self.ended(self.submit(spec).await).await;
        worker.stop().await;
        record
    }

    /// Runs a job that must fail in its first attempt, and returns its error.
    pub async fn permanent_error(&self, spec: JobSpec) -> String {
        let record = self.work(spec).await;
        assert_eq!((record.status, record.attempts), (JobStatus::Failed, 1), "{:?}", record.error);
        record.error.unwrap()
    }

    pub async fn read(&self, artifact: ArtifactId, name: &str) -> Vec<u8> {
        let folder = self.store.open(&Location::Artifact(artifact)).await.unwrap();
        folder.read(name, 1 << 30).await.unwrap().to_vec()
    }

    pub async fn json(&self, artifact: ArtifactId, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.read(artifact, name).await).unwrap()
    }
}

/// The outcome of a training that succeeded.
pub fn trained(record: JobRecord) -> Trained {
    match record.outcome {
        Some(inheritune_domain::spec::JobOutcome::Trained(trained)) => trained,
        other => panic!("{:?}: {:?}, {other:?}", record.status, record.error),
    }
}

/// A deterministic sequence of pseudo-random numbers.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Writes a GPT-2 of 2 layers with random weights up to `size` in magnitude; `weight` may change
/// each tensor.
pub fn write_model(dir: &Path, size: f64, weight: impl Fn(&str, Tensor) -> Tensor) {
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 2, "n_embd": 16,
        "n_inner": 32, "n_positions": MAX_POSITIONS, "n_ctx": MAX_POSITIONS, "vocab_size": VOCAB_SIZE,
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "activation_function": "gelu_new",
        "tie_word_embeddings": true, "torch_dtype": "float16",
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for (seed, spec) in (1..).zip(DecoderConfig::from_hf(&config).unwrap().tensors()) {
        if spec.tied_to.is_some() {
            continue;
        }
        let sizes: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
        let mut next = numbers(seed);
        let values: Vec<f32> =
            (0..sizes.iter().product::<i64>()).map(|_| (next() % 2001) as f32 / 1000.0 - 1.0).collect();
        let mut tensor = Tensor::from_slice(&values).view(sizes.as_slice()).to_kind(Kind::Float) * size;
        if spec.name.contains("ln_") && spec.name.ends_with("weight") {
            tensor += 1.0;
        }
        tensors.push((spec.name.clone(), weight(&spec.name, tensor)));
    }
    Tensor::write_safetensors(&tensors, dir.join("model.safetensors")).unwrap();
}

/// Writes a token set with a learnable pattern: each token follows from the previous one, except
/// every fifth token, which is random.
pub fn write_tokens(dir: &Path, vocab_size: u32, total: u64) {
    std::fs::create_dir_all(dir).unwrap();
    let new = NewTokenSet { vocab_size, end_of_text_id: None, tokenizer_sha256: None };
    let mut writer = TokenSetWriter::create(dir, new).unwrap();
    let mut next = numbers(99);
    let mut token = 0;
    let tokens: Vec<u32> = (0..total)
        .map(|i| {
            token = if i % 5 == 0 { (next() % u64::from(vocab_size)) as u32 } else { (token * 7 + 3) % vocab_size };
            token
        })
        .collect();
    writer.push_document(&tokens, total).unwrap();
    writer.finish(0.1).unwrap();
}

/// The spec of a training of `steps` steps; `change` may modify it.
pub fn train_spec(checkpoint: Location, tokens: ArtifactId, steps: u64, change: impl Fn(&mut TrainSpec)) -> JobSpec {
    let training: TrainingSpec = serde_json::from_value(json!({
        "block_size": 16, "micro_batch": 4, "steps": steps, "lr_max": 3e-3, "lr_min": 1e-4, "warmup_steps": 3,
        "log_every_steps": 1, "checkpoint_every_steps": 0,
    }))
    .unwrap();
    let mut spec = TrainSpec { checkpoint, tokens, training, data_fraction: 1.0, seed: 5, expect_inherited: false };
    change(&mut spec);
    JobSpec::Train(spec)
}
