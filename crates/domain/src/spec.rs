//! What a user asks for: the recipe of a run and the specs of its jobs, with their validation.
//!
//! A recipe file (TOML) is a [`RunSpec`] as it stands; the gRPC API carries the same fields.

use serde::{Deserialize, Serialize};

use crate::artifact::Location;
use crate::checkpoint::decoder_config::{Architecture, DecoderConfig};
use crate::checkpoint::layer_map::{InheritSet, LayerMap};
use crate::id::{ArtifactId, LayerCount};
use crate::violation::Violations;

/// Most rounds of growth a recipe may ask for.
pub const MAX_ROUNDS: u32 = 64;
/// Longest recipe name.
pub const MAX_NAME_LEN: usize = 128;
/// Most sources of a corpus.
pub const MAX_SOURCES: usize = 1024;
/// Most controls, and most repetition arms, of a recipe.
pub const MAX_ARMS: usize = 16;

/// Which of the paper's two recipes (poster §2 and §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// Benchmark the reference, inherit n layers, train, grow until the target matches.
    FullData,
    /// Inherit n layers once and train several passes over a small part of the data.
    LowData,
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
    #[serde(default = "default_seed")]
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

/// The text of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// Text, JSONL (`text` column), each plain or gzip or zstd; or one `artifact://` token set.
    pub sources: Vec<String>,
    /// Share of the documents' tokens held out at the end of the corpus for validation; above 0, at most 0.5.
    #[serde(default = "default_validation_fraction")]
    pub validation_fraction: f64,
    /// Where the tokenizer comes from.
    #[serde(default)]
    pub tokenizer: TokenizerSpec,
}

/// Where a tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerSpec {
    /// `tokenizer.json` beside the reference's weights.
    #[default]
    Reference,
    /// A byte-level BPE of this many entries, trained on the corpus.
    Train {
        /// Entries, 257 to 65536.
        vocab_size: u32,
    },
    /// A folder that holds `tokenizer.json`.
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
    #[serde(default = "default_grow_by")]
    pub grow_by: u32,
    /// Rounds at most; growth also ends at the reference's own depth.
    #[serde(default = "default_max_rounds")]
    pub max_rounds: u32,
    /// A candidate matches when its loss is at most the reference's plus this many nats.
    #[serde(default)]
    pub tolerance_nats: f64,
    /// What a grown candidate starts from.
    #[serde(default)]
    pub growth_source: GrowthSource,
    /// Which tensors besides the blocks are inherited.
    #[serde(default)]
    pub inherit: InheritSet,
    /// Which layers are taken.
    #[serde(default)]
    pub layer_map: LayerMapRule,
    /// Share of the training tokens the target sees, above 0 to 1.
    #[serde(default = "one")]
    pub data_fraction: f64,
}

/// What a grown candidate starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum GrowthSource {
    /// All layers anew from the reference (what the paper's logs show was run).
    #[default]
    Reference,
    /// The previous candidate's trained layers, then the reference's next ones.
    Carry,
}

/// How a number of layers becomes a list of source layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum LayerMapRule {
    /// The first n (the paper's recipe).
    #[default]
    First,
    /// The first n-1 and the last.
    FirstAndLast,
    /// This list, whatever n; one round only.
    List(Vec<u32>),
}

impl LayerMapRule {
    /// The source layers of a target of `layers` blocks.
    ///
    /// # Errors
    /// The list cannot be taken from a reference of `reference_layers` blocks.
    pub fn layer_map(&self, layers: LayerCount, reference_layers: LayerCount) -> Result<LayerMap, Violations> {
        let sources = match self {
            Self::First => (0..layers.0).collect(),
            Self::FirstAndLast => (0..layers.0.saturating_sub(1)).chain([reference_layers.0.saturating_sub(1)]).collect(),
            Self::List(list) => list.clone(),
        };
        LayerMap::new(sources, reference_layers)
    }
}

