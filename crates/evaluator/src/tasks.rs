//! The tasks: what can be measured, and how each turns its input into scores.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use inheritune_domain::benchmark::{self, AskedDocument};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, Score};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_runtime::worker::{JobError, StopSignal};
use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Part};
use crate::metrics::{SequenceLoss, TextLength};
use crate::scorer::{ProgressSpan, Scorer, lm_error};

mod benchmark_task;
mod rolling_perplexity;
mod validation_loss;

pub use benchmark_task::{BenchmarkRow, BenchmarkTask};
use rolling_perplexity::RollingPerplexity;
use validation_loss::ValidationLoss;

/// A task in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDescription {
    /// The name in specs and scores.
    pub name: &'static str,
    /// What it measures.
    pub description: String,
    /// What input it needs.
    pub input: String,
    /// Names of its metrics.
    pub metrics: &'static [&'static str],
}

/// Returns all tasks and groups, sorted by name.
pub fn catalogue() -> Vec<TaskDescription> {
    let benchmarks = benchmark::all().map(|benchmark| TaskDescription {
        name: benchmark.name,
        description: format!("{} (version {})", benchmark.prompt.description(), benchmark.version),
        input: format!(
            "{}/{}: {} rows of {} on the Hugging Face hub{}",
            benchmark.dataset.folder,
            benchmark.dataset.split,
            benchmark.rows,
            benchmark.dataset.hub,
            benchmark.sha256().map_or_else(String::new, |digest| format!("; their requests have the SHA-256 {digest}"))
        ),
        metrics: benchmark.prompt.metrics(),
    });
    let groups = benchmark::GROUPS.iter().map(|group| TaskDescription {
        name: group.name,
        description: format!("a group: {}", group.description),
        input: "the data of its benchmarks".to_owned(),
        metrics: if group.has_score() { &["acc"] } else { &[] },
    });
    let mut tasks: Vec<TaskDescription> = [rolling_perplexity::description(), validation_loss::description()]
        .into_iter()
        .chain(benchmarks)
        .chain(groups)
        .collect();
    tasks.sort_by_key(|task| task.name);
    tasks
}

/// The result of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// One score per metric, the main metric first.
    pub scores: Vec<Score>,
    /// One row per sequence or document.
    pub rows: Vec<Row>,
}

/// One line of `scores.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The task's name.
    pub task: String,
    /// Index of the sequence or document, from 0.
    pub index: u64,
    /// The result.
    #[serde(flatten)]
    pub found: Found,
}

/// The result for a sequence or document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Found {
    /// Answers to a benchmark's requests.
    Answers(BenchmarkRow),
    /// The loss.
    Loss(LossRow),
}

/// The loss of one sequence or document of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossRow {
    /// Number of scored positions.
    pub tokens: u64,
    /// Sum of their cross-entropies, in nats.
    pub sum_nats: f64,
    /// Digest of the text or tokens.
    pub digest: Sha256Digest,
    /// Words and bytes of a document.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub length: Option<TextLength>,
}

/// A task that is ready to be measured: its input is read and valid.
pub enum Task {
    /// [`EvaluationTask::ValidationLoss`].
    ValidationLoss(ValidationLoss),
    /// [`EvaluationTask::RollingPerplexity`].
    RollingPerplexity(RollingPerplexity),
    /// One benchmark of [`EvaluationTask::Benchmark`].
    Benchmark(BenchmarkTask),
}

/// The model that tasks are prepared for.
#[derive(Debug, Clone)]
pub struct ModelFacts {
    /// The model's folder, with its tokenizer.
    pub dir: PathBuf,
    /// The user's name for the folder, for messages.
    pub shown: String,
    /// Number of rows of the embedding.
    pub vocab_size: u32,
    /// Longest supported sequence, in tokens.
    pub max_positions: u32,
}

impl ModelFacts {
    /// Loads the model's tokenizer and checks that its vocabulary fits the model.
    fn tokenizer(&self) -> Result<Arc<Tokenizer>, JobError> {
        let tokenizer = Tokenizer::from_dir(&self.dir).map_err(|e| lm_error(e.shown_as(&self.dir, &self.shown)))?;
        tokenizer.check_fits(self.vocab_size).map_err(lm_error)?;
        Ok(Arc::new(tokenizer))
    }
}

/// Reads the inputs of a spec's tasks from the folders `inputs`, one per task. Returns the tasks
/// that are ready, and the permanent errors of the others.
///
/// # Errors
/// [`JobError::Stopped`], or an error that another attempt may avoid.
pub fn prepare(
    spec: &EvaluateSpec,
    inputs: &[PathBuf],
    model: &ModelFacts,
    stop: &StopSignal,
) -> Result<(Vec<Task>, Vec<String>), JobError> {
    let (mut ready, mut problems) = (Vec::new(), Vec::new());
    let mut sort = |prepared: Result<Task, JobError>| match prepared {
        Ok(task) => {
            ready.push(task);
            Ok(())
        }
        Err(JobError::Permanent(problem)) => {
            problems.push(problem);
            Ok(())
        }
        Err(error) => Err(error),
    };
    for (task, input) in spec.tasks.iter().zip(inputs) {
        match task {
            EvaluationTask::ValidationLoss { tokens, block_size, max_sequences } => {
                let prepared = ValidationLoss::prepare(input, *block_size, *max_sequences, model)
                    .map(Task::ValidationLoss)
                    .map_err(|e| e.about(&format!("token set {tokens}")));
                sort(prepared)?;
            }
            EvaluationTask::RollingPerplexity { source } => {
                let prepared = RollingPerplexity::prepare(input, model, stop)
                    .map(Task::RollingPerplexity)
                    .map_err(|e| e.about(&source.to_string()));
                sort(prepared)?;
            }
            EvaluationTask::Benchmark { name, limit, .. } => {
                let tokenizer = match model.tokenizer() {
                    Ok(tokenizer) => tokenizer,
                    Err(error) => {
                        sort(Err(error.about(name)))?;
                        continue;
                    }
                };
                for benchmark in benchmark::select(name).map_err(JobError::Permanent)? {
                    if stop.requested().is_some() {
                        return Err(JobError::Stopped);
                    }
                    let tokenizer = Arc::clone(&tokenizer);
                    let prepared = BenchmarkTask::prepare(benchmark, (input, *limit), model, tokenizer, spec);
                    sort(prepared.map(Task::Benchmark))?;
                }
            }
        }
    }
    Ok((ready, problems))
}

