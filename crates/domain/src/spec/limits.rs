//! What a caller may say: the one table of every number, text and list of a recipe, a job and a call, each with its
//! bounds. Validation takes its bounds from here; a test walks every field of every request against it, so that a new
//! field without a limit fails.
//!
//! A limit here says what makes sense anywhere. What one machine is willing to do is its service's configuration:
//! [`Ceilings`](super::Ceilings).

use crate::violation::Violations;
use inheritune_checkpoint::decoder_config::{MAX_DIMENSION, MAX_LAYERS};

/// Shortest that may be asked for: less is a slip, such as 5 for 5 GB.
pub const MIN_MAX_SHARD_SIZE_BYTES: u64 = 1 << 20;
/// Fewest entries of a trained tokenizer: 256 bytes and the end-of-text token.
const MIN_VOCAB: u32 = 257;
/// Most entries of a trained tokenizer: ids then fit in 16 bits.
const MAX_VOCAB: u32 = 65_536;
/// Most optimizer steps, and the longest interval in steps.
const MAX_STEPS: u64 = 1_000_000_000;
/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Whole numbers up to this one are exact in JSON, too.
const MAX_COUNT: u64 = 1 << 53;

/// The bounds of some fields.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// A whole number.
    Whole(Whole),
    /// A number.
    Real(Real),
    /// A text.
    Text(Text),
    /// A list.
    List(List),
}

impl Limit {
    /// The fields that are bounded so: `Message.field` of the gRPC API. Recipes and job files have the same ones.
    pub fn fields(&self) -> &'static [&'static str] {
        match self {
            Self::Whole(limit) => limit.fields,
            Self::Real(limit) => limit.fields,
            Self::Text(limit) => limit.fields,
            Self::List(limit) => limit.fields,
        }
    }
}

/// Bounds of a whole number, both of which are allowed.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    fields: &'static [&'static str],
    /// The least.
    pub min: i128,
    /// The most.
    pub max: i128,
    /// What is counted; none where the field's name says it.
    pub unit: &'static str,
}

impl Whole {
    /// Whether `value` is within.
    pub fn holds(&self, value: impl Into<i128>) -> bool {
        (self.min..=self.max).contains(&value.into())
    }

    /// What a value must be.
    pub fn description(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        if self.max == u64::MAX.into() {
            return format!("must be at least {}{unit}", self.min);
        }
        format!("must be {} to {}{unit}", self.min, self.max)
    }

    /// Notes a `value` out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, value: impl Into<i128>) {
        if !self.holds(value) {
            v.add(field, self.description());
        }
    }

    /// As [`Whole::check`], where there is a value.
    pub fn check_optional(&self, v: &mut Violations, field: impl Into<String>, value: Option<impl Into<i128>>) {
        if let Some(value) = value {
            self.check(v, field, value);
        }
    }
}

/// Bounds of a number that need not be whole. Infinities and NaN are never within.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    fields: &'static [&'static str],
    /// Its lower end.
    pub min: f64,
    /// Whether the lower end itself is allowed.
    pub includes_min: bool,
    /// Its upper end.
    pub max: f64,
    /// Whether the upper end itself is allowed.
    pub includes_max: bool,
}

impl Real {
    /// Whether `value` is within.
    pub fn holds(&self, value: f64) -> bool {
        let above = value > self.min || (self.includes_min && value == self.min);
        let below = value < self.max || (self.includes_max && value == self.max);
        value.is_finite() && above && below
    }

    /// What a value must be.
    pub fn description(&self) -> String {
        let lower = if self.includes_min { "at least" } else { "above" };
        let upper = if self.includes_max { "at most" } else { "below" };
        format!("must be {lower} {} and {upper} {}", self.min, self.max)
    }

