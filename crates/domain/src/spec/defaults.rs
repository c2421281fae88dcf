//! Default values of absent fields: the single source for recipes, job files and the gRPC API. A
//! test checks that all three apply these defaults, and that the comments of the proto files state
//! them.

/// Declares each default as a `const fn`, as serde requires, and all of them as [`table`].
macro_rules! defaults {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $value:expr, $fields:expr;)+) => {
        $(
            $(#[$doc])*
            pub const fn $name() -> $kind {
                $value
            }
        )+

        /// Returns every default: the fields that use it (`Message.field` of the gRPC API) and its
        /// value as JSON.
        pub fn table() -> Vec<(&'static [&'static str], String)> {
            vec![$((&$fields as &[&str], serde_json::json!($name()).to_string())),+]
        }
    };
}

defaults! {
    /// Seed of a run, as in nanoGPT.
    seed: u64 = 1337, ["RunSpec.seed"];
    /// The column that contains the text.
    text_column: &'static str = "text", ["CorpusSpec.text_column", "TokenizeSpec.text_column"];
    /// Fraction of the tokens that is held out.
    validation_fraction: f64 = 0.05, ["CorpusSpec.validation_fraction", "TokenizeSpec.validation_fraction"];
    /// Layers added per round (paper, section 4).
    grow_by: u32 = 2, ["TargetSpec.grow_by"];
    /// Maximum number of rounds.
    max_rounds: u32 = 8, ["TargetSpec.max_rounds"];
    /// Fraction of the training tokens that is used.
    data_fraction: f64 = 1.0,
        ["TargetSpec.data_fraction", "TrainSpec.data_fraction", "EstimateRequest.data_fraction"];
    /// Steps of a control as a multiple of the winner's steps.
    steps_factor: f64 = 1.0, ["ControlSpec.steps_factor"];
    /// Micro-batches per step.
    gradient_accumulation: u32 = 1, ["TrainingSpec.gradient_accumulation"];
    /// AdamW's weight decay.
    weight_decay: f64 = 0.1, ["TrainingSpec.weight_decay"];
    /// AdamW's first moment factor.
    beta1: f64 = 0.9, ["TrainingSpec.beta1"];
    /// AdamW's second moment factor.
    beta2: f64 = 0.95, ["TrainingSpec.beta2"];
    /// AdamW's epsilon.
    adam_eps: f64 = 1e-8, ["TrainingSpec.adam_eps"];
    /// Global norm that gradients are scaled down to.
    clip_norm: f64 = 1.0, ["TrainingSpec.clip_norm"];
    /// Optimizer steps between metric points.
    log_every_steps: u64 = 10, ["TrainingSpec.log_every_steps"];
    /// Sequences of the quick validation loss during training.
    evaluate_sequences: u32 = 64, ["TrainingSpec.evaluate_sequences"];
    /// Optimizer steps between training states.
    checkpoint_every_steps: u64 = 500, ["TrainingSpec.checkpoint_every_steps"];
    /// Number of newest training states to keep.
    keep_newest: u32 = 2, ["TrainingSpec.keep_newest"];
    /// Sequences per forward pass of an evaluation.
    batch_size: u32 = 8, ["EvaluationSpec.batch_size", "EvaluateSpec.batch_size"];
    /// Tokens per forward pass of a benchmark.
    max_batch_tokens: u32 = 2048, ["EvaluateSpec.max_batch_tokens"];
    /// Maximum size of a weights file: 5 GB, the default of transformers.
    max_shard_size_bytes: u64 = 5_000_000_000, ["SliceSpec.max_shard_size_bytes"];
    /// Number of attempts that may fail.
    max_attempts: u32 = 5, ["RetryPolicy.max_attempts"];
    /// Wait before the second attempt.
    backoff_ms: u64 = 500, ["RetryPolicy.backoff_ms"];
    /// Longest wait before an attempt.
    backoff_max_ms: u64 = 60_000, ["RetryPolicy.backoff_max_ms"];
}
