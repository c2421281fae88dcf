//! The limits of every number, text and list in a recipe, a job and a request, in one table.
//! Validation takes its bounds from here. A test checks every field of every request against this
//! table, so a new field without a limit fails.
//!
//! These limits bound what makes sense on any machine. What one machine accepts is part of the
//! configuration of its service: [`Ceilings`](super::Ceilings).

use crate::violation::Violations;
use inheritune_checkpoint::decoder_config::{MAX_DIMENSION, MAX_LAYERS};

/// Smallest `max_shard_size_bytes`. A smaller value is a mistake, such as 5 for 5 GB.
pub const MIN_MAX_SHARD_SIZE_BYTES: u64 = 1 << 20;
/// Fewest entries of a trained tokenizer: 256 bytes and the end-of-text token.
const MIN_VOCAB: u32 = 257;
/// Most entries of a trained tokenizer, so that ids fit in 16 bits.
const MAX_VOCAB: u32 = 65_536;
/// Most optimizer steps, and the longest interval in steps.
const MAX_STEPS: u64 = 1_000_000_000;
/// One day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Largest count. Integers up to this value are exact in JSON.
const MAX_COUNT: u64 = 1 << 53;

/// The bounds of one or more fields.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// An integer.
    Whole(Whole),
    /// A floating-point number.
    Real(Real),
    /// A text.
    Text(Text),
    /// A list.
    List(List),
}

impl Limit {
    /// Returns the fields with these bounds, as `Message.field` of the gRPC API. Recipes and job
    /// files have the same fields.
    pub fn fields(&self) -> &'static [&'static str] {
        match self {
            Self::Whole(limit) => limit.fields,
            Self::Real(limit) => limit.fields,
            Self::Text(limit) => limit.fields,
            Self::List(limit) => limit.fields,
        }
    }
}

/// Inclusive bounds of an integer.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    fields: &'static [&'static str],
    /// The smallest allowed value.
    pub min: i128,
    /// The largest allowed value.
    pub max: i128,
    /// The unit; empty if the field name implies it.
    pub unit: &'static str,
}

impl Whole {
    /// Returns whether `value` is within the bounds.
    pub fn holds(&self, value: impl Into<i128>) -> bool {
        (self.min..=self.max).contains(&value.into())
    }

    /// Returns a message that describes the bounds.
    pub fn description(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        if self.max == u64::MAX.into() {
            return format!("must be at least {}{unit}", self.min);
        }
        format!("must be {} to {}{unit}", self.min, self.max)
    }

    /// Adds a violation if `value` is out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, value: impl Into<i128>) {
        if !self.holds(value) {
            v.add(field, self.description());
        }
    }

    /// Like [`Whole::check`], if there is a value.
    pub fn check_optional(&self, v: &mut Violations, field: impl Into<String>, value: Option<impl Into<i128>>) {
        if let Some(value) = value {
            self.check(v, field, value);
        }
    }
}

/// Bounds of a floating-point number. Infinities and NaN are always out of bounds.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    fields: &'static [&'static str],
    /// The lower bound.
    pub min: f64,
    /// Whether the lower bound itself is allowed.
    pub includes_min: bool,
    /// The upper bound.
    pub max: f64,
    /// Whether the upper bound itself is allowed.
    pub includes_max: bool,
}

impl Real {
    /// Returns whether `value` is within the bounds.
    pub fn holds(&self, value: f64) -> bool {
        let above = value > self.min || (self.includes_min && value == self.min);
        let below = value < self.max || (self.includes_max && value == self.max);
        value.is_finite() && above && below
    }

    /// Returns a message that describes the bounds.
    pub fn description(&self) -> String {
        let lower = if self.includes_min { "at least" } else { "above" };
        let upper = if self.includes_max { "at most" } else { "below" };
        format!("must be {lower} {} and {upper} {}", self.min, self.max)
    }

