//! The tasks on a tiny real model, compared with simple oracles that run one window at a time.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use inheritune_domain::artifact::Location;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask};
use inheritune_evaluator::tasks::TaskResult;
use inheritune_lm::Tensor;
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_runtime::worker::{JobError, StopReason, StopSignal};
use support::{
    MAX_POSITIONS, VOCAB_SIZE, assert_close, loss, measure, measure_as, oracle, validation_loss, write_model,
    write_tokens,
};

struct Fixture {
    dir: tempfile::TempDir,
    validation: Vec<i64>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), |_, tensor| tensor);
        let validation = write_tokens(&dir.path().join("tokens"), VOCAB_SIZE, 203);
        Self { dir, validation }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn validate(&self, block_size: u32, max_sequences: Option<u64>, batch_size: u32) -> Result<TaskResult, JobError> {
        let tasks = [(validation_loss(block_size, max_sequences), self.path("tokens"))];
        measure(&self.path("model"), &tasks, batch_size, StopSignal::default()).map(|mut m| m.results.remove(0))
    }

    fn roll(&self, input: &Path, batch_size: u32) -> Result<TaskResult, JobError> {
        let task = EvaluationTask::RollingPerplexity { source: Location::Uri("file:///texts".to_owned()) };
        measure(&self.path("model"), &[(task, input.to_owned())], batch_size, StopSignal::default())
            .map(|mut m| m.results.remove(0))
    }
}