/// How a model is trained (paper §4 and appendix; knobs of the released code).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// Tokens a sequence.
    pub block_size: u32,
    /// Sequences a forward pass.
    pub micro_batch: u32,
    /// Micro-batches a step: tokens a step = block_size x micro_batch x gradient_accumulation.
    #[serde(default = "one_u32")]
    pub gradient_accumulation: u32,
    /// Optimizer steps; or give `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training tokens; or give `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Learning rate after the warm-up.
    pub lr_max: f64,
    /// Learning rate at the end of a cosine.
    #[serde(default)]
    pub lr_min: f64,
    /// Steps of linear warm-up from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// AdamW's decoupled weight decay.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Which parameters decay.
    #[serde(default)]
    pub decay: DecayOn,
    /// AdamW's first moment factor.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// AdamW's second moment factor.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// AdamW's epsilon.
    #[serde(default = "default_adam_eps")]
    pub adam_eps: f64,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    #[serde(default = "one")]
    pub clip_norm: f64,
    /// A metric point every so many steps.
    #[serde(default = "default_log_every")]
    pub log_every_steps: u64,
    /// A quick validation loss for the curves every so many steps; 0 turns it off.
    #[serde(default)]
    pub evaluate_every_steps: u64,
    /// Validation sequences of that quick loss.
    #[serde(default = "default_evaluate_sequences")]
    pub evaluate_sequences: u32,
    /// A resumable checkpoint every so many steps; 0 keeps only those made on stopping.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every_steps: u64,
}

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine from `lr_max` to `lr_min`.
    #[default]
    Cosine,
    /// `lr_max` to the end.
    Constant,
}

/// Which parameters weight decay applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum DecayOn {
    /// Tensors of two or more dimensions, embeddings included (nanoGPT).
    #[default]
    Matrices,
    /// Everything (the released Llama code).
    All,
}

/// How models are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// Validation sequences at most; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u64>,
    /// Sequences a forward pass.
    #[serde(default = "default_evaluation_batch")]
    pub batch_size: u32,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { max_sequences: None, batch_size: default_evaluation_batch() }
    }
}

/// A model trained beside the winner: random initialisation at the winner's depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSpec {
    /// A name for the report; unique among controls and arms.
    pub name: String,
    /// Steps as a multiple of the winner's (1 and 2 in the paper), 0.1 to 10.
    #[serde(default = "one")]
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

fn default_seed() -> u64 {
    1337
}
fn default_validation_fraction() -> f64 {
    0.05
}
fn default_grow_by() -> u32 {
    2
}
fn default_max_rounds() -> u32 {
    8
}
fn default_weight_decay() -> f64 {
    0.1
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.95
}
fn default_adam_eps() -> f64 {
    1e-8
}
fn default_log_every() -> u64 {
    10
}
fn default_evaluate_sequences() -> u32 {
    64
}
fn default_checkpoint_every() -> u64 {
    500
}
fn default_evaluation_batch() -> u32 {
    8
}
fn one() -> f64 {
    1.0
}
fn one_u32() -> u32 {
    1
}