    /// Notes a `value` out of bounds.
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
    /// The fewest bytes.
    pub min_bytes: usize,
    /// The most bytes.
    pub max_bytes: usize,
    /// Whether line feeds and tabs are allowed. U+0000 never is: Postgres cannot hold it.
    pub is_multiline: bool,
}

impl Text {
    /// What is wrong with `text`, if anything is.
    pub fn problem(&self, text: &str) -> Option<String> {
        let allowed = |c: char| !c.is_control() || (self.is_multiline && matches!(c, '\n' | '\r' | '\t'));
        let blank = self.min_bytes > 0 && text.trim().is_empty();
        let good = (self.min_bytes..=self.max_bytes).contains(&text.len()) && !blank && text.chars().all(allowed);
        (!good).then(|| self.description())
    }

    /// What a text must be.
    pub fn description(&self) -> String {
        let (min, max) = (self.min_bytes, self.max_bytes);
        let least = if min == 0 { "at most".to_owned() } else { format!("{min} to") };
        let characters = if self.is_multiline { "U+0000" } else { "control characters" };
        format!("must be {least} {max} bytes without {characters}{}", if min == 0 { "" } else { ", and not blank" })
    }

    /// Notes a `text` out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, text: &str) {
        if let Some(problem) = self.problem(text) {
            v.add(field, problem);
        }
    }

    /// As [`Text::check`], where there is a text.
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
    /// The fewest entries.
    pub min: usize,
    /// The most entries.
    pub max: usize,
    /// What they are.
    pub unit: &'static str,
}

impl List {
    /// Whether a list may be so long.
    pub fn holds(&self, length: usize) -> bool {
        (self.min..=self.max).contains(&length)
    }

    /// What a list must be.
    pub fn description(&self) -> String {
        match self.min {
            0 => format!("must be at most {} {}", self.max, self.unit),
            min => format!("must be {min} to {} {}", self.max, self.unit),
        }
    }

    /// Notes a list of a `length` out of bounds.
    pub fn check(&self, v: &mut Violations, field: impl Into<String>, length: usize) {
        if !self.holds(length) {
            v.add(field, self.description());
        }
    }
}

const fn whole(fields: &'static [&'static str], min: i128, max: i128, unit: &'static str) -> Whole {
    Whole { fields, min, max, unit }
}

