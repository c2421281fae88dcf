//! The spec of a job: one of four kinds, each with everything that its worker needs to know.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::training::TrainingSpec;
use super::{architecture, defaults, limits};
use crate::artifact::Location;
use crate::benchmark;
use crate::id::{ArtifactId, JobId, LayerCount, Sha256Digest};
use crate::job::METRICS;
use crate::violation::Violations;
use inheritune_checkpoint::decoder_config::Architecture;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_checkpoint::layer_map::LayerMapRule;
use inheritune_ids::named;

/// The work of a job. The variant determines the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobSpec {
    /// Turns text into a token set.
    Tokenize(TokenizeSpec),
    /// Turns a reference or an architecture into an untrained target checkpoint.
    Slice(SliceSpec),
    /// Trains a checkpoint.
    Train(TrainSpec),
    /// Measures a checkpoint.
    Evaluate(EvaluateSpec),
}

impl JobSpec {
    /// Returns the queue of the job.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Tokenize(_) => JobKind::Tokenize,
            Self::Slice(_) => JobKind::Slice,
            Self::Train(_) => JobKind::Train,
            Self::Evaluate(_) => JobKind::Evaluate,
        }
    }

    /// Returns the names of the curves that the job may write: the metrics of a training, or the
    /// running scores of an evaluation, such as `piqa.acc`.
    pub fn curves(&self) -> Vec<String> {
        match self {
            Self::Evaluate(spec) => spec.tasks.iter().flat_map(EvaluationTask::curves).collect(),
            Self::Tokenize(_) | Self::Slice(_) | Self::Train(_) => METRICS.map(str::to_owned).to_vec(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All violations, with fields named relative to the spec of the kind.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        match self {
            Self::Tokenize(spec) => {
                validate_sources(&spec.sources, "sources", &mut v);
                limits::VALIDATION_FRACTION.check(&mut v, "validation_fraction", spec.validation_fraction);
                limits::COLUMN.check_optional(&mut v, "text_column", spec.text_column.as_deref());
                limits::BAD_ROWS.check(&mut v, "max_bad_rows", spec.max_bad_rows);
                match &spec.tokenizer {
                    TokenizerSource::Train { vocab_size } => {
                        limits::TRAINED_VOCAB.check(&mut v, "tokenizer.train.vocab_size", *vocab_size);
                    }
                    TokenizerSource::From(location) => validate_location(location, "tokenizer.from", &mut v),
                }
            }
            Self::Slice(spec) => spec.validate(&mut v),
            Self::Train(spec) => {
                if let Err(inner) = spec.training.validate() {
                    v.nest("training", inner);
                }
                validate_location(&spec.checkpoint, "checkpoint", &mut v);
                limits::DATA_FRACTION.check(&mut v, "data_fraction", spec.data_fraction);
            }
            Self::Evaluate(spec) => spec.validate(&mut v),
        }
        v.into_result()
    }
}

named! {
    /// The queue of a job.
    pub enum JobKind {
        /// Run by trainers.
        Tokenize = "tokenize",
        /// Run by slicers.
        Slice = "slice",
        /// Run by trainers.
        Train = "train",
        /// Run by evaluators.
        Evaluate = "evaluate",
    }
}

/// Turns text into a token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizeSpec {
    /// Locations of text, JSON lines or arrays, Parquet, or token files (`train.bin`), in this
    /// order. Formats are recognized by content. All formats except Parquet may be plain, gzip or
    /// zstd.
    pub sources: Vec<Location>,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// Fraction of the tokens held out at the end of each source.
    #[serde(default = "defaults::validation_fraction")]
    pub validation_fraction: f64,
    /// The column that contains the text, `text` when absent; `a.b` is `b` within `a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Number of unusable rows (invalid JSON, missing column, or not a string) that may be skipped,
    /// over all sources.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_bad_rows: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where a tokenize job's tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerSource {
    /// Train a byte-level BPE tokenizer on the sources.
    Train {
        /// Number of entries.
        vocab_size: u32,
    },
    /// A folder or artifact that contains a tokenizer: `tokenizer.json`, else `vocab.json` and
    /// `merges.txt`, else `tokenizer.model`.
    From(Location),
}

/// A target checkpoint to slice from a reference or to create from an architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceSpec {
    /// The source of the target's shape and of its inherited tensors.
    pub source: SliceSource,
    /// A token set whose tokenizer files are copied into the target if the source has none.
    pub tokenizer: Option<ArtifactId>,
    /// Seed of fresh tensors.
    #[serde(default)]
    pub seed: u64,
    /// Maximum size of a weights file, unless a single tensor is larger. A larger target is
    /// sharded.
    #[serde(default = "defaults::max_shard_size_bytes")]
    pub max_shard_size_bytes: u64,
}