fn permanent<T>(result: Result<T, JobError>) -> String {
    match result {
        Err(JobError::Permanent(message)) => message,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn validation_loss_scores_every_position_once_whatever_the_batch_size() {
    let fixture = Fixture::new();
    let tokens = &fixture.validation;
    // 203 tokens are 12 windows of 16 inputs and one of 10.
    let expected: Vec<(u64, f64)> = tokens[..202]
        .chunks(16)
        .zip(tokens[1..].chunks(16))
        .map(|(input, targets)| {
            (targets.len() as u64, oracle(&fixture.path("model"), input, targets).iter().sum::<f64>())
        })
        .collect();
    assert_eq!(expected.len(), 13);
    let mean = expected.iter().map(|row| row.1).sum::<f64>() / 202.0;
    for batch_size in [1, 3, 8, 64] {
        let result = fixture.validate(16, None, batch_size).unwrap();
        for (row, (tokens, sum_nats)) in result.rows.iter().zip(&expected) {
            assert_eq!(loss(row).tokens, *tokens);
            assert_close(loss(row).sum_nats, *sum_nats);
        }
        assert_eq!(result.rows.len(), 13);
        assert_eq!((result.scores[0].metric.as_str(), result.scores[0].n), ("loss_nats", 13));
        assert_close(result.scores[0].value, mean);
        assert_close(result.scores[1].value, mean.exp());
        assert!(result.scores[0].stderr.unwrap() > 0.0);
    }
}

#[test]
fn max_sequences_takes_the_first() {
    let fixture = Fixture::new();
    let all = fixture.validate(16, None, 4).unwrap();
    let some = fixture.validate(16, Some(5), 4).unwrap();
    assert_eq!(some.rows.len(), 5);
    for (a, b) in some.rows.iter().zip(&all.rows) {
        assert_close(loss(a).sum_nats, loss(b).sum_nats);
    }
}

#[test]
fn progress_ends_at_the_last_sequence() {
    let fixture = Fixture::new();
    let progress = inheritune_runtime::worker::ProgressSender::default();
    let spec = EvaluateSpec {
        batch_size: 5,
        ..EvaluateSpec::new(Location::Uri("file:///tiny".to_owned()), vec![validation_loss(16, None)])
    };
    let inputs = vec![fixture.path("tokens")];
    measure_as(&fixture.path("model"), inputs, spec, StopSignal::default(), progress.clone()).unwrap();
    let last = progress.newest().unwrap();
    assert_eq!((last.done, last.total, last.unit.as_str()), (13, 13, "documents"));
    assert_eq!(last.estimated_remaining_seconds, Some(0.0));
    assert!(last.per_second > 0.0);
}

#[test]
fn bad_input_is_named() {
    let fixture = Fixture::new();
    let message = permanent(fixture.validate(MAX_POSITIONS + 1, None, 1));
    assert!(message.contains("block_size 33 must be 1 to 32"), "{message}");

    // Only windows of more than 20 tokens reach the NaN; attention's masked sums spread it to all
    // of their positions.
    write_model(&fixture.path("model"), |name, tensor| {
        if name.contains("wpe") {
            let _ = tensor.get(20).fill_(f64::NAN);
        }
        tensor
    });
    assert_eq!(fixture.validate(16, None, 2).unwrap().rows.len(), 13);
    let message = permanent(fixture.validate(32, None, 2));
    assert!(message.contains("sequence 0: the loss at scored position "), "{message}");

    write_tokens(&fixture.path("wide"), VOCAB_SIZE + 700, 50);
    let tasks = [(validation_loss(16, None), fixture.path("wide"))];
    let message = permanent(measure(&fixture.path("model"), &tasks, 1, StopSignal::default()));
    assert!(message.contains("1000") && message.contains("300"), "{message}");

    write_tokens(&fixture.path("short"), VOCAB_SIZE, 1);
    let tasks = [(validation_loss(16, None), fixture.path("short"))];
    let message = permanent(measure(&fixture.path("model"), &tasks, 1, StopSignal::default()));
    assert!(message.contains("has 1 tokens, but at least 2 are needed"), "{message}");

    let stop = StopSignal::default();
    stop.request(StopReason::Pause);
    let tasks = [(validation_loss(16, None), fixture.path("tokens"))];
    assert_eq!(measure(&fixture.path("model"), &tasks, 1, stop).err(), Some(JobError::Stopped));
}

const TEXTS: [&str; 3] = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it \
     was the epoch of belief, it was the epoch of incredulity.\n",
    "Call me Ishmael.",
    "Happy families are all alike; every unhappy family is unhappy in its own way. All was confusion.",
];

#[test]
fn rolling_perplexity_reads_every_kind_of_file() {
    let fixture = Fixture::new();
    let tokenizer = Tokenizer::train_byte_bpe(TEXTS.into_iter(), VOCAB_SIZE).unwrap();
    tokenizer.save(&fixture.path("model")).unwrap();
    let texts = fixture.path("texts");
    std::fs::create_dir_all(&texts).unwrap();
    std::fs::write(texts.join("a.txt"), TEXTS[0]).unwrap();
    let row = |text: &str| format!("{}\n", serde_json::json!({ "text": text }));
    let mut packed =
        flate2::write::GzEncoder::new(std::fs::File::create(texts.join("b.jsonl.gz")).unwrap(), Default::default());
    packed.write_all(format!("{}\n{}", row(TEXTS[1]), row("")).as_bytes()).unwrap();
    packed.finish().unwrap();
    std::fs::write(texts.join("c.zst"), zstd::encode_all(TEXTS[2].as_bytes(), 0).unwrap()).unwrap();

    let prefix = i64::from(tokenizer.end_of_text_id().unwrap());
    let max = MAX_POSITIONS as usize;
    let mut nats = Vec::new();
    for text in TEXTS {
        let tokens: Vec<i64> = tokenizer.encode(text).unwrap().into_iter().map(i64::from).collect();
        let with_prefix: Vec<i64> = [prefix].into_iter().chain(tokens.iter().copied()).collect();
        // Does not use `windows`: each target gets the context that the harness's rule defines.
        let mut sum = 0.0;
        for start in (0..tokens.len()).step_by(max) {
            let end = (start + max).min(tokens.len());
            let first = if start == 0 { 0 } else { end - max };
            let losses = oracle(&fixture.path("model"), &with_prefix[first..end], &tokens[first..end]);
            sum += losses[start - first..].iter().sum::<f64>();
        }
        nats.push((tokens.len() as u64, sum));
    }
    assert!(nats[0].0 > 2 * 32, "the first text must need more than two windows");

    for batch_size in [1, 4] {
        let result = fixture.roll(&texts, batch_size).unwrap();
        assert_eq!(result.rows.len(), 3);
        for (row, (tokens, sum)) in result.rows.iter().zip(&nats) {
            assert_eq!(loss(row).tokens, *tokens);
            assert_close(loss(row).sum_nats, *sum);
        }
        let total: f64 = nats.iter().map(|(_, sum)| sum).sum();
        // Python: [len(re.split(r"\s+", text)) for text in TEXTS]; the first ends in a newline.
        let words: usize = [37, 3, 17].iter().sum();
        let bytes: usize = TEXTS.iter().map(|text| text.len()).sum();
        let value = |metric: &str| result.scores.iter().find(|score| score.metric == metric).unwrap().value;
        assert_eq!(result.rows.iter().map(|row| loss(row).length.unwrap().words).sum::<u64>(), words as u64);
        assert_close(value("word_perplexity"), (total / words as f64).exp());
        assert_close(value("byte_perplexity"), (total / bytes as f64).exp());
        assert_close(value("bits_per_byte"), total / bytes as f64 / 2_f64.ln());
    }

    let empty = fixture.path("empty");
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(empty.join("a.txt"), "").unwrap();
    assert!(permanent(fixture.roll(&empty, 1)).contains("the text is empty"));
    std::fs::write(empty.join("a.jsonl"), "{\"title\": \"x\"}\n").unwrap();
    assert!(permanent(fixture.roll(&empty, 1)).contains("a.jsonl: line 1: has neither `text` nor `page`"));
}

#[test]
fn a_tokenizer_that_is_too_large_is_named() {
    let fixture = Fixture::new();
    let many: Vec<String> = (0..400).map(|i| format!("word{i} other{} more{}", i * 7, i * 13)).collect();
    let tokenizer = Tokenizer::train_byte_bpe(many.iter(), 600).unwrap();
    assert!(tokenizer.vocab_size() > VOCAB_SIZE);
    tokenizer.save(&fixture.path("model")).unwrap();
    let texts = fixture.path("texts");
    std::fs::create_dir_all(&texts).unwrap();
    std::fs::write(texts.join("a.txt"), "text").unwrap();
    let message = permanent(fixture.roll(&texts, 1));
    assert!(message.contains(&tokenizer.vocab_size().to_string()) && message.contains("300"), "{message}");
}

#[test]
fn a_broken_checkpoint_is_permanent() {
    let fixture = Fixture::new();
    let short = Tensor::from_slice(&[1_f32]);
    Tensor::write_safetensors(&[("wte.weight", short)], fixture.path("model").join("model.safetensors")).unwrap();
    let message = permanent(fixture.validate(16, None, 1));
    assert!(message.starts_with("checkpoint file:///tiny: "), "{message}");
}

#[test]
fn a_nan_answer_is_named_by_its_row() {
    let fixture = Fixture::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let model = fixture.path("broken");
    std::fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join("models/tiny-gpt2").join(file), model.join(file)).unwrap();
    }
    let mut tensors = Tensor::read_safetensors(golden.join("models/tiny-gpt2/model.safetensors")).unwrap();
    for (name, tensor) in &mut tensors {
        if name.ends_with("ln_f.bias") {
            let _ = tensor.fill_(f64::NAN);
        }
    }
    Tensor::write_safetensors(&tensors, model.join("model.safetensors")).unwrap();
    let data = Location::Uri("file:///data".to_owned());
    let task = EvaluationTask::Benchmark { name: "piqa".to_owned(), data, limit: None };
    let message = permanent(measure(&model, &[(task, golden.join("data"))], 1, StopSignal::default()));
    assert!(message.starts_with("piqa: validation row ") && message.contains("is not finite (NaN)"), "{message}");
}