impl TrainingSpec {
    /// Tokens an optimizer step sees.
    pub fn tokens_per_step(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.micro_batch) * u64::from(self.gradient_accumulation)
    }

    /// Optimizer steps over `train_tokens` tokens: `steps`, or as many whole steps as `epochs` passes hold,
    /// at least one.
    pub fn total_steps(&self, train_tokens: u64) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => {
                let block = u64::from(self.block_size).max(1);
                let sequences = train_tokens.saturating_sub(1) / block * u64::from(epochs);
                let sequences_per_step = u64::from(self.micro_batch) * u64::from(self.gradient_accumulation);
                (sequences / sequences_per_step.max(1)).max(1)
            }
            (None, None) => 0,
        }
    }

    /// Every bad field.
    ///
    /// # Errors
    /// The violations, fields named relative to this spec.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        v.check((1..=1 << 20).contains(&self.block_size), "block_size", "must be 1 to 1048576 tokens");
        v.check((1..=1 << 16).contains(&self.micro_batch), "micro_batch", "must be 1 to 65536 sequences");
        v.check(
            (1..=1 << 16).contains(&self.gradient_accumulation),
            "gradient_accumulation",
            "must be 1 to 65536 micro-batches",
        );
        match (self.steps, self.epochs) {
            (Some(_), Some(_)) => v.add("epochs", "give either steps or epochs, not both"),
            (None, None) => v.add("steps", "give steps or epochs"),
            (Some(0), None) => v.add("steps", "must be at least 1"),
            (None, Some(0)) => v.add("epochs", "must be at least 1"),
            (Some(steps), None) => {
                v.check(self.warmup_steps <= steps, "warmup_steps", format!("must not exceed steps ({steps})"));
            }
            (None, Some(_)) => {}
        }
        v.check(positive(self.lr_max) && self.lr_max <= 10.0, "lr_max", "must be above 0 and at most 10");
        v.check(
            self.lr_min >= 0.0 && self.lr_min <= self.lr_max,
            "lr_min",
            "must be at least 0 and at most lr_max",
        );
        v.check(self.weight_decay.is_finite() && self.weight_decay >= 0.0, "weight_decay", "must be at least 0");
        v.check((0.0..1.0).contains(&self.beta1), "beta1", "must be at least 0 and below 1");
        v.check((0.0..1.0).contains(&self.beta2), "beta2", "must be at least 0 and below 1");
        v.check(positive(self.adam_eps), "adam_eps", "must be above 0");
        v.check(self.clip_norm.is_finite() && self.clip_norm >= 0.0, "clip_norm", "must be at least 0; 0 turns clipping off");
        v.check(self.log_every_steps >= 1, "log_every_steps", "must be at least 1");
        v.check(self.evaluate_sequences >= 1, "evaluate_sequences", "must be at least 1");
        v.into_result()
    }
}

fn positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

fn fraction(x: f64) -> bool {
    x.is_finite() && x > 0.0 && x <= 1.0
}

