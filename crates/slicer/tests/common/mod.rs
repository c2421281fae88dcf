//! Writes checkpoint folders, slices them in a real store, and reads the results with the
//! `safetensors` crate.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use inheritune_api::v1::slicing_service_client::SlicingServiceClient;
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::id::{ArtifactId, LayerCount};
use inheritune_domain::job::{JobRecord, JobStatus, RetryPolicy};
use inheritune_domain::spec::{JobOutcome, JobSpec, LayerMapRule, SliceSource, SliceSpec, Sliced, defaults};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::security::Security;
use inheritune_runtime::serve::{bind, serve};
use inheritune_runtime::worker::{WorkerConfig, run_worker};
use inheritune_slicer::SliceHandler;
use inheritune_store::jobs::NewJob;
use inheritune_store::{Store, StoreConfig};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A gRPC client of the slicer.
pub type Client = SlicingServiceClient<tonic::transport::Channel>;

/// Time limit of a job of these sizes.
const JOB_LIMIT: Duration = Duration::from_secs(60);

/// A private Postgres, an object folder and a folder for checkpoints.
pub struct House {
    pub store: Store,
    pub dir: TempDir,
    postgres: Option<LocalPostgres>,
}

impl House {
    pub async fn build() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let objects = ObjectsConfig {
            storage: StorageConfig::folder(dir.path().join("objects")),
            allowed_uris: vec![format!("file://{}/", dir.path().display())],
        };
        let config = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects };
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, dir, postgres: Some(postgres) }
    }

    pub async fn close(mut self) {
        self.store.pool().close().await;
        self.postgres.take().unwrap().stop().await.unwrap();
    }

    /// The location of the folder `name`, for a job.
    pub fn location(&self, name: &str) -> Location {
        Location::Uri(format!("file://{}", self.dir.path().join(name).display()))
    }

    /// Registers the folder `name` as an artifact.
    pub async fn registered(&self, kind: ArtifactKind, name: &str) -> ArtifactId {
        let Location::Uri(uri) = self.location(name) else { unreachable!() };
        self.store.register_artifact(kind, &uri, json!({}), None).await.unwrap().id
    }

    /// Submits a slice job with at most two attempts, runs it, and returns its final record.
    pub async fn job(&self, handler: SliceHandler, spec: SliceSpec) -> JobRecord {
        self.work(handler, spec, 2).await
    }

    /// Like [`Self::job`], with a single attempt.
    pub async fn job_once(&self, handler: SliceHandler, spec: SliceSpec) -> JobRecord {
        self.work(handler, spec, 1).await
    }

    async fn work(&self, handler: SliceHandler, spec: SliceSpec, max_attempts: u32) -> JobRecord {
        let job = NewJob {
            label: "slice".to_owned(),
            spec: JobSpec::Slice(spec),
            priority: 0,
            retry: RetryPolicy { max_attempts, backoff_ms: 10, backoff_max_ms: 10 },
            run: None,
        };
        let id = self.store.submit_job(&job, None).await.unwrap().id;
        let stop = CancellationToken::new();
        let config = WorkerConfig { poll_ms: 50, cache_dir: self.dir.path().join("cache"), ..WorkerConfig::default() };
        let ended = async {
            loop {
                let record = self.store.job(id).await.unwrap();
                if record.status.is_final() {
                    stop.cancel();
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let both = async { tokio::join!(run_worker(self.store.clone(), handler, config, stop.clone()), ended) };
        let (worked, record) = tokio::time::timeout(JOB_LIMIT, both).await.unwrap();
        worked.unwrap();
        record
    }

    /// Runs a slice that must succeed.
    pub async fn slice(&self, spec: SliceSpec) -> Sliced {
        let record = self.job(inheritune_slicer::handler(&self.store), spec).await;
        match record.outcome {
            Some(JobOutcome::Sliced(sliced)) => sliced,
            outcome => panic!("{outcome:?}, {:?}", record.error),
        }
    }

    /// Checks that slicing each folder fails at the first attempt, with an error that names the
    /// folder and contains the expected text.
    pub async fn fails_for_good(&self, cases: &[(&str, &str)]) {
        for (name, expected) in cases {
            let record = self.job(inheritune_slicer::handler(&self.store), first(self.location(name), 1)).await;
            let error = record.error.unwrap_or_default();
            assert_eq!((record.status, record.attempts), (JobStatus::Failed, 1), "{name}: {error}");
            assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        }
    }

    /// Serves the slicer's gRPC while `calls` runs.
    pub async fn serve(&self, calls: impl AsyncFnOnce(&mut Client)) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let server = serve(listener, inheritune_slicer::services(&self.store), Security::default(), stop.clone());
        let calls = async {
            let mut client = SlicingServiceClient::connect(url).await.unwrap();
            calls(&mut client).await;
            drop(client);
            stop.cancel();
        };
        let (served, ()) = tokio::join!(server, calls);
        served.unwrap();
    }

    /// Reads one file of an artifact.
    pub async fn file(&self, artifact: ArtifactId, name: &str) -> Bytes {
        let folder = self.store.open(&Location::Artifact(artifact)).await.unwrap();
        folder.read(name, 1 << 30).await.unwrap()
    }

    /// The names of an artifact's files.
    pub async fn names(&self, artifact: ArtifactId) -> Vec<String> {
        let folder = self.store.open(&Location::Artifact(artifact)).await.unwrap();
        folder.files().iter().map(|file| file.name.clone()).collect()
    }

    pub async fn json(&self, artifact: ArtifactId, name: &str) -> Value {
        serde_json::from_slice(&self.file(artifact, name).await).unwrap()
    }
}

/// A slice of the first `layers` layers.
pub fn first(checkpoint: Location, layers: u32) -> SliceSpec {
    sliced(checkpoint, layers, (LayerMapRule::First, InheritSet::ALL))
}

pub fn sliced(checkpoint: Location, layers: u32, (layer_map, inherit): (LayerMapRule, InheritSet)) -> SliceSpec {
    let layers = LayerCount(layers);
    let source = SliceSource::Checkpoint { checkpoint, layers, layer_map, inherit, previous: None };
    SliceSpec { source, tokenizer: None, seed: 7, max_shard_size_bytes: defaults::max_shard_size_bytes() }
}

pub fn gpt2_json(layers: u32) -> Value {
    json!({"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"n_embd":8,"n_head":2,"n_layer":layers,"n_positions":16,
        "vocab_size":32,"layer_norm_epsilon":1e-5,"torch_dtype":"float16","house_note":{"z":1,"a":[true,null]},
        "bos_token_id":3,"eos_token_id":3})
}

pub fn llama_json(layers: u32) -> Value {
    json!({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":12,"num_attention_heads":2,
        "num_key_value_heads":1,"num_hidden_layers":layers,"intermediate_size":20,"max_position_embeddings":16,
        "vocab_size":30,"rms_norm_eps":1e-5,"rope_theta":5e5,"tie_word_embeddings":false})
}

/// One tensor of a source file.
pub type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a model of the shape `config`. `name` maps the canonical names to the stored
/// ones. Every tensor has different bytes, and so has every `flavour`.
pub fn tensors(config: &Value, dtype: Dtype, flavour: u8, name: impl Fn(&str) -> String) -> Vec<Tensor> {
    let specs = DecoderConfig::from_hf(config).unwrap().tensors();
    let stored = specs.into_iter().filter(|spec| spec.tied_to.is_none());
    let tensor = |(i, spec): (usize, inheritune_checkpoint::decoder_config::TensorSpec)| {
        let shape: Vec<usize> = spec.shape.iter().map(|d| *d as usize).collect();
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let data = (0..bytes).map(|at| (at * 31 + i * 7 + usize::from(flavour)) as u8).collect();
        (name(&spec.name), dtype, shape, data)
    };
    stored.enumerate().map(tensor).collect()
}

/// GPT-2's names on the hub, which have no prefix.
pub fn bare(name: &str) -> String {
    name.trim_start_matches("transformer.").to_owned()
}

pub fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes a checkpoint folder with one weights file.
pub fn write_checkpoint(dir: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write_tensors(&dir.join("model.safetensors"), tensors);
}

/// Writes a checkpoint folder with `shards` weights files and their index.
pub fn write_sharded(dir: &Path, config: &Value, tensors: &[Tensor], shards: usize) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut weight_map = BTreeMap::new();
    for (i, chunk) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write_tensors(&dir.join(&file), chunk);
        weight_map.extend(chunk.iter().map(|(name, ..)| (name.clone(), file.clone())));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Writes the parts of a token set that a slice reads.
pub fn write_token_set(dir: &Path, vocab_size: u32) {
    std::fs::create_dir_all(dir).unwrap();
    let meta = json!({"vocab_size": vocab_size, "end_of_text_id": 5, "train_tokens": 10, "validation_tokens": 2});
    std::fs::write(dir.join("tokens.json"), meta.to_string()).unwrap();
    std::fs::write(dir.join("train.bin"), [0_u8; 20]).unwrap();
    std::fs::write(dir.join("validation.bin"), [0_u8; 4]).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer_json(vocab_size)).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), "{\"from\": \"the token set\"}\n").unwrap();
}

pub fn tokenizer_json(entries: u32) -> String {
    let vocab: BTreeMap<String, u32> = (0..entries).map(|id| (format!("t{id}"), id)).collect();
    json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}}).to_string()
}

/// Every tensor of a file, by name: type, shape and bytes.
pub fn read_tensors(bytes: &[u8]) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    file.tensors().into_iter().map(tensor).collect()
}
