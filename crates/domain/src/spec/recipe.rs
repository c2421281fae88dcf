//! A recipe as a user writes it: the model to inherit from, the model to derive, and how models are
//! measured.

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
    /// One of the paper's two recipes (poster §2 and §3).
    pub enum Recipe {
        /// Benchmark the reference, inherit n layers, train, grow until the target matches.
        FullData = "full-data",
        /// Inherit n layers once and train several passes over a small part of the data.
        LowData = "low-data",
    }
}

/// A whole run, as described by a recipe file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// A name for people. Runs are identified by id.
    pub name: String,
    /// Full-data or low-data.
    pub recipe: Recipe,
    /// Seed of fresh tensors and of the data order.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Priority, -100 to 100. Higher values run first.
    #[serde(default)]
    pub priority: i32,
    /// The text, and how it becomes tokens.
    pub corpus: CorpusSpec,
    /// The model to inherit from.
    pub reference: ReferenceSpec,
    /// The model to derive.
    pub target: TargetSpec,
    /// How targets and controls are trained.
    pub training: TrainingSpec,
    /// How models are measured.
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// Models trained for comparison with the winner (paper, Table 4).
    #[serde(default)]
    pub controls: Vec<ControlSpec>,
    /// Low-data only: additional trainings on other fractions of the data (paper, Table 3).
    #[serde(default)]
    pub arms: Vec<ArmSpec>,
}

impl RunSpec {
    /// Returns the number of layers of the reference, if the recipe itself defines it.
    pub fn reference_layers(&self) -> Option<LayerCount> {
        self.reference.architecture.as_ref().map(|a| a.n_layers)
    }
}

/// The text of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// Text, JSON lines or arrays, Parquet, or token files (nanoGPT's `train.bin`), recognized by
    /// their content; or one `artifact://` token set. All formats except Parquet may be plain, gzip
    /// or zstd. Hidden files and documentation in a folder are skipped. A text file is one
    /// document, and so is a row. Special tokens that are spelled out in a text, such as
    /// `<|endoftext|>`, become those tokens, as in transformers, in files of every kind: a row that
    /// contains one is two documents to the model. (SentencePiece's own special tokens never do.)
    pub sources: Vec<String>,
    /// The column that contains the text, `text` when absent; `a.b` is `b` within `a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Number of unusable rows (invalid JSON, missing column, or not a string) that may be skipped,
    /// over all sources; 0 when absent. A row with a null or empty text is not a bad row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_bad_rows: u64,
    /// Fraction of the tokens held out at the end of each source for validation; above 0, at most
    /// 0.5.
    #[serde(default = "defaults::validation_fraction")]
    pub validation_fraction: f64,
    /// Where the tokenizer comes from.
    #[serde(default)]
    pub tokenizer: TokenizerSpec,
}

impl CorpusSpec {
    /// Returns the token set, if the corpus is a ready-made one.
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
    /// The tokenizer next to the reference's weights: `tokenizer.json`, else `vocab.json` and
    /// `merges.txt`, else `tokenizer.model`.
    #[default]
    Reference,
    /// A byte-level BPE tokenizer, trained on the corpus.
    Train {
        /// Number of entries, 257 to 65536.
        vocab_size: u32,
    },
    /// A folder that contains a tokenizer.
    Uri(String),
}

/// The model to inherit from: exactly one of the two fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSpec {
    /// A Hugging Face checkpoint folder, or an `artifact://` checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The architecture of a reference that the run trains from scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// How to train it; defaults to the `training` of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingSpec>,
}

/// The model to derive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Layers of the first candidate; defaults to half of the reference's layers (paper §4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_layers: Option<LayerCount>,
    /// Layers added per round; 2 in the paper.
    #[serde(default = "defaults::grow_by")]
    pub grow_by: u32,
    /// Maximum number of rounds. Growth also ends at the depth of the reference.
    #[serde(default = "defaults::max_rounds")]
    pub max_rounds: u32,
    /// A candidate matches if its loss exceeds the reference's loss by at most this many nats.
    #[serde(default)]
    pub tolerance_nats: f64,
    /// Which bound must not exceed the tolerance: the mean difference, or the upper end of its 95 %
    /// confidence interval.
    #[serde(default)]
    pub match_by: MatchBy,
    /// What a grown candidate starts from.
    #[serde(default)]
    pub growth_source: GrowthSource,
    /// Which parts of the reference are inherited: `all`, `official-code`, `blocks`, `nothing`, or
    /// a list of `token_embedding`, `position_embedding`, `attention`, `mlp`, `norms`, `final_norm`
    /// and `head`.
    #[serde(default)]
    pub inherit: InheritSet,
    /// Which layers of the reference are used.
    #[serde(default)]
    pub layer_map: LayerMapRule,
    /// Fraction of the training tokens that the target sees; above 0, at most 1.
    #[serde(default = "defaults::data_fraction")]
    pub data_fraction: f64,
}

named! {
    /// Which bound of a candidate's per-sequence difference from the reference decides a match.
    #[derive(Default)]
    pub enum MatchBy {
        /// The mean (the paper's rule).
        #[default]
        Mean = "mean",
        /// The upper end of the 95 % confidence interval: growth continues until chance is ruled
        /// out.
        Interval = "interval",
    }
}

named! {
    /// What a grown candidate starts from.
    #[derive(Default)]
    pub enum GrowthSource {
        /// All layers from the reference again. The paper's logs show that its runs did this.
        #[default]
        Reference = "reference",
        /// The trained layers of the previous candidate, followed by the next layers of the
        /// reference.
        Carry = "carry",
    }
}

/// How models are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// Maximum number of validation sequences; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u64>,
    /// Sequences per forward pass.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: u32,
    /// Benchmarks of lm-evaluation-harness, and groups of them (`poster`), that every model is also
    /// measured on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub benchmarks: Vec<String>,
    /// The folder with the data sets of the benchmarks, one subfolder per data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark_data: Option<String>,
    /// Number of rows to use from the start of each benchmark; all when absent.
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

/// A model trained for comparison with the winner: random initialization at the winner's depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSpec {
    /// A name for the report; unique among controls and arms.
    pub name: String,
    /// Steps as a multiple of the winner's steps (1 and 2 in the paper), 0.1 to 10.
    #[serde(default = "defaults::steps_factor")]
    pub steps_factor: f64,
}

/// An additional training of the inherited target on a different amount of data (paper, Table 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmSpec {
    /// A name for the report; unique among controls and arms.
    pub name: String,
    /// Fraction of the training tokens; above 0, at most 1.
    pub data_fraction: f64,
    /// Passes over that fraction of the data.
    pub epochs: u32,
}

impl ControlSpec {
    /// Returns the steps of the control, given the steps of the target.
    pub fn steps(&self, target_steps: u64) -> u64 {
        ((target_steps as f64 * self.steps_factor).round() as u64).max(1)
    }
}

impl ArmSpec {
    /// Returns how the arm is trained, given the `training` of the target.
    pub fn training(&self, training: &TrainingSpec) -> TrainingSpec {
        TrainingSpec { steps: None, epochs: Some(self.epochs), ..training.clone() }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
