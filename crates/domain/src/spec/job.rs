//! What one job is to do: the four kinds, each with all that its worker needs to know.

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

/// What a job is to do. Which queue it stands in follows from its variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobSpec {
    /// Text to a token set.
    Tokenize(TokenizeSpec),
    /// A reference, or an architecture, to an untrained target checkpoint.
    Slice(SliceSpec),
    /// A checkpoint to a trained checkpoint.
    Train(TrainSpec),
    /// A checkpoint to scores.
    Evaluate(EvaluateSpec),
}

impl JobSpec {
    /// The queue it stands in.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Tokenize(_) => JobKind::Tokenize,
            Self::Slice(_) => JobKind::Slice,
            Self::Train(_) => JobKind::Train,
            Self::Evaluate(_) => JobKind::Evaluate,
        }
    }

    /// Names of the curves that it may write: those of a training, or of an evaluation each score so far, `piqa.acc`.
    pub fn curves(&self) -> Vec<String> {
        match self {
            Self::Evaluate(spec) => spec.tasks.iter().flat_map(EvaluationTask::curves).collect(),
            Self::Tokenize(_) | Self::Slice(_) | Self::Train(_) => METRICS.map(str::to_owned).to_vec(),
        }
    }

    /// Every bad field.
    ///
    /// # Errors
    /// The violations, fields named relative to the kind's own spec.
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
    /// The queue a job stands in.
    pub enum JobKind {
        /// Worked by trainers.
        Tokenize = "tokenize",
        /// Worked by slicers.
        Slice = "slice",
        /// Worked by trainers.
        Train = "train",
        /// Worked by evaluators.
        Evaluate = "evaluate",
    }
}

/// Text to a token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizeSpec {
    /// Text, JSON lines or arrays, Parquet, or token files (`train.bin`), told apart by what they hold; all but Parquet plain,
    /// gzip or zstd; locations, in this order.
    pub sources: Vec<Location>,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// Share of the tokens held out at the end of each source.
    #[serde(default = "defaults::validation_fraction")]
    pub validation_fraction: f64,
    /// The column of rows that holds the text, `text` when absent; `a.b` is `b` within `a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Rows that cannot be used (no JSON, no such column, no string) and may be left out, in all sources together.
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
    /// Train a byte-level BPE on the sources.
    Train {
        /// Entries.
        vocab_size: u32,
    },
    /// A folder or artifact that holds a tokenizer: `tokenizer.json`, else `vocab.json` and `merges.txt`, else
    /// `tokenizer.model`.
    From(Location),
}

/// A target checkpoint to cut or to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceSpec {
    /// What the target's shape, and its inherited tensors, come from.
    pub source: SliceSource,
    /// Whose tokenizer files go into the target when the source has none: a token set.
    pub tokenizer: Option<ArtifactId>,
    /// Seeds fresh tensors.
    #[serde(default)]
    pub seed: u64,
    /// Longest file of weights, where no single tensor is longer; a larger target is sharded.
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

/// What a target's shape, and its inherited tensors, come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceSource {
    /// Nothing is inherited: a fresh model of this shape.
    Architecture {
        /// The shape.
        architecture: Architecture,
        /// Rows of the embedding.
        vocab_size: u32,
    },
    /// A reference checkpoint.
    Checkpoint {
        /// The reference.
        checkpoint: Location,
        /// Layers of the target.
        layers: LayerCount,
        /// Which source layers they are.
        #[serde(default)]
        layer_map: LayerMapRule,
        /// Which parts are inherited; [`InheritSet::NOTHING`] makes a control of the reference's shape.
        #[serde(default)]
        inherit: InheritSet,
        /// `Carry` growth: the previous candidate, whose layers come first.
        previous: Option<ArtifactId>,
    },
}

/// A checkpoint to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// Where the weights start.
    pub checkpoint: Location,
    /// The token set.
    pub tokens: ArtifactId,
    /// How.
    pub training: TrainingSpec,
    /// Share of the training tokens that is used: the first so many.
    #[serde(default = "defaults::data_fraction")]
    pub data_fraction: f64,
    /// Seeds the data order.
    #[serde(default)]
    pub seed: u64,
    /// The weights were inherited: a first loss near ln(vocabulary) then fails the job.
    #[serde(default)]
    pub expect_inherited: bool,
}

impl TrainSpec {
    /// What a training is recognised by: a state of another one is never resumed.
    ///
    /// It is the digest of the spec's JSON, whose fields stand in the order of their declaration. A field that was added after
    /// the first release is therefore not written where it has its default (`skip_serializing_if`): a state that was saved
    /// before the field existed is still that of the same training.
    pub fn digest(&self) -> Sha256Digest {
        // Serialising to memory cannot fail: a spec has no maps with keys that are not strings.
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
    /// Sequences of a text a forward pass.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: u32,
    /// Tokens a forward pass of a benchmark at most, but for a single longer sequence: bounds the memory.
    #[serde(default = "defaults::max_batch_tokens")]
    pub max_batch_tokens: u32,
    /// Whether benchmarks are tokenized with the tokenizer's own special tokens; whatever it does by itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_bos_token: Option<bool>,
    /// Reads every request of a benchmark by itself, as lm-evaluation-harness does with a batch size of 1: slow, and what
    /// sharing beginnings is held against.
    #[serde(default)]
    pub one_by_one: bool,
    /// Scores of another model: sequences and documents that both were measured on are compared pair by pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<ArtifactId>,
    /// Another evaluate job whose units this one helps with; everything else is as in that job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helps: Option<JobId>,
}

impl EvaluateSpec {
    /// Measures `checkpoint`, the rest by default.
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

/// Checks the names of benchmarks and groups, each with its field: they are known, and no benchmark comes twice.
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
                    v.add(field, format!("{through}{} is asked for twice", twice.name));
                }
            }
            Err(problem) => v.add(field, problem),
        }
    }
}

/// Checks what was not read from text, which [`Location`]'s own reading has checked.
fn validate_location(location: &Location, field: &str, v: &mut Violations) {
    if let Location::Uri(uri) = location
        && let Err(problem) = uri.parse::<Location>()
    {
        v.add(field, problem);
    }
}

/// Checks the number of sources, each of them, and that none comes twice.
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

/// Notes a source that an earlier one was already: its text would count twice, and be held out and trained on at once.
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
        format!("is source {earlier} once more: name it once; training.source_weights says how often a source comes"),
    );
}

/// Checks a layer map's length and its layers, whatever the reference has.
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

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum EvaluationTask {
    /// Mean cross-entropy over a token set's validation tokens, every position once.
    ValidationLoss {
        /// The token set.
        tokens: ArtifactId,
        /// Tokens a sequence.
        block_size: u32,
        /// Sequences at most; all of them when absent.
        max_sequences: Option<u64>,
    },
    /// WikiText-style rolling perplexity of a text file, one document a file or JSONL row.
    RollingPerplexity {
        /// The text.
        source: Location,
    },
    /// A benchmark of lm-evaluation-harness, or a group of them ([`benchmark::select`]).
    Benchmark {
        /// The harness's name: `piqa`, `mmlu`.
        name: String,
        /// A folder with the benchmarks' data sets, each in a folder of its own.
        data: Location,
        /// The first so many rows of each benchmark; all of them when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    },
}
