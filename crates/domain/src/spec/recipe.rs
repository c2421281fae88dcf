//! A recipe as a user writes it: what to inherit from, what to derive, and how it is measured.

use serde::{Deserialize, Serialize};

use super::defaults;
use super::training::TrainingSpec;
use crate::artifact::Location;
use crate::id::{ArtifactId, LayerCount};
use inheritune_checkpoint::decoder_config::Architecture;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_checkpoint::layer_map::LayerMapRule;
use inheritune_ids::named;

named! {
    /// Which of the paper's two recipes (poster §2 and §3).
    pub enum Recipe {
        /// Benchmark the reference, inherit n layers, train, grow until the target matches.
        FullData = "full-data",
        /// Inherit n layers once and train several passes over a small part of the data.
        LowData = "low-data",
    }
}

/// A whole run, as a recipe file says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// A name for people; runs are told apart by id.
    pub name: String,
    /// Full-data or low-data.
    pub recipe: Recipe,
    /// Seeds fresh tensors and the data order.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Higher runs first, -100 to 100.
    #[serde(default)]
    pub priority: i32,
    /// The text, and how it becomes tokens.
    pub corpus: CorpusSpec,
    /// The model to inherit from.
    pub reference: ReferenceSpec,
    /// The model to derive.
    pub target: TargetSpec,
    /// How every target and control is trained.
    pub training: TrainingSpec,
    /// How models are measured.
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// Models trained beside the winner for comparison (paper, Table 4).
    #[serde(default)]
    pub controls: Vec<ControlSpec>,
    /// Low-data only: further passes over other fractions of the data (paper, Table 3).
    #[serde(default)]
    pub arms: Vec<ArmSpec>,
}

impl RunSpec {
    /// The reference's depth, where the recipe itself says it.
    pub fn reference_layers(&self) -> Option<LayerCount> {
        self.reference.architecture.as_ref().map(|a| a.n_layers)
    }
}

/// The text of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// Text, JSON lines or arrays, Parquet, or token files (nanoGPT's `train.bin`), told apart by what they hold; all but
    /// Parquet plain, gzip or zstd; or one `artifact://` token set. Of a folder, hidden files and documentation are left out.
    /// A text file is one document, and so is a row. Special tokens that are written out in a text, such as
    /// `<|endoftext|>`, become those tokens, as in transformers, in files of every kind: a row that holds one is two
    /// documents to the model. (SentencePiece's own never do.)
    pub sources: Vec<String>,
    /// The column of rows that holds the text, `text` when absent; `a.b` is `b` within `a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Rows that cannot be used (no JSON, no such column, no string) and may be left out, in all sources together; 0 when
    /// absent. A null or empty text is no bad row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_bad_rows: u64,
    /// Share of the tokens held out at the end of each source for validation; above 0, at most 0.5.
    #[serde(default = "defaults::validation_fraction")]
    pub validation_fraction: f64,
    /// Where the tokenizer comes from.
    #[serde(default)]
    pub tokenizer: TokenizerSpec,
}

impl CorpusSpec {
    /// The ready token set, when the corpus is one.
    pub fn token_set(&self) -> Option<ArtifactId> {
        match self.sources.as_slice() {
            [one] => match one.parse() {
                Ok(Location::Artifact(id)) => Some(id),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Where a tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerSpec {
    /// The tokenizer beside the reference's weights: `tokenizer.json`, else `vocab.json` and `merges.txt`, else
    /// `tokenizer.model`.
    #[default]
    Reference,
    /// A byte-level BPE of this many entries, trained on the corpus.
    Train {
        /// Entries, 257 to 65536.
        vocab_size: u32,
    },
    /// A folder that holds a tokenizer.
    Uri(String),
}

/// The model to inherit from: exactly one of the two fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSpec {
    /// A Hugging Face checkpoint folder, or an `artifact://` checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Train one from scratch, of this shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// How to train it; the run's own `training` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingSpec>,
}

/// The model to derive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Layers of the first candidate; half of the reference's when absent (paper §4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_layers: Option<LayerCount>,
    /// Layers added by each round; 2 in the paper.
    #[serde(default = "defaults::grow_by")]
    pub grow_by: u32,
    /// Rounds at most; growth also ends at the reference's own depth.
    #[serde(default = "defaults::max_rounds")]
    pub max_rounds: u32,
    /// A candidate matches when its loss is at most the reference's plus this many nats.
    #[serde(default)]
    pub tolerance_nats: f64,
    /// What of the difference must be at most so much: its mean, or all of its 95 % interval.
    #[serde(default)]
    pub match_by: MatchBy,
    /// What a grown candidate starts from.
    #[serde(default)]
    pub growth_source: GrowthSource,
    /// Which parts of the reference are inherited: `all`, `official-code`, `blocks`, `nothing`, or a list of
    /// `token_embedding`, `position_embedding`, `attention`, `mlp`, `norms`, `final_norm` and `head`.
    #[serde(default)]
    pub inherit: InheritSet,
    /// Which layers are taken.
    #[serde(default)]
    pub layer_map: LayerMapRule,
    /// Share of the training tokens the target sees, above 0 to 1.
    #[serde(default = "defaults::data_fraction")]
    pub data_fraction: f64,
}

named! {
    /// How a candidate's difference from the reference is read, sequence by sequence.
    #[derive(Default)]
    pub enum MatchBy {
        /// By its mean (the paper's rule).
        #[default]
        Mean = "mean",
        /// By the upper end of its 95 % interval: grows on until chance is ruled out.
        Interval = "interval",
    }
}

named! {
    /// What a grown candidate starts from.
    #[derive(Default)]
    pub enum GrowthSource {
        /// All layers anew from the reference (what the paper's logs show was run).
        #[default]
        Reference = "reference",
        /// The previous candidate's trained layers, then the reference's next ones.
        Carry = "carry",
    }
}

/// How models are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// Validation sequences at most; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u64>,
    /// Sequences a forward pass.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: u32,
    /// Benchmarks of lm-evaluation-harness, and groups of them (`poster`), that every model is measured on besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub benchmarks: Vec<String>,
    /// The folder with the benchmarks' data sets, each in a folder of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark_data: Option<String>,
    /// The first so many rows of each benchmark; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark_limit: Option<u32>,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self {
            max_sequences: None,
            batch_size: defaults::batch_size(),
            benchmarks: Vec::new(),
            benchmark_data: None,
            benchmark_limit: None,
        }
    }
}

/// A model trained beside the winner: random initialisation at the winner's depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSpec {
    /// A name for the report; unique among controls and arms.
    pub name: String,
    /// Steps as a multiple of the winner's (1 and 2 in the paper), 0.1 to 10.
    #[serde(default = "defaults::steps_factor")]
    pub steps_factor: f64,
}

/// A further training of the inherited target on another amount of data (paper, Table 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmSpec {
    /// A name for the report; unique among controls and arms.
    pub name: String,
    /// Share of the training tokens, above 0 to 1.
    pub data_fraction: f64,
    /// Passes over that share.
    pub epochs: u32,
}

impl ControlSpec {
    /// Its steps, of a target that was trained for `target_steps`.
    pub fn steps(&self, target_steps: u64) -> u64 {
        ((target_steps as f64 * self.steps_factor).round() as u64).max(1)
    }
}

impl ArmSpec {
    /// How it is trained, where the target is trained as `training` says.
    pub fn training(&self, training: &TrainingSpec) -> TrainingSpec {
        TrainingSpec { steps: None, epochs: Some(self.epochs), ..training.clone() }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