    /// Adds a violation if `value` is out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, value: f64) {
        if !self.holds(value) {
            v.add(field, self.description());
        }
    }
}

/// Bounds of a text.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    fields: &'static [&'static str],
    /// The minimum length in bytes.
    pub min_bytes: usize,
    /// The maximum length in bytes.
    pub max_bytes: usize,
    /// Whether line breaks and tabs are allowed. U+0000 is never allowed: Postgres cannot store it.
    pub is_multiline: bool,
}

impl Text {
    /// Returns what is wrong with `text`, if anything.
    pub fn problem(&self, text: &str) -> Option<String> {
        let allowed = |c: char| !c.is_control() || (self.is_multiline && matches!(c, '\n' | '\r' | '\t'));
        let blank = self.min_bytes > 0 && text.trim().is_empty();
        let good = (self.min_bytes..=self.max_bytes).contains(&text.len()) && !blank && text.chars().all(allowed);
        (!good).then(|| self.description())
    }

    /// Returns a message that describes the bounds.
    pub fn description(&self) -> String {
        let (min, max) = (self.min_bytes, self.max_bytes);
        let least = if min == 0 { "at most".to_owned() } else { format!("{min} to") };
        let characters = if self.is_multiline { "U+0000" } else { "control characters" };
        format!("must be {least} {max} bytes without {characters}{}", if min == 0 { "" } else { ", and not blank" })
    }

    /// Adds a violation if `text` is out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, text: &str) {
        if let Some(problem) = self.problem(text) {
            v.add(field, problem);
        }
    }

    /// Like [`Text::check`], if there is a text.
    pub fn check_optional(&self, v: &mut Violations, field: impl Into<String>, text: Option<&str>) {
        if let Some(text) = text {
            self.check(v, field, text);
        }
    }
}

/// Bounds of a list.
#[derive(Debug, Clone, Copy)]
pub struct List {
    fields: &'static [&'static str],
    /// The minimum number of entries.
    pub min: usize,
    /// The maximum number of entries.
    pub max: usize,
    /// What the entries are.
    pub unit: &'static str,
}

impl List {
    /// Returns whether a list may have `length` entries.
    pub fn holds(&self, length: usize) -> bool {
        (self.min..=self.max).contains(&length)
    }

    /// Returns a message that describes the bounds.
    pub fn description(&self) -> String {
        match self.min {
            0 => format!("must be at most {} {}", self.max, self.unit),
            min => format!("must be {min} to {} {}", self.max, self.unit),
        }
    }

    /// Adds a violation if `length` is out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, length: usize) {
        if !self.holds(length) {
            v.add(field, self.description());
        }
    }
}

const fn whole(fields: &'static [&'static str], min: i128, max: i128, unit: &'static str) -> Whole {
    Whole { fields, min, max, unit }
}

/// From `min` to `max`, inclusive.
const fn from_to(fields: &'static [&'static str], min: f64, max: f64) -> Real {
    Real { fields, min, includes_min: true, max, includes_max: true }
}

/// Above 0 and at most `max`.
const fn positive(fields: &'static [&'static str], max: f64) -> Real {
    Real { fields, min: 0.0, includes_min: false, max, includes_max: true }
}

const fn text(fields: &'static [&'static str], min_bytes: usize, max_bytes: usize) -> Text {
    Text { fields, min_bytes, max_bytes, is_multiline: false }
}