impl Task {
    /// The task's name.
    pub fn name(&self) -> &str {
        match self {
            Self::ValidationLoss(_) => validation_loss::NAME,
            Self::RollingPerplexity(_) => rolling_perplexity::NAME,
            Self::Benchmark(task) => task.benchmark().name,
        }
    }

    /// Number of sequences or documents.
    pub fn items(&self) -> usize {
        match self {
            Self::ValidationLoss(task) => task.items(),
            Self::RollingPerplexity(task) => task.items(),
            Self::Benchmark(task) => task.items(),
        }
    }

    /// The ranges of items that are measured independently, on any worker. They and their forward
    /// passes depend only on the task.
    pub fn units(&self) -> Vec<Range<usize>> {
        match self {
            Self::ValidationLoss(task) => task.units(),
            Self::RollingPerplexity(task) => task.units(),
            Self::Benchmark(task) => task.units(),
        }
    }

    /// Digest of the requests of the items in `range`. Workers with equal digests measure the same.
    pub fn digest(&self, range: &Range<usize>) -> Sha256Digest {
        match self {
            Self::ValidationLoss(task) => task.digest(range),
            Self::RollingPerplexity(task) => task.digest(range),
            Self::Benchmark(task) => task.digest(range),
        }
    }

    /// Whether the rows are a complete published data set; `None` if its digest is not known.
    pub fn is_known_data(&self) -> Option<bool> {
        match self {
            Self::Benchmark(task) => task.benchmark().sha256().map(|_| task.is_known_data()),
            Self::ValidationLoss(_) | Self::RollingPerplexity(_) => None,
        }
    }

    /// The documents and requests of a benchmark, by item.
    pub fn documents(&self) -> impl Iterator<Item = AskedDocument> {
        let benchmark = match self {
            Self::Benchmark(task) => Some(task),
            Self::ValidationLoss(_) | Self::RollingPerplexity(_) => None,
        };
        benchmark.into_iter().flat_map(BenchmarkTask::documents)
    }

    /// Measures the items in `range`. `done` holds the finished items of all tasks and their total,
    /// for the progress.
    ///
    /// # Errors
    /// See [`Scorer::score`] and [`Scorer::follow`]; a request that cannot be tokenized.
    pub fn measure(&self, range: Range<usize>, done: (u64, u64), scorer: &mut Scorer) -> Result<Vec<Answer>, JobError> {
        let span = |tokens| ProgressSpan {
            task: self.name().to_owned(),
            done: done.0,
            total: done.1,
            items: range.len() as u64,
            tokens,
        };
        match self {
            Self::ValidationLoss(task) => task.measure(range.clone(), &span, scorer),
            Self::RollingPerplexity(task) => task.measure(range.clone(), &span, scorer),
            Self::Benchmark(task) => task.measure(range.clone(), &span, scorer),
        }
    }

    /// Returns the scores and rows of the measured items, in order; no scores without items.
    /// Bootstrapped standard errors use `resamples` resamples.
    pub fn result(&self, parts: &[Part], resamples: u32) -> TaskResult {
        match self {
            Self::ValidationLoss(task) => task.result(parts),
            Self::RollingPerplexity(task) => task.result(parts),
            Self::Benchmark(task) => task.result(parts, resamples),
        }
    }
}

/// The losses of the measured sequences or documents.
fn losses(parts: &[Part]) -> impl Iterator<Item = SequenceLoss> {
    let answers = parts.iter().flat_map(|part| &part.answers);
    answers.map(|answer| SequenceLoss { tokens: answer.tokens, sum_nats: -answer.log_likelihood })
}

/// The indexes of the measured items.
fn places(parts: &[Part]) -> impl Iterator<Item = usize> {
    parts.iter().flat_map(|part| part.items.clone())
}

fn loss_row(task: &str, place: usize, found: LossRow) -> Row {
    Row { task: task.to_owned(), index: place as u64, found: Found::Loss(found) }
}

/// Groups items of the given sizes into ranges with a total size of at least `least`, except the
/// last.
fn cut(sizes: impl IntoIterator<Item = usize>, least: usize) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut end, mut size) = (Vec::new(), 0, 0, 0);
    for item in sizes {
        end += 1;
        size += item;
        if size >= least {
            ranges.push(start..end);
            (start, size) = (end, 0);
        }
    }
    if start < end {
        ranges.push(start..end);
    }
    ranges
}