impl SliceSpec {
    fn validate(&self, v: &mut Violations) {
        match &self.source {
            SliceSource::Architecture { architecture, vocab_size } => {
                if let Err(inner) = architecture::validate_with_vocabulary(architecture, *vocab_size) {
                    v.nest("source", inner);
                }
            }
            SliceSource::Checkpoint { checkpoint, layers, layer_map, .. } => {
                validate_location(checkpoint, "source.checkpoint", v);
                limits::LAYERS.check(v, "source.layers", layers.0);
                if let LayerMapRule::List(list) = layer_map {
                    validate_layer_list(list, "source.layer_map", v);
                    v.check(
                        list.len() == layers.0 as usize,
                        "source.layers",
                        "must be the length of the layer_map list",
                    );
                }
            }
        }
        limits::SHARD_SIZE_BYTES.check(v, "max_shard_size_bytes", self.max_shard_size_bytes);
    }
}

/// The source of a target's shape and of its inherited tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceSource {
    /// A fresh model of this shape, which inherits nothing.
    Architecture {
        /// The shape.
        architecture: Architecture,
        /// Number of rows of the embedding.
        vocab_size: u32,
    },
    /// A reference checkpoint.
    Checkpoint {
        /// The reference.
        checkpoint: Location,
        /// Number of layers of the target.
        layers: LayerCount,
        /// Which layers of the reference they are.
        #[serde(default)]
        layer_map: LayerMapRule,
        /// Which parts are inherited; [`InheritSet::NOTHING`] creates a control of the reference's
        /// shape.
        #[serde(default)]
        inherit: InheritSet,
        /// With `Carry` growth, the previous candidate, whose layers come first.
        previous: Option<ArtifactId>,
    },
}

/// A checkpoint to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The checkpoint with the initial weights.
    pub checkpoint: Location,
    /// The token set.
    pub tokens: ArtifactId,
    /// How to train.
    pub training: TrainingSpec,
    /// Fraction of the training tokens to use, taken from the start.
    #[serde(default = "defaults::data_fraction")]
    pub data_fraction: f64,
    /// Seed of the data order.
    #[serde(default)]
    pub seed: u64,
    /// Whether the weights were inherited. If so, a first loss near ln(vocabulary) fails the job.
    #[serde(default)]
    pub expect_inherited: bool,
}

impl TrainSpec {
    /// Returns the digest that identifies a training. A training state from a different training is
    /// never resumed.
    ///
    /// It is the digest of the JSON of the spec, whose fields appear in declaration order. A field
    /// that was added after the first release is therefore not serialized at its default
    /// (`skip_serializing_if`): a state that was saved before the field existed still belongs to
    /// the same training.
    pub fn digest(&self) -> Sha256Digest {
        // Serializing to memory cannot fail: a spec has no maps with non-string keys.
        Sha256Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// A checkpoint to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateSpec {
    /// The model.
    pub checkpoint: Location,
    /// What to measure.
    pub tasks: Vec<EvaluationTask>,
    /// Sequences per forward pass, for tasks on text.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: u32,
    /// Maximum number of tokens per forward pass of a benchmark, which bounds the memory. A single
    /// longer sequence is still evaluated.
    #[serde(default = "defaults::max_batch_tokens")]
    pub max_batch_tokens: u32,
    /// Whether benchmarks are tokenized with the tokenizer's own special tokens; the tokenizer's
    /// default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_bos_token: Option<bool>,
    /// Whether to evaluate every request of a benchmark separately, as lm-evaluation-harness does
    /// with a batch size of 1. This is slow; it is the baseline for evaluation with shared
    /// prefixes.
    #[serde(default)]
    pub one_by_one: bool,
    /// Scores of another model. Sequences and documents that both models were measured on are
    /// compared in pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<ArtifactId>,
    /// Another evaluate job whose units this job helps to measure. Everything else is as in that
    /// job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helps: Option<JobId>,
}

impl EvaluateSpec {
    /// Creates a spec that measures `checkpoint`, with defaults for everything else.
    pub fn new(checkpoint: Location, tasks: Vec<EvaluationTask>) -> Self {
        Self {
            checkpoint,
            tasks,
            batch_size: defaults::batch_size(),
            max_batch_tokens: defaults::max_batch_tokens(),
            add_bos_token: None,
            one_by_one: false,
            baseline: None,
            helps: None,
        }
    }