impl RunSpec {
    /// Every bad field of the recipe, without looking at the reference itself.
    ///
    /// # Errors
    /// The violations, fields named as in the recipe file.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        v.check(
            !self.name.is_empty() && self.name.len() <= MAX_NAME_LEN && !self.name.chars().any(char::is_control),
            "name",
            format!("must be 1 to {MAX_NAME_LEN} bytes without control characters"),
        );
        v.check((-100..=100).contains(&self.priority), "priority", "must be -100 to 100");
        self.corpus.validate(&self.reference, &mut v);
        self.reference.validate(&mut v);
        self.validate_target(&mut v);
        if let Err(inner) = self.training.validate() {
            v.nest("training", inner);
        }
        v.check(self.evaluation.batch_size >= 1, "evaluation.batch_size", "must be at least 1");
        v.check(self.evaluation.max_sequences != Some(0), "evaluation.max_sequences", "must be at least 1");
        self.validate_extras(&mut v);
        v.into_result()
    }

    /// The reference's depth, where the recipe itself says it.
    pub fn reference_layers(&self) -> Option<LayerCount> {
        self.reference.architecture.as_ref().map(|a| a.n_layers)
    }

    fn validate_target(&self, v: &mut Violations) {
        let target = &self.target;
        v.check(target.start_layers != Some(LayerCount(0)), "target.start_layers", "must be at least 1");
        v.check((1..=1024).contains(&target.grow_by), "target.grow_by", "must be 1 to 1024 layers");
        v.check(
            (1..=MAX_ROUNDS).contains(&target.max_rounds),
            "target.max_rounds",
            format!("must be 1 to {MAX_ROUNDS}"),
        );
        v.check(
            target.tolerance_nats.is_finite() && target.tolerance_nats >= 0.0,
            "target.tolerance_nats",
            "must be at least 0 nats",
        );
        v.check(fraction(target.data_fraction), "target.data_fraction", "must be above 0 and at most 1");
        if let Some(architecture) = &self.reference.architecture {
            for (field, training) in [("training", Some(&self.training)), ("reference.training", self.reference.training.as_ref())] {
                let Some(training) = training else { continue };
                v.check(
                    training.block_size <= architecture.max_positions,
                    format!("{field}.block_size"),
                    format!("must not exceed reference.architecture.max_positions ({})", architecture.max_positions),
                );
            }
        }
        if self.recipe == Recipe::LowData && self.reference.checkpoint.is_some() && !matches!(target.layer_map, LayerMapRule::List(_)) {
            v.check(target.start_layers.is_some(), "target.start_layers", "is needed with recipe low-data and a given checkpoint");
        }
        if let (Some(start), Some(reference)) = (target.start_layers, self.reference_layers()) {
            v.check(
                start <= reference,
                "target.start_layers",
                format!("{start} is more than the reference's {reference} layers"),
            );
        }
        if let LayerMapRule::List(list) = &target.layer_map {
            v.check(!list.is_empty(), "target.layer_map", "must name at least one layer");
            v.check(
                target.start_layers.is_none_or(|n| n.0 as usize == list.len()),
                "target.start_layers",
                format!("must be absent or the length of the layer_map list ({})", list.len()),
            );
            v.check(target.max_rounds == 1, "target.max_rounds", "must be 1 with an explicit layer_map list");
            if let Some(reference) = self.reference_layers() {
                for (i, source) in list.iter().enumerate() {
                    v.check(
                        *source < reference.0,
                        format!("target.layer_map[{i}]"),
                        format!("layer {source} does not exist: the reference has layers 0 to {}", reference.0.saturating_sub(1)),
                    );
                }
            }
        }
        if target.growth_source == GrowthSource::Carry {
            v.check(
                target.layer_map == LayerMapRule::First,
                "target.layer_map",
                "must be first when growth_source is carry",
            );
        }
    }

    fn validate_extras(&self, v: &mut Violations) {
        v.check(self.controls.len() <= MAX_ARMS, "controls", format!("at most {MAX_ARMS}"));
        v.check(self.arms.len() <= MAX_ARMS, "arms", format!("at most {MAX_ARMS}"));
        v.check(
            self.arms.is_empty() || self.recipe == Recipe::LowData,
            "arms",
            "belong to recipe low-data only",
        );
        let mut names = std::collections::HashSet::new();
        for (i, control) in self.controls.iter().enumerate() {
            let field = format!("controls[{i}]");
            v.check(!control.name.is_empty() && control.name.len() <= MAX_NAME_LEN, format!("{field}.name"), "must be 1 to 128 bytes");
            v.check(names.insert(&control.name), format!("{field}.name"), "is used twice");
            v.check(
                (0.1..=10.0).contains(&control.steps_factor),
                format!("{field}.steps_factor"),
                "must be 0.1 to 10",
            );
        }
        for (i, arm) in self.arms.iter().enumerate() {
            let field = format!("arms[{i}]");
            v.check(!arm.name.is_empty() && arm.name.len() <= MAX_NAME_LEN, format!("{field}.name"), "must be 1 to 128 bytes");
            v.check(names.insert(&arm.name), format!("{field}.name"), "is used twice");
            v.check(fraction(arm.data_fraction), format!("{field}.data_fraction"), "must be above 0 and at most 1");
            v.check((1..=1000).contains(&arm.epochs), format!("{field}.epochs"), "must be 1 to 1000");
        }
    }
}