/// From `min` to `max`, both allowed.
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
    // Every kind of call.

    /// An id: a UUID in any of its spellings. Empty where none need be given.
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
    /// Entries of a page. Zero is the default, and more than a page holds is a full page.
    PAGE_SIZE: Whole = whole(
        &[
            "ListRunsRequest.page_size", "ListJobsRequest.page_size", "ListArtifactsRequest.page_size",
            "ListModelScoresRequest.page_size",
        ],
        0, i32::MAX as i128, "",
    );
    /// Where a page begins, in words of the service's own.
    PAGE_TOKEN: Text = text(
        &[
            "ListRunsRequest.page_token", "ListJobsRequest.page_token", "ListArtifactsRequest.page_token",
            "ListModelScoresRequest.page_token",
        ],
        0, 64,
    );
    /// The number of a run's note, or the step of a point, after which a watch begins.
    AFTER: Whole = whole(
        &["WatchRunRequest.after_note_seq", "WatchJobRequest.after_step"], i64::MIN as i128, u64::MAX as i128, "",
    );
    /// Curves that a watch asks for.
    WATCHED_METRICS: List = list(&["WatchJobRequest.metrics"], 0, 32, "metrics");
    /// A curve's name.
    METRIC_NAME: Text = text(&["WatchJobRequest.metrics"], 1, 128);
    /// What is kept with a registered artifact: a JSON object.
    METADATA_JSON: Text = Text {
        fields: &["RegisterArtifactRequest.metadata_json"], min_bytes: 0, max_bytes: 64 << 10, is_multiline: true,
    };

    // Runs.

    /// A name for people.
    NAME: Text = text(&["RunSpec.name", "ControlSpec.name", "ArmSpec.name"], 1, 128);
    /// What seeds fresh tensors and the order of the data.
    SEED: Whole = whole(&["RunSpec.seed", "SliceSpec.seed", "TrainSpec.seed"], 0, u64::MAX as i128, "");
    /// Higher first.
    PRIORITY: Whole = whole(&["RunSpec.priority", "SubmitJobRequest.priority"], -100, 100, "");
    /// Sources of a corpus.
    SOURCES: List = list(&["CorpusSpec.sources", "TokenizeSpec.sources"], 1, 1024, "sources");
    /// Bytes of all sources' locations: a list of runs shows them all.
    SOURCES_BYTES: Whole = whole(&[], 0, 256 << 10, "bytes in all");
    /// The column of rows that holds the text.
    COLUMN: Text = text(&["CorpusSpec.text_column", "TokenizeSpec.text_column"], 1, 256);
    /// Rows that may be left out.
    BAD_ROWS: Whole = whole(
        &["CorpusSpec.max_bad_rows", "TokenizeSpec.max_bad_rows"], 0, MAX_COUNT as i128, "rows",
    );
    /// Share of the tokens that is held out.
    VALIDATION_FRACTION: Real = positive(&["CorpusSpec.validation_fraction", "TokenizeSpec.validation_fraction"], 0.5);
    /// Entries of a tokenizer that is trained: 256 bytes and the end-of-text token, to what 16 bits hold.
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
    /// What a candidate's loss may be above the reference's.
    TOLERANCE_NATS: Real = from_to(&["TargetSpec.tolerance_nats"], 0.0, 1000.0);
    /// Share of the training tokens that is used.
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
    /// Controls, and arms, of a run.
    ARMS: List = list(&["RunSpec.controls", "RunSpec.arms"], 0, 16, "entries");
    /// A control's steps as a multiple of the winner's.
    STEPS_FACTOR: Real = from_to(&["ControlSpec.steps_factor"], 0.1, 10.0);
    /// Passes over an arm's share of the data.
    ARM_EPOCHS: Whole = whole(&["ArmSpec.epochs"], 1, 1000, "");

    // Shapes of models, and slices.

    /// Width of the residual stream.
    D_MODEL: Whole = whole(&["Architecture.d_model"], 1, 65_536, "");
    /// Heads of an attention.
    HEADS: Whole = whole(&["Architecture.n_heads", "Architecture.n_kv_heads"], 1, 1024, "");
    /// Width of an MLP.
    D_FF: Whole = whole(&["Architecture.d_ff"], 1, MAX_DIMENSION as i128, "");
    /// Longest sequence of a model.
    POSITIONS: Whole = whole(&["Architecture.max_positions"], 1, MAX_DIMENSION as i128, "");
    /// RoPE's base.
    ROPE_THETA: Real = positive(&["Architecture.rope_theta"], 1e12);
    /// What the rows of an embedding are rounded up to a multiple of.
    PAD_VOCAB: Whole = whole(&["Architecture.pad_vocab_to_multiple_of"], 1, 1024, "");
    /// Rows of the embedding of a model that is made, after padding too: what is read of a `config.json`.
    VOCAB: Whole = whole(&["FreshSource.vocab_size"], 1, MAX_DIMENSION as i128, "");
    /// Longest file of weights.
    SHARD_SIZE_BYTES: Whole = whole(
        &["SliceSpec.max_shard_size_bytes"], MIN_MAX_SHARD_SIZE_BYTES as i128, u64::MAX as i128, "bytes",
    );

    // Trainings.

    /// Tokens a sequence.
    BLOCK_SIZE: Whole = whole(
        &["TrainingSpec.block_size", "ValidationLossTask.block_size"], 1, MAX_DIMENSION as i128, "tokens",
    );
    /// Sequences a forward pass.
    MICRO_BATCH: Whole = whole(&["TrainingSpec.micro_batch"], 1, 1 << 16, "sequences");
    /// Micro-batches a step.
    GRADIENT_ACCUMULATION: Whole = whole(&["TrainingSpec.gradient_accumulation"], 1, 1 << 16, "micro-batches");
    /// Tokens a forward pass: block_size x micro_batch.
    MICRO_BATCH_TOKENS: Whole = whole(&[], 1, 1 << 24, "tokens");
    /// Tokens a step: block_size x micro_batch x gradient_accumulation. With the most steps this still fits in 64 bits.
    STEP_TOKENS: Whole = whole(&[], 1, 1 << 32, "tokens");
    /// Optimizer steps.
    STEPS: Whole = whole(&["TrainingSpec.steps"], 1, MAX_STEPS as i128, "steps");
    /// Passes over the data.
    EPOCHS: Whole = whole(&["TrainingSpec.epochs"], 1, 1_000_000, "passes");
    /// An interval in steps.
    EVERY_STEPS: Whole = whole(&["TrainingSpec.log_every_steps"], 1, MAX_STEPS as i128, "steps");
    /// An interval or a length in steps; 0 is none.
    MAYBE_STEPS: Whole = whole(
        &["TrainingSpec.warmup_steps", "TrainingSpec.evaluate_every_steps", "TrainingSpec.checkpoint_every_steps"],
        0, MAX_STEPS as i128, "steps",
    );
    /// Validation sequences of a quick loss.
    QUICK_SEQUENCES: Whole = whole(&["TrainingSpec.evaluate_sequences"], 1, 1 << 24, "sequences");
    /// Newest training states that are kept.
    KEEP_NEWEST: Whole = whole(&["TrainingSpec.keep_newest"], 1, 1_000_000, "");
    /// Weights of the sources, one for each.
    SOURCE_WEIGHTS: List = list(&["TrainingSpec.source_weights"], 0, 1024, "weights");
    /// How often a source comes, relative to the others.
    SOURCE_WEIGHT: Real = positive(&["TrainingSpec.source_weights"], 1e9);
    /// Learning rate after the warm-up.
    LR_MAX: Real = positive(&["TrainingSpec.lr_max"], 10.0);
    /// Learning rate at the end.
    LR_MIN: Real = from_to(&["TrainingSpec.lr_min"], 0.0, 10.0);
    /// AdamW's weight decay, and the global norm that gradients are scaled down to.
    DECAY_OR_NORM: Real = from_to(&["TrainingSpec.weight_decay", "TrainingSpec.clip_norm"], 0.0, 1e6);
    /// AdamW's factors.
    BETA: Real = Real {
        fields: &["TrainingSpec.beta1", "TrainingSpec.beta2"],
        min: 0.0, includes_min: true, max: 1.0, includes_max: false,
    };
    /// AdamW's epsilon.
    ADAM_EPS: Real = positive(&["TrainingSpec.adam_eps"], 1.0);
    /// Training tokens of an estimate.
    TRAIN_TOKENS: Whole = whole(&["EstimateRequest.train_tokens"], 1, MAX_COUNT as i128, "tokens");

    // Evaluations.

    /// Tasks of an evaluation, and benchmarks of a run.
    TASKS: List = list(&["EvaluateSpec.tasks"], 1, 256, "tasks");
    /// Benchmarks of a run.
    BENCHMARKS: List = list(&["EvaluationSpec.benchmarks"], 0, 256, "benchmarks");
    /// A benchmark's name, or a group's.
    BENCHMARK_NAME: Text = text(&["EvaluationSpec.benchmarks", "BenchmarkTask.name"], 1, 128);
    /// Sequences a forward pass of an evaluation.
    BATCH_SIZE: Whole = whole(&["EvaluationSpec.batch_size", "EvaluateSpec.batch_size"], 1, 1 << 16, "sequences");
    /// Tokens a forward pass of a benchmark.
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

    /// What people call a job.
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