    fn validate(&self, v: &mut Violations) {
        validate_location(&self.checkpoint, "checkpoint", v);
        limits::BATCH_SIZE.check(v, "batch_size", self.batch_size);
        limits::BATCH_TOKENS.check(v, "max_batch_tokens", self.max_batch_tokens);
        limits::TASKS.check(v, "tasks", self.tasks.len());
        if !limits::TASKS.holds(self.tasks.len()) {
            return;
        }
        let named = self.tasks.iter().enumerate().filter_map(|(number, task)| match task {
            EvaluationTask::Benchmark { name, .. } => Some((format!("tasks[{number}].name"), name.as_str())),
            EvaluationTask::ValidationLoss { .. } | EvaluationTask::RollingPerplexity { .. } => None,
        });
        validate_benchmarks(named, v);
        for (number, task) in self.tasks.iter().enumerate() {
            let field = |name: &str| format!("tasks[{number}].{name}");
            match task {
                EvaluationTask::ValidationLoss { block_size, max_sequences, .. } => {
                    limits::BLOCK_SIZE.check(v, field("block_size"), *block_size);
                    limits::MAX_SEQUENCES.check_optional(v, field("max_sequences"), *max_sequences);
                }
                EvaluationTask::RollingPerplexity { source } => validate_location(source, &field("source"), v),
                EvaluationTask::Benchmark { data, limit, .. } => {
                    validate_location(data, &field("data"), v);
                    limits::BENCHMARK_LIMIT.check_optional(v, field("limit"), *limit);
                }
            }
        }
    }
}

/// Checks that the names of benchmarks and groups are known, and that no benchmark is listed twice.
/// Each name comes with its field.
pub(super) fn validate_benchmarks<'a>(named: impl IntoIterator<Item = (String, &'a str)>, v: &mut Violations) {
    let mut known = HashSet::new();
    for (field, name) in named {
        if let Some(problem) = limits::BENCHMARK_NAME.problem(name) {
            v.add(field, problem);
            continue;
        }
        match benchmark::select(name) {
            Ok(benchmarks) => {
                if let Some(twice) = benchmarks.iter().find(|benchmark| !known.insert(benchmark.name)) {
                    let through = if twice.name == name { String::new() } else { format!("{name}: ") };
                    v.add(field, format!("{through}{} is listed twice", twice.name));
                }
            }
            Err(problem) => v.add(field, problem),
        }
    }
}

/// Checks a location that was deserialized from JSON. A location parsed from text has already been
/// checked by [`Location`]'s `FromStr`.
fn validate_location(location: &Location, field: &str, v: &mut Violations) {
    if let Location::Uri(uri) = location
        && let Err(problem) = uri.parse::<Location>()
    {
        v.add(field, problem);
    }
}

/// Checks the number of sources, each source, and that none is listed twice.
fn validate_sources(sources: &[Location], field: &str, v: &mut Violations) {
    limits::SOURCES.check(v, field, sources.len());
    if !limits::SOURCES.holds(sources.len()) {
        return;
    }
    let bytes: usize = sources.iter().map(|source| source.to_string().len()).sum();
    limits::SOURCES_BYTES.check(v, field, bytes as u64);
    let mut first = HashMap::new();
    for (i, source) in sources.iter().enumerate() {
        let field = format!("{field}[{i}]");
        validate_location(source, &field, v);
        validate_once(source, (i, &mut first), &field, v);
    }
}

/// Reports a source that repeats an earlier one: its text would count twice, and could be both held
/// out and trained on.
pub(super) fn validate_once<'a, T: Eq + std::hash::Hash>(
    source: &'a T,
    (at, first): (usize, &mut HashMap<&'a T, usize>),
    field: &str,
    v: &mut Violations,
) {
    let earlier = *first.entry(source).or_insert(at);
    v.check(
        earlier == at,
        field,
        format!("repeats source {earlier}: list it once; training.source_weights sets how often a source is used"),
    );
}

/// Checks the length of a layer map and its layers, independently of the reference.
pub(super) fn validate_layer_list(list: &[u32], field: &str, v: &mut Violations) {
    limits::LAYER_LIST.check(v, field, list.len());
    if limits::LAYER_LIST.holds(list.len()) {
        for (i, layer) in list.iter().enumerate() {
            limits::SOURCE_LAYER.check(v, format!("{field}[{i}]"), *layer);
        }
    }
}

impl EvaluationTask {
    fn curves(&self) -> Vec<String> {
        let of = |task: &str, metrics: &[&str]| -> Vec<String> {
            metrics.iter().map(|metric| format!("{task}.{metric}")).collect()
        };
        match self {
            Self::ValidationLoss { .. } => of("validation_loss", &["loss_nats", "perplexity"]),
            Self::RollingPerplexity { .. } => {
                of("rolling_perplexity", &["word_perplexity", "byte_perplexity", "bits_per_byte", "loss_nats"])
            }
            Self::Benchmark { name, .. } => {
                let benchmarks = benchmark::select(name).unwrap_or_default();
                benchmarks.iter().flat_map(|benchmark| of(benchmark.name, benchmark.prompt.metrics())).collect()
            }
        }
    }
}

/// One measurement of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum EvaluationTask {
    /// Mean cross-entropy over the validation tokens of a token set, counting every position once.
    ValidationLoss {
        /// The token set.
        tokens: ArtifactId,
        /// Tokens per sequence.
        block_size: u32,
        /// Maximum number of sequences; all when absent.
        max_sequences: Option<u64>,
    },
    /// WikiText-style rolling perplexity of a text file, one document per file or JSONL row.
    RollingPerplexity {
        /// The text.
        source: Location,
    },
    /// A benchmark of lm-evaluation-harness, or a group of them ([`benchmark::select`]).
    Benchmark {
        /// The name in the harness: `piqa`, `mmlu`.
        name: String,
        /// A folder with the data sets of the benchmarks, one subfolder per data set.
        data: Location,
        /// Number of rows to use from the start of each benchmark; all when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    },
}
