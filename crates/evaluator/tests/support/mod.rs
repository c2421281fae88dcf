//! Tiny real models and token sets for the evaluator's tests.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask};
use inheritune_evaluator::harness::Measurement;
use inheritune_evaluator::metrics::bootstrap::HARNESS_RESAMPLES;
use inheritune_evaluator::tasks::{BenchmarkRow, Found, LossRow, Row, TaskResult};
use inheritune_lm::tokens::{NewTokenSet, TokenSetWriter};
use inheritune_lm::{Device, Kind, Tensor};
use inheritune_runtime::worker::{JobError, ProgressSender, StopSignal};
use serde_json::json;
use uuid::Uuid;

/// Number of rows of the tiny model's embedding.
pub const VOCAB_SIZE: u32 = 300;
/// Longest sequence of the tiny model, in tokens.
pub const MAX_POSITIONS: u32 = 32;

/// Deterministic pseudo-random numbers.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Writes a GPT-2 of 2 layers with random weights; `weight` may change each tensor.
pub fn write_model(dir: &Path, weight: impl Fn(&str, Tensor) -> Tensor) {
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 2, "n_embd": 16,
        "n_inner": 32, "n_positions": MAX_POSITIONS, "n_ctx": MAX_POSITIONS, "vocab_size": VOCAB_SIZE,
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "activation_function": "gelu_new",
        "tie_word_embeddings": true,
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let shape = inheritune_checkpoint::decoder_config::DecoderConfig::from_hf(&config).unwrap();
    let mut tensors = Vec::new();
    for (seed, spec) in (1..).zip(shape.tensors()) {
        if spec.tied_to.is_some() {
            continue;
        }
        let sizes: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
        let mut next = numbers(seed);
        let values: Vec<f32> =
            (0..sizes.iter().product::<i64>()).map(|_| (next() % 2001) as f32 / 1000.0 - 1.0).collect();
        let tensor = Tensor::from_slice(&values).view(sizes.as_slice()).to_kind(Kind::Float) * 0.3;
        tensors.push((spec.name.clone(), weight(&spec.name, tensor)));
    }
    Tensor::write_safetensors(&tensors, dir.join("model.safetensors")).unwrap();
}

/// Writes a token set whose validation part is its last `validation` tokens. Returns these.
pub fn write_tokens(dir: &Path, vocab_size: u32, validation: usize) -> Vec<i64> {
    std::fs::create_dir_all(dir).unwrap();
    let new = NewTokenSet { vocab_size, end_of_text_id: None, tokenizer_sha256: None };
    let mut writer = TokenSetWriter::create(dir, new).unwrap();
    let mut next = numbers(99);
    // One document, so that the split is exactly at the fraction.
    let total = 2 * validation;
    let tokens: Vec<u32> = (0..total).map(|_| (next() % u64::from(vocab_size)) as u32).collect();
    writer.push_document(&tokens, total as u64).unwrap();
    let meta = writer.finish(0.5).unwrap();
    assert_eq!(meta.validation_tokens, validation as u64);
    tokens[validation..].iter().copied().map(i64::from).collect()
}

/// The results of a measurement.
pub struct Measured {
    pub results: Vec<TaskResult>,
    pub parameters: u64,
}

/// Measures without a store, one unit after the other.
pub fn measure(
    checkpoint: &Path,
    tasks: &[(EvaluationTask, PathBuf)],
    batch_size: u32,
    stop: StopSignal,
) -> Result<Measured, JobError> {
    let (names, inputs): (Vec<_>, Vec<_>) = tasks.iter().cloned().unzip();
    let spec = EvaluateSpec { batch_size, ..EvaluateSpec::new(Location::Uri("file:///tiny".to_owned()), names) };
    measure_as(checkpoint, inputs, spec, stop, ProgressSender::default())
}

/// Like [`measure`], with a complete spec.
pub fn measure_as(
    checkpoint: &Path,
    inputs: Vec<PathBuf>,
    spec: EvaluateSpec,
    stop: StopSignal,
    progress: ProgressSender,
) -> Result<Measured, JobError> {
    let checkpoint = checkpoint.to_owned();
    let mut prepared = Measurement { checkpoint, inputs, spec, threads: Some(1), stop, progress }.prepare()?;
    if let Some(problem) = prepared.problems.pop() {
        return Err(JobError::Permanent(problem));
    }
    let mut answers = Vec::new();
    let mut done = 0;
    for unit in prepared.units() {
        let measured = prepared.measure(&unit, done)?;
        done += unit.items.len() as u64;
        answers.push((unit, measured));
    }
    let result = |task| {
        let own = answers.iter().filter(|(unit, _)| unit.task == task).map(|(unit, own)| (unit, own.as_slice()));
        prepared.result(task, own, HARNESS_RESAMPLES)
    };
    Ok(Measured { results: (0..prepared.tasks.len()).map(result).collect(), parameters: prepared.parameters })
}

/// The loss in a row.
pub fn loss(row: &Row) -> &LossRow {
    match &row.found {
        Found::Loss(loss) => loss,
        Found::Answers(_) => panic!("{row:?} is a row of a benchmark"),
    }
}

/// The answers in a row.
pub fn answers(row: &Row) -> &BenchmarkRow {
    match &row.found {
        Found::Answers(answers) => answers,
        Found::Loss(_) => panic!("{row:?} is a row of a text"),
    }
}

/// A validation loss task.
pub fn validation_loss(block_size: u32, max_sequences: Option<u64>) -> EvaluationTask {
    EvaluationTask::ValidationLoss { tokens: ArtifactId(Uuid::nil()), block_size, max_sequences }
}

/// The cross-entropy of the target after each input token in nats, computed from the logits in f64.
pub fn oracle(checkpoint: &Path, input: &[i64], targets: &[i64]) -> Vec<f64> {
    let decoder = inheritune_lm::Decoder::load(checkpoint, Device::Cpu).unwrap();
    let input = Tensor::from_slice(input).view([1, -1]);
    let logits = inheritune_lm::no_grad(|| decoder.logits(&input).unwrap()).to_kind(Kind::Double);
    let rows = logits.log_softmax(-1, Kind::Double).squeeze_dim(0);
    targets.iter().enumerate().map(|(place, target)| -rows.double_value(&[place as i64, *target])).collect()
}

/// Asserts that `found` equals `expected` within 1e-5 relative to `expected`.
pub fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1e-9), "{found} is not {expected}");
}
