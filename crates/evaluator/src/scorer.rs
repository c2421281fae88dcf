//! Scoring: runs the forward passes for windows and sequences, and reports progress.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use inheritune_domain::job::Progress;
use inheritune_lm::trees::{CachedPrefix, Question, Tree};
use inheritune_lm::{Decoder, Device, Kind, LmError, Tensor, no_grad};
use inheritune_runtime::worker::{JobError, ProgressSender, StopSignal};

use crate::answer::Answer;
use crate::prefix_tree::{Pass, Plan};
use crate::windows::Window;

/// Minimum time between two progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A model, with the batch size, stop signal and progress of scoring.
pub struct Scorer {
    decoder: Decoder,
    batch_size: usize,
    stop: StopSignal,
    tally: Tally,
}

impl Scorer {
    /// Creates a scorer that runs `batch_size` windows per forward pass of `decoder`.
    pub fn new(decoder: Decoder, batch_size: u32, stop: StopSignal, progress: ProgressSender) -> Self {
        Self { decoder, batch_size: batch_size.max(1) as usize, stop, tally: Tally::new(progress) }
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Announces the items that are scored next, for the progress.
    pub fn expect(&mut self, span: ProgressSpan) {
        self.tally.begin(span);
    }

    /// Returns the answers for `units` sequences or documents, from their windows. Adjacent windows
    /// of equal length share a forward pass. Each window's loss is summed in f64 from its first
    /// position to its last, so the batch size changes a result only by the rounding of the forward
    /// pass. `what` names a unit in messages, such as `sequence 3`.
    ///
    /// # Errors
    /// A window cannot be read, a loss is not finite (the message names the unit), libtorch fails,
    /// or [`JobError::Stopped`].
    pub fn score<I>(
        &mut self,
        units: usize,
        what: &dyn Fn(usize) -> String,
        windows: I,
    ) -> Result<Vec<Answer>, JobError>
    where
        I: IntoIterator<Item = Result<Window, JobError>>,
    {
        let mut answers = vec![Answer { log_likelihood: 0.0, tokens: 0, is_greedy: false }; units];
        // Not preallocated, because the caller chooses the batch size.
        let mut batch: Vec<Window> = Vec::new();
        for window in windows {
            let window = window?;
            let other_length = batch.first().is_some_and(|first| first.input.len() != window.input.len());
            if other_length || batch.len() == self.batch_size {
                self.score_batch(&batch, what, &mut answers)?;
                batch.clear();
            }
            batch.push(window);
        }
        if !batch.is_empty() {
            self.score_batch(&batch, what, &mut answers)?;
        }
        Ok(answers)
    }

    fn score_batch(
        &mut self,
        batch: &[Window],
        what: &dyn Fn(usize) -> String,
        answers: &mut [Answer],
    ) -> Result<(), JobError> {
        self.go_on()?;
        let length = batch.first().map_or(0, |window| window.input.len());
        let nats = self.forward(batch, length).map_err(lm_error)?;
        for (window, nats) in batch.iter().zip(nats.chunks_exact(length)) {
            let skipped = length - window.scored;
            let sum_nats: f64 = nats[skipped..].iter().copied().map(f64::from).sum();
            if !sum_nats.is_finite() {
                let place = nats[skipped..].iter().position(|x| !x.is_finite()).unwrap_or(0);
                return Err(not_finite(&what(window.unit), place, sum_nats));
            }
            answers[window.unit].tokens += window.scored as u64;
            answers[window.unit].log_likelihood -= sum_nats;
        }
        self.tally.add(batch.iter().map(|window| window.scored as u64).sum());
        Ok(())
    }

    /// The cross-entropies of a batch, row by row, `length` per row.
    fn forward(&self, batch: &[Window], length: usize) -> Result<Vec<f32>, LmError> {
        let shape = [batch.len() as i64, length as i64];
        let tensor = |ids: Vec<i64>| Tensor::from_slice(&ids).view(shape);
        let inputs = tensor(batch.iter().flat_map(|window| &window.input).copied().collect());
        let targets = tensor(batch.iter().flat_map(|window| &window.targets).copied().collect());
        let losses = no_grad(|| self.decoder.losses(&inputs, &targets))?;
        let losses = losses.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
        Ok(Vec::<f32>::try_from(&losses)?)
    }

    /// Runs the passes of `plan` and returns the answers for its `sequences` sequences. Each is
    /// summed in f64 from its first target to its last. `what` names a sequence in messages.
    ///
    /// # Errors
    /// A probability is not finite, libtorch fails, or [`JobError::Stopped`].
    pub fn follow(
        &mut self,
        plan: &Plan,
        sequences: usize,
        what: &dyn Fn(usize) -> String,
    ) -> Result<Vec<Answer>, JobError> {
        let mut answers = vec![Answer { log_likelihood: 0.0, tokens: 0, is_greedy: true }; sequences];
        let mut prefixes: BTreeMap<usize, CachedPrefix> = BTreeMap::new();
        for (number, pass) in plan.passes.iter().enumerate() {
            self.go_on()?;
            let cached = self.read(pass, &prefixes, what, &mut answers)?;
            prefixes.extend(pass.trees.iter().filter_map(|tree| tree.cached_as).zip(cached));
            prefixes.retain(|prefix, _| plan.last_use[*prefix] > number);
            self.tally.add(pass.tokens());
        }
        Ok(answers)
    }

    /// Runs a pass and adds its results to `answers`. Returns the prefixes that it caches.
    fn read(
        &self,
        pass: &Pass,
        prefixes: &BTreeMap<usize, CachedPrefix>,
        what: &dyn Fn(usize) -> String,
        answers: &mut [Answer],
    ) -> Result<Vec<CachedPrefix>, JobError> {
        let trees: Vec<Tree<'_>> = pass
            .trees
            .iter()
            .map(|tree| Tree {
                prefix: tree.prefix.and_then(|prefix| prefixes.get(&prefix)),
                tokens: &tree.tokens,
                parents: &tree.parents,
                is_cached: tree.cached_as.is_some(),
            })
            .collect();
        let asked =
            || (0..).zip(&pass.trees).flat_map(|(number, tree)| tree.questions.iter().map(move |q| (number, q)));
        let questions: Vec<Question> =
            asked().map(|(tree, &(place, token, _))| Question { tree, place, token }).collect();
        let (said, cached) = self.decoder.read_trees(&trees, &questions).map_err(lm_error)?;
        for ((_, (_, _, owners)), said) in asked().zip(said) {
            for &owner in owners {
                let answer = &mut answers[owner];
                if !said.log_probability.is_finite() {
                    return Err(not_finite(&what(owner), answer.tokens as usize, said.log_probability.into()));
                }
                answer.log_likelihood += f64::from(said.log_probability);
                answer.tokens += 1;
                answer.is_greedy &= said.is_greedy;
            }
        }
        Ok(cached)
    }

    fn go_on(&self) -> Result<(), JobError> {
        if self.stop.requested().is_some() { Err(JobError::Stopped) } else { Ok(()) }
    }
}

fn not_finite(what: &str, place: usize, found: f64) -> JobError {
    JobError::Permanent(format!(
        "{what}: the loss at scored position {place} is not finite ({found}); the checkpoint's weights are broken or overflow"
    ))
}

/// Returns the job's error for an error of the model.
pub fn lm_error(error: LmError) -> JobError {
    JobError::new(error.class(), error.to_string())
}

/// The part of an evaluation's progress that one unit covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProgressSpan {
    /// The task's name.
    pub task: String,
    /// Finished items of all tasks before this unit.
    pub done: u64,
    /// Items of all tasks.
    pub total: u64,
    /// Items of the unit.
    pub items: u64,
    /// Tokens of the unit.
    pub tokens: u64,
}