impl CorpusSpec {
    fn validate(&self, reference: &ReferenceSpec, v: &mut Violations) {
        v.check(
            (1..=MAX_SOURCES).contains(&self.sources.len()),
            "corpus.sources",
            format!("must name 1 to {MAX_SOURCES} sources"),
        );
        for (i, source) in self.sources.iter().enumerate() {
            match source.parse::<Location>() {
                Err(e) => v.add(format!("corpus.sources[{i}]"), e),
                Ok(Location::Artifact(_)) => v.check(
                    self.sources.len() == 1,
                    format!("corpus.sources[{i}]"),
                    "a token set artifact must be the only source",
                ),
                Ok(Location::Uri(_)) => {}
            }
        }
        v.check(
            self.validation_fraction.is_finite() && self.validation_fraction > 0.0 && self.validation_fraction <= 0.5,
            "corpus.validation_fraction",
            "must be above 0 and at most 0.5",
        );
        match &self.tokenizer {
            TokenizerSpec::Reference => v.check(
                reference.checkpoint.is_some() || self.token_set().is_some(),
                "corpus.tokenizer",
                "a reference trained from scratch brings no tokenizer: use train = { vocab_size = N } or uri",
            ),
            TokenizerSpec::Train { vocab_size } => v.check(
                (257..=65_536).contains(vocab_size),
                "corpus.tokenizer.train.vocab_size",
                "must be 257 (256 bytes and the end-of-text token) to 65536",
            ),
            TokenizerSpec::Uri(uri) => {
                if let Err(e) = uri.parse::<Location>() {
                    v.add("corpus.tokenizer.uri", e);
                }
            }
        }
    }

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

impl ReferenceSpec {
    fn validate(&self, v: &mut Violations) {
        match (&self.checkpoint, &self.architecture) {
            (Some(_), Some(_)) => v.add("reference", "give either checkpoint or architecture, not both"),
            (None, None) => v.add("reference", "give checkpoint or architecture"),
            (Some(uri), None) => {
                if let Err(e) = uri.parse::<Location>() {
                    v.add("reference.checkpoint", e);
                }
                v.check(self.training.is_none(), "reference.training", "only a reference with an architecture is trained");
            }
            (None, Some(architecture)) => {
                if let Err(inner) = architecture.validate() {
                    v.nest("reference.architecture", inner);
                }
                if let Some(training) = &self.training
                    && let Err(inner) = training.validate()
                {
                    v.nest("reference.training", inner);
                }
            }
        }
    }
}

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

/// The queue a job stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Worked by trainers.
    Tokenize,
    /// Worked by slicers.
    Slice,
    /// Worked by trainers.
    Train,
    /// Worked by evaluators.
    Evaluate,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Tokenize, Self::Slice, Self::Train, Self::Evaluate];

    /// The name used in SQL, on the wire and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokenize => "tokenize",
            Self::Slice => "slice",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
        }
    }

    /// The kind called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
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

    /// Every bad field.
    ///
    /// # Errors
    /// The violations, fields named relative to the kind's own spec.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        match self {
            Self::Tokenize(spec) => {
                v.check(!spec.sources.is_empty(), "sources", "must name at least one source");
                v.check(
                    spec.validation_fraction > 0.0 && spec.validation_fraction <= 0.5,
                    "validation_fraction",
                    "must be above 0 and at most 0.5",
                );
                if let TokenizerSource::Train { vocab_size } = spec.tokenizer {
                    v.check((257..=65_536).contains(&vocab_size), "tokenizer.train.vocab_size", "must be 257 to 65536");
                }
            }
            Self::Slice(spec) => match &spec.source {
                SliceSource::Architecture { architecture, vocab_size } => {
                    if let Err(inner) = architecture.validate() {
                        v.nest("source.architecture", inner);
                    }
                    v.check(*vocab_size >= 1, "source.vocab_size", "must be at least 1");
                }
                SliceSource::Checkpoint { layers, layer_map, .. } => {
                    v.check(*layers >= LayerCount(1), "source.layers", "must be at least 1");
                    if let LayerMapRule::List(list) = layer_map {
                        v.check(list.len() == layers.0 as usize, "source.layers", "must be the length of the layer_map list");
                    }
                }
            },
            Self::Train(spec) => {
                if let Err(inner) = spec.training.validate() {
                    v.nest("training", inner);
                }
                v.check(fraction(spec.data_fraction), "data_fraction", "must be above 0 and at most 1");
            }
            Self::Evaluate(spec) => {
                v.check(!spec.tasks.is_empty(), "tasks", "must name at least one task");
                v.check(spec.batch_size >= 1, "batch_size", "must be at least 1");
            }
        }
        v.into_result()
    }
}

