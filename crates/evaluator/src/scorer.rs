//! From windows to losses: batches of windows of one length, no padding.

use std::time::{Duration, Instant};

use inheritune_domain::job::Progress;
use inheritune_lm::{Decoder, Device, Kind, LmError, Tensor, no_grad};
use inheritune_runtime::worker::{JobError, ProgressSender, StopSignal};

use crate::metrics::SequenceLoss;
use crate::windows::Window;

/// A progress message at most so often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A model and what scoring with it takes.
pub struct Scorer {
    decoder: Decoder,
    batch_size: usize,
    stop: StopSignal,
    tally: Tally,
}

impl Scorer {
    /// Scores with `decoder`, `batch_size` windows at a time.
    pub fn new(decoder: Decoder, batch_size: u32, stop: StopSignal, progress: ProgressSender) -> Self {
        Self { decoder, batch_size: batch_size.max(1) as usize, stop, tally: Tally::new(progress) }
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Says how many tokens all calls of [`Self::score`] will score together, for the progress.
    pub fn expect_tokens(&mut self, tokens: u64) {
        self.tally.total = tokens;
    }

    /// The losses of `units` sequences or documents, from their windows: neighbours of one length share a forward
    /// pass. Each window's loss is summed in f64 from its first position to its last, so that the batch size moves a
    /// result by no more than the rounding of the forward pass. `what` names a unit in messages: `sequence`.
    ///
    /// # Errors
    /// A window cannot be had, a loss is not finite (the message names the unit), libtorch fails, or
    /// [`JobError::Stopped`].
    pub fn score<I>(&mut self, units: usize, what: &str, windows: I) -> Result<Vec<SequenceLoss>, JobError>
    where
        I: IntoIterator<Item = Result<Window, JobError>>,
    {
        let mut losses = vec![SequenceLoss::default(); units];
        let mut batch: Vec<Window> = Vec::with_capacity(self.batch_size);
        for window in windows {
            let window = window?;
            let other_length = batch.first().is_some_and(|first| first.input.len() != window.input.len());
            if other_length || batch.len() == self.batch_size {
                self.score_batch(&batch, what, &mut losses)?;
                batch.clear();
            }
            batch.push(window);
        }
        if !batch.is_empty() {
            self.score_batch(&batch, what, &mut losses)?;
        }
        Ok(losses)
    }

    fn score_batch(&mut self, batch: &[Window], what: &str, losses: &mut [SequenceLoss]) -> Result<(), JobError> {
        if self.stop.requested().is_some() {
            return Err(JobError::Stopped);
        }
        let length = batch.first().map_or(0, |window| window.input.len());
        let nats = self.forward(batch, length).map_err(lm_error)?;
        for (window, nats) in batch.iter().zip(nats.chunks_exact(length)) {
            let skipped = length - window.scored;
            let sum_nats: f64 = nats[skipped..].iter().copied().map(f64::from).sum();
            if !sum_nats.is_finite() {
                let place = nats[skipped..].iter().position(|x| !x.is_finite()).unwrap_or(0);
                return Err(JobError::Permanent(format!(
                    "{what} {}: the loss at scored position {place} of its window is not finite ({sum_nats}); the \
                     checkpoint's weights are broken or overflow",
                    window.unit
                )));
            }
            losses[window.unit].tokens += window.scored as u64;
            losses[window.unit].sum_nats += sum_nats;
        }
        self.tally.add(batch.iter().map(|window| window.scored as u64).sum(), what);
        Ok(())
    }

    /// Cross-entropies of a batch, row by row, `length` a row.
    fn forward(&self, batch: &[Window], length: usize) -> Result<Vec<f32>, LmError> {
        let shape = [batch.len() as i64, length as i64];
        let tensor = |ids: Vec<i64>| Tensor::from_slice(&ids).view(shape);
        let inputs = tensor(batch.iter().flat_map(|window| &window.input).copied().collect());
        let targets = tensor(batch.iter().flat_map(|window| &window.targets).copied().collect());
        let losses = no_grad(|| self.decoder.losses(&inputs, &targets))?;
        let losses = losses.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
        Ok(Vec::<f32>::try_from(&losses)?)
    }
}

/// What an error of the model means for the job.
pub fn lm_error(error: LmError) -> JobError {
    if error.is_retryable() { JobError::Retryable(error.to_string()) } else { JobError::Permanent(error.to_string()) }
}

/// Counts tokens and says how far it is.
struct Tally {
    progress: ProgressSender,
    started: Instant,
    told: Instant,
    done: u64,
    total: u64,
}

impl Tally {
    fn new(progress: ProgressSender) -> Self {
        let now = Instant::now();
        Self { progress, started: now, told: now, done: 0, total: 0 }
    }

    fn add(&mut self, tokens: u64, what: &str) {
        self.done += tokens;
        let now = Instant::now();
        if self.done < self.total && now - self.told < PROGRESS_INTERVAL {
            return;
        }
        self.told = now;
        let per_second = self.done as f64 / (now - self.started).as_secs_f64().max(1e-9);
        let left = self.total.saturating_sub(self.done);
        self.progress.set(Progress {
            done: self.done,
            total: self.total,
            unit: "tokens".to_owned(),
            per_second,
            estimated_remaining_seconds: Some(left as f64 / per_second),
            message: format!("scoring {what}s: {} of {} tokens", self.done, self.total),
        });
    }
}