/// Counts tokens and reports progress in items.
struct Tally {
    progress: ProgressSender,
    started: Instant,
    reported: Instant,
    /// Items that this process scored before the span.
    own: u64,
    span: ProgressSpan,
    tokens: u64,
}

impl Tally {
    fn new(progress: ProgressSender) -> Self {
        let now = Instant::now();
        Self { progress, started: now, reported: now, own: 0, span: ProgressSpan::default(), tokens: 0 }
    }

    fn begin(&mut self, span: ProgressSpan) {
        self.own += self.span.items;
        self.span = span;
        self.tokens = 0;
    }

    fn add(&mut self, tokens: u64) {
        self.tokens += tokens;
        let now = Instant::now();
        if self.tokens < self.span.tokens && now - self.reported < PROGRESS_INTERVAL {
            return;
        }
        self.reported = now;
        let ProgressSpan { task, done, total, items, tokens } = &self.span;
        let share = (self.tokens as f64 / *tokens as f64).min(1.0);
        let done_here = share * *items as f64;
        let per_second = (self.own as f64 + done_here) / (now - self.started).as_secs_f64().max(1e-9);
        let done = (done + done_here as u64).min(*total);
        self.progress.set(Progress {
            done,
            total: *total,
            unit: "documents".to_owned(),
            per_second,
            estimated_remaining_seconds: Some((*total - done) as f64 / per_second),
            message: format!("{task}: {done} of {total} documents of all tasks"),
        });
    }
}