/// Text to a token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizeSpec {
    /// Text or JSONL, plain, gzip or zstd, told apart by name; in this order.
    pub sources: Vec<Location>,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// Share of the tokens held out at the end.
    pub validation_fraction: f64,
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
    /// A folder or artifact that holds `tokenizer.json`.
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
    pub seed: u64,
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
        layer_map: LayerMapRule,
        /// Which tensors are inherited; [`InheritSet::Nothing`] makes a control of the reference's shape.
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
    pub data_fraction: f64,
    /// Seeds the data order.
    pub seed: u64,
    /// The weights were inherited: a first loss near ln(vocabulary) then fails the job.
    pub expect_inherited: bool,
}

/// A checkpoint to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateSpec {
    /// The model.
    pub checkpoint: Location,
    /// What to measure.
    pub tasks: Vec<EvaluationTask>,
    /// Sequences a forward pass.
    pub batch_size: u32,
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
}

/// What a job made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobOutcome {
    /// A token set.
    Tokenized(Tokenized),
    /// An untrained target.
    Sliced(Sliced),
    /// A trained checkpoint.
    Trained(Trained),
    /// Scores.
    Evaluated(Evaluated),
}

/// A token set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    /// The artifact.
    pub tokens: ArtifactId,
    /// Training tokens.
    pub train_tokens: u64,
    /// Validation tokens.
    pub validation_tokens: u64,
    /// Entries of the tokenizer.
    pub vocab_size: u32,
    /// Documents.
    pub documents: u64,
    /// Bytes of text.
    pub text_bytes: u64,
}

/// An untrained target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sliced {
    /// The artifact.
    pub checkpoint: ArtifactId,
    /// Its shape.
    pub config: DecoderConfig,
    /// Layers of the checkpoint it was cut from; its own for a fresh one.
    pub reference_layers: LayerCount,
    /// Parameters, tied ones counted once.
    pub parameters: u64,
    /// Tensors copied from the reference or the previous candidate.
    pub copied_tensors: u32,
    /// Tensors made fresh.
    pub fresh_tensors: u32,
    /// Bytes copied.
    pub copied_bytes: u64,
}

/// A trained checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The artifact.
    pub checkpoint: ArtifactId,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens seen.
    pub tokens_seen: u64,
    /// Passes over the training tokens.
    pub epochs: f64,
    /// Loss of the first micro-batches, before any update, in nats.
    pub first_loss_nats: f64,
    /// Training loss of the last logged step, in nats.
    pub last_loss_nats: f64,
    /// Time spent training, over all attempts.
    pub wall_s: f64,
}

/// Scores of one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Per-sequence and per-document results.
    pub scores_artifact: ArtifactId,
    /// One per task and metric.
    pub scores: Vec<Score>,
    /// The shape of the model that was measured.
    pub config: DecoderConfig,
    /// Parameters, tied ones counted once.
    pub parameters: u64,
}

impl Evaluated {
    /// The validation loss, when it was among the tasks.
    pub fn validation_loss(&self) -> Option<&Score> {
        self.scores.iter().find(|score| score.task == "validation_loss")
    }
}

/// One number with its error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The task's name.
    pub task: String,
    /// The metric's name: `loss_nats`, `word_perplexity`, …
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Standard error of the mean over sequences or documents, where it is defined.
    pub stderr: Option<f64>,
    /// Sequences or documents.
    pub n: u64,
}

#[cfg(test)]
mod tests;