const fn list(fields: &'static [&'static str], min: usize, max: usize, unit: &'static str) -> List {
    List { fields, min, max, unit }
}

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $limit:expr;)*) => {
        $($(#[$doc])* pub const $name: $kind = $limit;)*

        /// Every limit.
        pub const TABLE: &[Limit] = &[$(Limit::$kind($name)),*];
    };
}

limits! {
    // All requests.

    /// An id: a UUID in any of its spellings. An optional id may be empty.
    ID: Text = text(
        &[
            "GetRunRequest.id", "CancelRunRequest.id", "PauseRunRequest.id", "ResumeRunRequest.id",
            "RetryRunRequest.id", "WatchRunRequest.id", "GetReportRequest.id", "GetJobRequest.id",
            "CancelJobRequest.id", "PauseJobRequest.id", "ResumeJobRequest.id", "RetryJobRequest.id",
            "WatchJobRequest.id", "GetArtifactRequest.id", "PinArtifactRequest.id", "UnpinArtifactRequest.id",
            "DeleteArtifactRequest.id", "CompareScoresRequest.first_id", "CompareScoresRequest.second_id",
            "ListModelScoresRequest.run_id", "ListJobsRequest.run_id", "ListArtifactsRequest.run_id",
            "ListArtifactsRequest.job_id", "CreateRunRequest.request_id", "SubmitJobRequest.request_id",
            "RegisterArtifactRequest.request_id", "TrainSpec.tokens_artifact_id", "EstimateRequest.tokens_artifact_id",
            "ValidationLossTask.tokens_artifact_id", "SliceSpec.tokenizer_artifact_id",
            "CheckpointSource.previous_artifact_id", "EvaluateSpec.baseline_artifact_id", "EvaluateSpec.helps_job_id",
        ],
        0, 45,
    );
    /// `artifact://ID`, `file:///path` or `s3://bucket/key`.
    LOCATION: Text = text(
        &[
            "CorpusSpec.sources", "TokenizerSpec.uri", "ReferenceSpec.checkpoint", "EvaluationSpec.benchmark_data",
            "TokenizeSpec.sources", "TokenizeSpec.from", "CheckpointSource.checkpoint", "TrainSpec.checkpoint",
            "EvaluateSpec.checkpoint", "RollingPerplexityTask.source", "BenchmarkTask.data", "EstimateRequest.checkpoint",
            "InspectRequest.checkpoint", "RegisterArtifactRequest.uri",
        ],
        1, 4096,
    );
    /// Entries of a page. Zero means the default size; larger values are reduced to the maximum
    /// size.
    PAGE_SIZE: Whole = whole(
        &[
            "ListRunsRequest.page_size", "ListJobsRequest.page_size", "ListArtifactsRequest.page_size",
            "ListModelScoresRequest.page_size",
        ],
        0, i32::MAX as i128, "",
    );
    /// Where a page begins, as an opaque token of the service.
    PAGE_TOKEN: Text = text(
        &[
            "ListRunsRequest.page_token", "ListJobsRequest.page_token", "ListArtifactsRequest.page_token",
            "ListModelScoresRequest.page_token",
        ],
        0, 64,
    );
    /// The sequence number of a run's note, or the step of a point, after which a watch begins.
    AFTER: Whole = whole(
        &["WatchRunRequest.after_note_seq", "WatchJobRequest.after_step"], i64::MIN as i128, u64::MAX as i128, "",
    );
    /// Curves requested by a watch.
    WATCHED_METRICS: List = list(&["WatchJobRequest.metrics"], 0, 32, "metrics");
    /// The name of a curve.
    METRIC_NAME: Text = text(&["WatchJobRequest.metrics"], 1, 128);
    /// The metadata of a registered artifact: a JSON object.
    METADATA_JSON: Text = Text {
        fields: &["RegisterArtifactRequest.metadata_json"], min_bytes: 0, max_bytes: 64 << 10, is_multiline: true,
    };

    // Runs.

    /// A name for people.
    NAME: Text = text(&["RunSpec.name", "ControlSpec.name", "ArmSpec.name"], 1, 128);
    /// Seed of fresh tensors and of the data order.
    SEED: Whole = whole(&["RunSpec.seed", "SliceSpec.seed", "TrainSpec.seed"], 0, u64::MAX as i128, "");
    /// Priority; higher values run first.
    PRIORITY: Whole = whole(&["RunSpec.priority", "SubmitJobRequest.priority"], -100, 100, "");
    /// Sources of a corpus.
    SOURCES: List = list(&["CorpusSpec.sources", "TokenizeSpec.sources"], 1, 1024, "sources");
    /// Total bytes of the locations of all sources: a list of runs includes them all.
    SOURCES_BYTES: Whole = whole(&[], 0, 256 << 10, "bytes in total");
    /// The column that contains the text.
    COLUMN: Text = text(&["CorpusSpec.text_column", "TokenizeSpec.text_column"], 1, 256);
    /// Bad rows that may be skipped.
    BAD_ROWS: Whole = whole(
        &["CorpusSpec.max_bad_rows", "TokenizeSpec.max_bad_rows"], 0, MAX_COUNT as i128, "rows",
    );
    /// Fraction of the tokens that is held out.
    VALIDATION_FRACTION: Real = positive(&["CorpusSpec.validation_fraction", "TokenizeSpec.validation_fraction"], 0.5);
    /// Entries of a trained tokenizer: at least 256 bytes and the end-of-text token, at most what
    /// fits in 16 bits.
    TRAINED_VOCAB: Whole = whole(
        &["TrainTokenizer.vocab_size"], MIN_VOCAB as i128, MAX_VOCAB as i128, "entries",
    );
    /// Blocks of a model.
    LAYERS: Whole = whole(
        &["TargetSpec.start_layers", "TargetSpec.grow_by", "CheckpointSource.layers", "Architecture.n_layers"],
        1, MAX_LAYERS as i128, "layers",
    );
    /// Rounds of growth.
    ROUNDS: Whole = whole(&["TargetSpec.max_rounds"], 1, 64, "rounds");
    /// How much a candidate's loss may exceed the reference's loss.
    TOLERANCE_NATS: Real = from_to(&["TargetSpec.tolerance_nats"], 0.0, 1000.0);
    /// Fraction of the training tokens that is used.
    DATA_FRACTION: Real = positive(
        &[
            "TargetSpec.data_fraction", "ArmSpec.data_fraction", "TrainSpec.data_fraction", "EstimateRequest.data_fraction",
        ],
        1.0,
    );
    /// Layers of a layer map that is a list.
    LAYER_LIST: List = list(&["LayerMap.list"], 0, MAX_LAYERS as usize, "layers");
    /// A layer of the reference.
    SOURCE_LAYER: Whole = whole(&["LayerMap.list"], 0, MAX_LAYERS as i128 - 1, "");
    /// Parts that are inherited.
    INHERIT_PARTS: List = list(&["TargetSpec.inherit_parts", "CheckpointSource.inherit_parts"], 0, 16, "parts");
    /// Controls or arms of a run.
    ARMS: List = list(&["RunSpec.controls", "RunSpec.arms"], 0, 16, "entries");
    /// Steps of a control as a multiple of the winner's steps.
    STEPS_FACTOR: Real = from_to(&["ControlSpec.steps_factor"], 0.1, 10.0);
    /// Passes over an arm's fraction of the data.
    ARM_EPOCHS: Whole = whole(&["ArmSpec.epochs"], 1, 1000, "");

    // Model shapes and slices.

    /// Width of the residual stream.
    D_MODEL: Whole = whole(&["Architecture.d_model"], 1, 65_536, "");
    /// Attention heads.
    HEADS: Whole = whole(&["Architecture.n_heads", "Architecture.n_kv_heads"], 1, 1024, "");
    /// Width of an MLP.
    D_FF: Whole = whole(&["Architecture.d_ff"], 1, MAX_DIMENSION as i128, "");
    /// Longest sequence of a model.
    POSITIONS: Whole = whole(&["Architecture.max_positions"], 1, MAX_DIMENSION as i128, "");
    /// RoPE's base.
    ROPE_THETA: Real = positive(&["Architecture.rope_theta"], 1e12);
    /// The multiple that the rows of an embedding are rounded up to.
    PAD_VOCAB: Whole = whole(&["Architecture.pad_vocab_to_multiple_of"], 1, 1024, "");
    /// Rows of the embedding of a new model, also after padding: the same limit as for a
    /// `config.json`.
    VOCAB: Whole = whole(&["FreshSource.vocab_size"], 1, MAX_DIMENSION as i128, "");
    /// Maximum size of a weights file.
    SHARD_SIZE_BYTES: Whole = whole(
        &["SliceSpec.max_shard_size_bytes"], MIN_MAX_SHARD_SIZE_BYTES as i128, u64::MAX as i128, "bytes",
    );

    // Trainings.

    /// Tokens per sequence.
    BLOCK_SIZE: Whole = whole(
        &["TrainingSpec.block_size", "ValidationLossTask.block_size"], 1, MAX_DIMENSION as i128, "tokens",
    );
    /// Sequences per forward pass.
    MICRO_BATCH: Whole = whole(&["TrainingSpec.micro_batch"], 1, 1 << 16, "sequences");
    /// Micro-batches per optimizer step.
    GRADIENT_ACCUMULATION: Whole = whole(&["TrainingSpec.gradient_accumulation"], 1, 1 << 16, "micro-batches");
    /// Tokens per forward pass: block_size x micro_batch.
    MICRO_BATCH_TOKENS: Whole = whole(&[], 1, 1 << 24, "tokens");
    /// Tokens per step: block_size x micro_batch x gradient_accumulation. Multiplied by the maximum
    /// number of steps, this still fits in 64 bits.
    STEP_TOKENS: Whole = whole(&[], 1, 1 << 32, "tokens");
    /// Optimizer steps.
    STEPS: Whole = whole(&["TrainingSpec.steps"], 1, MAX_STEPS as i128, "steps");
    /// Passes over the data.
    EPOCHS: Whole = whole(&["TrainingSpec.epochs"], 1, 1_000_000, "passes");
    /// An interval in steps.
    EVERY_STEPS: Whole = whole(&["TrainingSpec.log_every_steps"], 1, MAX_STEPS as i128, "steps");
    /// An interval or a length in steps; 0 means none.
    MAYBE_STEPS: Whole = whole(
        &["TrainingSpec.warmup_steps", "TrainingSpec.evaluate_every_steps", "TrainingSpec.checkpoint_every_steps"],
        0, MAX_STEPS as i128, "steps",
    );
    /// Validation sequences of the quick loss during training.
    QUICK_SEQUENCES: Whole = whole(&["TrainingSpec.evaluate_sequences"], 1, 1 << 24, "sequences");
    /// Number of newest training states to keep.
    KEEP_NEWEST: Whole = whole(&["TrainingSpec.keep_newest"], 1, 1_000_000, "");
    /// Sampling weights, one per source.
    SOURCE_WEIGHTS: List = list(&["TrainingSpec.source_weights"], 0, 1024, "weights");
    /// Sampling weight of a source, relative to the others.
    SOURCE_WEIGHT: Real = positive(&["TrainingSpec.source_weights"], 1e9);
    /// Learning rate after the warm-up.
    LR_MAX: Real = positive(&["TrainingSpec.lr_max"], 10.0);
    /// Learning rate at the end.
    LR_MIN: Real = from_to(&["TrainingSpec.lr_min"], 0.0, 10.0);
    /// AdamW's weight decay, and the global norm that gradients are clipped to.
    DECAY_OR_NORM: Real = from_to(&["TrainingSpec.weight_decay", "TrainingSpec.clip_norm"], 0.0, 1e6);
    /// AdamW's moment factors.
    BETA: Real = Real {
        fields: &["TrainingSpec.beta1", "TrainingSpec.beta2"],
        min: 0.0, includes_min: true, max: 1.0, includes_max: false,
    };
    /// AdamW's epsilon.
    ADAM_EPS: Real = positive(&["TrainingSpec.adam_eps"], 1.0);
    /// Training tokens of an estimate.
    TRAIN_TOKENS: Whole = whole(&["EstimateRequest.train_tokens"], 1, MAX_COUNT as i128, "tokens");

    // Evaluations.

    /// Tasks of an evaluation.
    TASKS: List = list(&["EvaluateSpec.tasks"], 1, 256, "tasks");
    /// Benchmarks of a run.
    BENCHMARKS: List = list(&["EvaluationSpec.benchmarks"], 0, 256, "benchmarks");
    /// The name of a benchmark or a group.
    BENCHMARK_NAME: Text = text(&["EvaluationSpec.benchmarks", "BenchmarkTask.name"], 1, 128);
    /// Sequences per forward pass of an evaluation.
    BATCH_SIZE: Whole = whole(&["EvaluationSpec.batch_size", "EvaluateSpec.batch_size"], 1, 1 << 16, "sequences");
    /// Tokens per forward pass of a benchmark.
    BATCH_TOKENS: Whole = whole(&["EvaluateSpec.max_batch_tokens"], 1, 1 << 24, "tokens");
    /// Validation sequences that are measured.
    MAX_SEQUENCES: Whole = whole(
        &["EvaluationSpec.max_sequences", "ValidationLossTask.max_sequences"], 1, MAX_COUNT as i128, "sequences",
    );
    /// Rows of a benchmark that are measured.
    BENCHMARK_LIMIT: Whole = whole(
        &["EvaluationSpec.benchmark_limit", "BenchmarkTask.limit"], 1, u32::MAX as i128, "rows",
    );

    // Jobs.

    /// The label of a job, for people.
    LABEL: Text = text(&["SubmitJobRequest.label"], 0, 256);
    /// Attempts of a job.
    ATTEMPTS: Whole = whole(&["RetryPolicy.max_attempts"], 1, 100, "attempts");
    /// Wait between two attempts.
    BACKOFF_MS: Whole = whole(&["RetryPolicy.backoff_ms", "RetryPolicy.backoff_max_ms"], 0, DAY_MS as i128, "ms (a day)");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_stands_once_as_what_it_is() {
        let mut seen = std::collections::BTreeSet::new();
        for limit in TABLE {
            let is_list = matches!(limit, Limit::List(_));
            for field in limit.fields() {
                assert!(seen.insert((is_list, *field)), "{field} has two limits");
            }
        }
    }

    #[test]
    fn the_longest_training_still_counts_its_tokens() {
        let (steps, tokens) = (STEPS.max as u64, STEP_TOKENS.max as u64);
        assert!(steps.checked_mul(tokens).is_some_and(|all| i64::try_from(all).is_ok()));
    }

    #[test]
    fn text_is_held_against_length_and_characters() {
        assert_eq!(NAME.problem("a name, é"), None);
        for bad in ["", " \t ", "\u{a0}", "a\0b", "a\u{1}", "a\nb", "a\u{85}b", &"x".repeat(129)] {
            assert_eq!(
                NAME.problem(bad).as_deref(),
                Some("must be 1 to 128 bytes without control characters, and not blank"),
                "{bad:?}"
            );
        }
        assert_eq!(METADATA_JSON.problem("{\n\t\"a\": 1\r\n}"), None);
        assert!(METADATA_JSON.problem("{\0}").is_some());
    }

    #[test]
    fn numbers_are_held_against_both_ends() {
        assert!(BETA.holds(0.0) && BETA.holds(0.999) && !BETA.holds(1.0));
        assert!(!LR_MAX.holds(0.0) && LR_MAX.holds(10.0));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1e300] {
            assert!(!BETA.holds(bad) && !LR_MAX.holds(bad) && !DECAY_OR_NORM.holds(bad), "{bad}");
        }
    }
}
