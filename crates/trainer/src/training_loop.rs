//! The training loop: forward, backward, clip, update, with evaluation, metrics and saved states.
//!
//! Runs on a dedicated thread and does not access the store. Inputs are local folders; metric
//! points and training states go through the [`Recorder`]. Between two steps, [`TrainingState`],
//! the weights and the optimizer hold everything, so a stop between two micro-batches loses at most
//! the step being computed.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::job::{MetricPoint, Progress};
use inheritune_domain::spec::{TrainSpec, used_tokens};
use inheritune_lm::optimizer::{self, AdamW, AdamWConfig};
use inheritune_lm::tokens::{TokenSet, TokenSetMeta};
use inheritune_lm::{Decoder, Kind, LmError, device, no_grad};
use inheritune_runtime::telemetry::metric;
use inheritune_runtime::worker::{JobError, ProgressSender, StopReason, StopSignal};

use crate::batches::{Batch, Batches};
use crate::data_order::{DataOrder, NoOrder, Share, StepShape};
use crate::estimate::flops_per_token;
use crate::inputs::Inputs;
use crate::lm_error;
use crate::process_group::{ProcessGroup, Ranks};
use crate::recorder::Recorder;
use crate::resume::{OPTIMIZER_FILE, Saved, TrainingSnapshot, TrainingState};
use crate::schedule::learning_rate;

/// Weight of the newest step in the running mean of step times.
const SPEED_WEIGHT: f64 = 0.2;
/// Tolerance in nats above a random model's expected loss, and below ln(vocabulary).
const NEAR_RANDOM_NATS: f64 = 0.1;

/// One training, ready to run.
pub struct Training {
    /// The spec, and the local folders of the checkpoint and the tokens.
    pub inputs: Inputs,
    /// An empty folder for the trained weights.
    pub scratch: PathBuf,
    /// The training state to resume from.
    pub saved: Option<Saved>,
    /// How each step is split: as the spec says, or into smaller micro-batches after running out of
    /// memory.
    pub shape: StepShape,
    /// Number of libtorch threads; libtorch chooses if absent.
    pub threads: Option<usize>,
    /// Checked before every micro-batch, or once per step if several ranks train.
    pub stop: StopSignal,
    /// Updated after every step.
    pub progress: ProgressSender,
    /// Receives metric points and training states.
    pub recorder: Recorder,
}

/// A training that reached its last step.
#[derive(Debug)]
pub struct Finished {
    /// The folder of the trained weights, named as in a checkpoint.
    pub dir: PathBuf,
    /// The state after the last step.
    pub state: TrainingState,
    /// Number of passes over the training tokens.
    pub epochs: f64,
    /// The model's shape.
    pub config: DecoderConfig,
}

/// Why a training ended before its last step.
#[derive(Debug)]
pub enum Interrupted {
    /// A loss or gradient is not finite. The text names the step, and the micro-batch or tensor.
    NotFinite(String),
    /// A tensor could not be allocated.
    OutOfMemory(String),
    /// Any other job error.
    Job(JobError),
}

impl From<JobError> for Interrupted {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

impl From<LmError> for Interrupted {
    fn from(error: LmError) -> Self {
        if error.is_out_of_memory() { Self::OutOfMemory(error.to_string()) } else { Self::Job(lm_error(error)) }
    }
}

impl From<tch::TchError> for Interrupted {
    fn from(error: tch::TchError) -> Self {
        LmError::Torch(error).into()
    }
}

impl From<Interrupted> for JobError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::NotFinite(problem) => Self::Permanent(problem),
            Interrupted::OutOfMemory(problem) => Self::Retryable(problem),
            Interrupted::Job(error) => error,
        }
    }
}

impl Training {
    /// Trains to the last step; blocks.
    ///
    /// # Errors
    /// - [`Interrupted::NotFinite`] and [`Interrupted::OutOfMemory`].
    /// - [`JobError::Permanent`] if an input cannot be used, or a model that should have inherited
    ///   its tensors starts like a random one.
    /// - [`JobError::Stopped`] if the job was asked to stop. For a shutdown or a pause, the state
    ///   was sent to the recorder first.
    pub fn run(self, ranks: &Ranks) -> Result<Finished, Interrupted> {
        let group = ProcessGroup::launch(&self, ranks)?;
        self.run_as(group)
    }

    /// Runs the share of this process, as a member of `group`.
    pub(crate) fn run_as(mut self, group: ProcessGroup) -> Result<Finished, Interrupted> {
        if let Some(threads) = self.threads {
            device::set_threads(threads);
        }
        let tokens = Arc::new(TokenSet::open(&self.inputs.tokens)?);
        let saved = self.saved.take();
        let mut session = Session::start((&self, group), &tokens, saved)?;
        session.train()?;
        session.finish()
    }
}

/// A training in progress.
struct Session<'a> {
    job: &'a Training,
    group: ProcessGroup,
    tokens: &'a TokenSet,
    order: DataOrder,
    batches: Batches,
    total_steps: u64,
    model: Decoder,
    optimizer: AdamW,
    state: TrainingState,
    /// The step of the newest saved state.
    saved_step: u64,
    /// When this attempt started.
    started: Instant,
    /// Training time of earlier attempts.
    wall_s_before: f64,
    /// Running mean of the time per step in seconds, without evaluation and saving.
    step_s: Option<f64>,
    /// Peak floating-point operations per second of a matrix product, over the devices of all
    /// ranks. Only set on rank 0.
    peak_flops: Option<f64>,
}

/// The measurements of one step.
struct StepNumbers {
    loss_nats: f64,
    gradient_norm: f64,
    learning_rate: f64,
}

impl<'a> Session<'a> {
    fn start(
        (job, group): (&'a Training, ProcessGroup),
        tokens: &'a Arc<TokenSet>,
        saved: Option<Saved>,
    ) -> Result<Self, Interrupted> {
        let training = &job.inputs.spec.training;
        let of_checkpoint = |e| lm_error(e).about(&format!("checkpoint {}", job.inputs.spec.checkpoint));
        let config = Decoder::read_config(&job.inputs.checkpoint).map_err(of_checkpoint)?;
        if tokens.meta().vocab_size > config.vocab_size {
            let (tokenizer, embedding) = (tokens.meta().vocab_size, config.vocab_size);
            return Err(LmError::VocabularyTooLarge { tokenizer, embedding }.into());
        }
        if training.block_size > config.max_positions {
            let (block_size, positions) = (training.block_size, config.max_positions);
            let problem = format!("training.block_size {block_size} exceeds the model's {positions} positions");
            return Err(JobError::Permanent(problem).into());
        }
        let (order, used) = data_order(job, tokens.meta())?;
        // A training that has already started resumes as it began.
        if saved.is_none() {
            let fits = training.check_tokens(used);
            fits.map_err(|violations| JobError::Permanent(violations.under("training").to_string()))?;
        }
        let device = device::default_device()?;
        let model = match &saved {
            Some(saved) => Decoder::from_weights(config, &saved.dir, device)?,
            None => Decoder::from_weights(config, &job.inputs.checkpoint, device).map_err(of_checkpoint)?,
        };
        let mut model = model.in_precision(training.precision)?;
        if training.activation_checkpointing {
            model = model.with_activation_checkpointing();
        }
        if training.document_mask {
            let end = tokens.meta().end_of_text_id.ok_or_else(|| {
                JobError::Permanent(
                    "training.document_mask: the token set's tokenizer has no end-of-text token".to_owned(),
                )
            })?;
            model = model.within_documents(end);
        }
        let mut optimizer = AdamW::new(model.parameters(), adamw_config(&job.inputs.spec))?;
        let state = match saved {
            Some(saved) => {
                optimizer.load(&saved.dir.join(OPTIMIZER_FILE))?;
                saved.state
            }
            None => TrainingState::start(&job.inputs.spec),
        };
        let micro_batches = group.micro_batches(job.shape.gradient_accumulation);
        let batches = Batches::start(tokens.clone(), order.clone(), (state.step, micro_batches))?;
        // Only rank 0 reports it, and simultaneous measurements would distort each other.
        let peak = group.is_rank_zero().then(|| device::matmul_peak(device, model.compute_kind())).transpose()?;
        Ok(Self {
            job,
            tokens,
            order,
            batches,
            peak_flops: peak.map(|peak| peak * f64::from(group.size())),
            group,
            total_steps: training.total_steps(used),
            model,
            optimizer,
            saved_step: state.step,
            started: Instant::now(),
            wall_s_before: state.wall_s,
            step_s: None,
            state,
        })
    }

    fn train(&mut self) -> Result<(), Interrupted> {
        if self.state.step == 0 && self.job.inputs.spec.expect_inherited && self.group.is_rank_zero() {
            self.check_inheritance()?;
        }
        // Repeated after a resume, because the stop may have interrupted this evaluation.
        self.evaluate_if_due()?;
        while self.state.step < self.total_steps {
            let started = Instant::now();
            let numbers = self.step()?;
            self.measure_speed(started.elapsed().as_secs_f64());
            self.note(&numbers)?;
            self.evaluate_if_due()?;
            let every = self.job.inputs.spec.training.checkpoint_every_steps;
            if every > 0 && self.state.step.is_multiple_of(every) && self.state.step < self.total_steps {
                self.save()?;
            }
        }
        Ok(())
    }

    /// Runs one optimizer step: forward and backward for every micro-batch, clip, update.
    fn step(&mut self) -> Result<StepNumbers, Interrupted> {
        let training = &self.job.inputs.spec.training;
        let micro_batches = f64::from(self.job.shape.gradient_accumulation);
        let (mut loss_sum, mut broken) = (0.0, None);
        for micro in self.group.micro_batches(self.job.shape.gradient_accumulation) {
            if !self.group.is_distributed() {
                self.stop_if_told()?;
            }
            let Batch { inputs, targets, ranges } = self.batches.wait()?;
            let loss_nats = self.model.add_gradients(&inputs, &targets, micro_batches)?;
            loss_sum += loss_nats;
            if !loss_nats.is_finite() {
                let starts: Vec<u64> = ranges.iter().map(|range| range.start).collect();
                broken = Some(format!(
                    "the loss of micro-batch {micro} is {loss_nats} (sequences at training tokens {starts:?})"
                ));
                break;
            }
        }
        // Ranks must stop at the same step, so each exchange also carries the stop request.
        let told = if self.group.is_distributed() && self.job.stop.requested().is_some() { 1.0 } else { 0.0 };
        let sums = self.group.sum(&[loss_sum, told])?;
        let (loss_sum, told) = (sums[0], sums[1]);
        if let Some(broken) = broken {
            return Err(self.broken(&broken));
        }
        if !loss_sum.is_finite() {
            return Err(self.broken("the loss of another rank's micro-batch is not finite"));
        }
        if told > 0.0 {
            self.optimizer.zero_grad()?;
            self.stop_if_told()?;
            return Err(JobError::Stopped.into());
        }
        self.group.sum_gradients(self.model.parameters())?;
        // Without clipping, clip at infinity: the norm is still needed.
        let max_norm = if training.clip_norm > 0.0 { training.clip_norm } else { f64::INFINITY };
        let gradient_norm = optimizer::clip_grad_norm(self.model.parameters(), max_norm)?;
        if !gradient_norm.is_finite() {
            let tensor = self.broken_gradient()?;
            return Err(self.broken(&format!("the gradient of `{tensor}` is not finite (global norm {gradient_norm})")));
        }
        let learning_rate = learning_rate(self.state.step, training, self.total_steps);
        self.optimizer.step(learning_rate)?;
        self.optimizer.zero_grad()?;
        Ok(StepNumbers { loss_nats: loss_sum / micro_batches, gradient_norm, learning_rate })
    }

    /// Updates the state after a step, and reports metrics and progress.
    fn note(&mut self, numbers: &StepNumbers) -> Result<(), Interrupted> {
        let training = &self.job.inputs.spec.training;
        self.state.first_loss_nats.get_or_insert(numbers.loss_nats);
        self.state.step += 1;
        self.state.tokens_seen += training.tokens_per_step();
        metrics::counter!(metric::TRAINING_TOKENS).increment(training.tokens_per_step());
        self.state.window_loss_sum += numbers.loss_nats;
        self.state.window_steps += 1;
        let last = self.state.step == self.total_steps;
        if self.state.step.is_multiple_of(training.log_every_steps) || last {
            let mean = self.state.window_loss_sum / self.state.window_steps as f64;
            (self.state.window_loss_sum, self.state.window_steps) = (0.0, 0);
            self.state.last_loss_nats = Some(mean);
            self.point("train_loss", mean)?;
            self.point("learning_rate", numbers.learning_rate)?;
            self.point("gradient_norm", numbers.gradient_norm)?;
            self.point("data_epoch", self.order.epochs(self.state.step))?;
            if let Some(bytes) = resident_bytes() {
                self.point("memory_bytes", bytes)?;
            }
            if let Some(step_s) = self.step_s {
                let tokens_per_second = training.tokens_per_step() as f64 / step_s;
                self.point("tokens_per_second", tokens_per_second)?;
                if let Some(peak_flops) = self.peak_flops {
                    let flops = tokens_per_second * flops_per_token(self.model.config(), training.block_size);
                    self.point("model_flops_utilization", flops / peak_flops)?;
                }
            }
        }
        self.show_progress(&format!("loss {:.3}", numbers.loss_nats));
        Ok(())
    }

    fn show_progress(&self, what: &str) {
        let tokens_per_step = self.job.inputs.spec.training.tokens_per_step();
        self.job.progress.set(Progress {
            done: self.state.tokens_seen,
            total: self.total_steps * tokens_per_step,
            unit: "tokens".to_owned(),
            per_second: self.step_s.map_or(0.0, |step_s| tokens_per_step as f64 / step_s),
            estimated_remaining_seconds: self.step_s.map(|s| s * (self.total_steps - self.state.step) as f64),
            message: format!("step {}/{} {what}", self.state.step, self.total_steps),
        });
    }

    fn measure_speed(&mut self, newest_s: f64) {
        let mean = self.step_s.map_or(newest_s, |mean| mean + SPEED_WEIGHT * (newest_s - mean));
        self.step_s = Some(mean.max(1e-9));
    }

    /// Measures the validation loss for the curves, on a fixed sample of sequences spread evenly
    /// over the validation part.
    fn evaluate_if_due(&mut self) -> Result<(), Interrupted> {
        let training = &self.job.inputs.spec.training;
        let every = training.evaluate_every_steps;
        let last = self.state.step == self.total_steps;
        if every == 0 || !(self.state.step.is_multiple_of(every) || last) || !self.group.is_rank_zero() {
            return Ok(());
        }
        let block = u64::from(training.block_size);
        let validation = self.tokens.validation();
        let sequences = validation.len().saturating_sub(1) / block;
        if sequences == 0 {
            // The evaluator makes the measurement that counts, and it also accepts short sequences.
            return Ok(());
        }
        self.show_progress("measuring the validation loss");
        let wanted = u64::from(training.evaluate_sequences).min(sequences);
        let ranges: Vec<_> =
            (0..wanted).map(|i| i * sequences / wanted * block).map(|start| start..start + block + 1).collect();
        let mut sum_nats = 0.0;
        for ranges in ranges.chunks(self.job.shape.micro_batch as usize) {
            self.stop_if_told()?;
            let Batch { inputs, targets, ranges } = Batch::read(validation, ranges.to_vec())?;
            let loss = no_grad(|| self.model.loss(&inputs, &targets))?;
            sum_nats += loss.f_double_value(&[])? * ranges.len() as f64;
        }
        let loss_nats = sum_nats / wanted as f64;
        if !loss_nats.is_finite() {
            return Err(self.broken(&format!("the validation loss is {loss_nats}")));
        }
        self.point("validation_loss", loss_nats)?;
        if training.keep_best && self.state.best_validation_nats.is_none_or(|best| loss_nats < best) {
            self.state.best_validation_nats = Some(loss_nats);
            return self.hand_over(true);
        }
        Ok(())
    }

    /// Checks that a model that should have inherited its tensors does not behave like a random
    /// one. A random model's logits are close to zero: the mean of its losses is ln V + D σ²/2
    /// (logits have variance D σ² after the final norm), and they hardly vary between positions.
    /// The losses of a sliced model vary widely.
    #[allow(non_snake_case)]
    fn check_inheritance(&self) -> Result<(), Interrupted> {
        let Batch { inputs, targets, .. } = Batch::read(self.tokens.train(), self.order.micro_batch(0, 0))?;
        let losses_BT = no_grad(|| self.model.losses(&inputs, &targets))?.to_kind(Kind::Double);
        let mean = losses_BT.f_mean(Kind::Double).and_then(|mean| mean.f_double_value(&[]))?;
        let deviation = losses_BT.f_std(false).and_then(|std| std.f_double_value(&[]))?;
        let config = self.model.config();
        if !starts_like_random(mean, deviation, config) {
            return Ok(());
        }
        let problem = format!(
            "the model should have inherited its tensors, but its loss before the first step is {mean:.3} nats, like \
             a random model's (ln of its {} tokens is {:.3}): check the origins in the checkpoint's inheritance.json, \
             and that the token set was made with the model's own tokenizer",
            config.vocab_size,
            f64::from(config.vocab_size).ln()
        );
        Err(JobError::Permanent(problem).into())
    }

    /// Saves the state and returns [`JobError::Stopped`] if a stop was requested. Between
    /// micro-batches the weights are still those of the last completed step.
    fn stop_if_told(&mut self) -> Result<(), Interrupted> {
        match self.job.stop.requested() {
            None => return Ok(()),
            Some(StopReason::Shutdown | StopReason::Pause) => self.save()?,
            Some(StopReason::Cancel | StopReason::LeaseLost) => {}
        }
        Err(JobError::Stopped.into())
    }

    /// Sends the state of the last completed step to the recorder, unless it already has it.
    fn save(&mut self) -> Result<(), Interrupted> {
        if self.saved_step == self.state.step || !self.group.is_rank_zero() {
            return Ok(());
        }
        self.hand_over(false)
    }

    fn hand_over(&mut self, is_best: bool) -> Result<(), Interrupted> {
        self.state.wall_s = self.wall_s();
        // The state is written and uploaded while the training continues.
        self.job.recorder.state(TrainingSnapshot::of(&self.model, &self.optimizer, (&self.state, is_best))?)?;
        self.saved_step = self.state.step;
        Ok(())
    }

    fn finish(mut self) -> Result<Finished, Interrupted> {
        self.state.wall_s = self.wall_s();
        let is_rank_zero = self.group.is_rank_zero();
        self.group.shutdown()?;
        let dir = self.job.scratch.join("trained");
        std::fs::create_dir_all(&dir).map_err(|error| crate::file_error(&dir, error))?;
        if is_rank_zero {
            self.model.save(&dir)?;
        }
        let epochs = self.order.epochs(self.state.step);
        Ok(Finished { dir, epochs, config: self.model.config().clone(), state: self.state })
    }

    fn wall_s(&self) -> f64 {
        self.wall_s_before + self.started.elapsed().as_secs_f64()
    }

    fn point(&self, name: &str, value: f64) -> Result<(), Interrupted> {
        let (step, tokens_seen) = (self.state.step, self.state.tokens_seen);
        Ok(self.job.recorder.point(MetricPoint { step, tokens_seen, name: name.to_owned(), value })?)
    }

    /// The first parameter whose gradient is not finite.
    fn broken_gradient(&self) -> Result<&str, Interrupted> {
        for parameter in self.model.parameters() {
            let Some(gradient) = optimizer::gradient(parameter)? else { continue };
            let sum = gradient.f_sum(Kind::Double).and_then(|sum| sum.f_double_value(&[]))?;
            if !sum.is_finite() {
                return Ok(&parameter.name);
            }
        }
        // Each gradient is finite, but the sum of squares overflows.
        Ok("all tensors together")
    }

    fn broken(&self, what: &str) -> Interrupted {
        Interrupted::NotFinite(format!(
            "step {}: {what}; lower training.lr_max, lengthen warmup_steps or clip gradients (clip_norm)",
            self.state.step
        ))
    }
}

/// The data order, and the number of training tokens that it uses.
fn data_order(job: &Training, tokens: &TokenSetMeta) -> Result<(DataOrder, u64), JobError> {
    let (TrainSpec { training, data_fraction, seed, .. }, shape) = (&job.inputs.spec, job.shape);
    let weights = &training.source_weights;
    let refused = |error: NoOrder| JobError::Permanent(error.to_string());
    if weights.is_empty() {
        let used = used_tokens(tokens.train_tokens, *data_fraction);
        return Ok((DataOrder::new(used, shape, training.sampling, *seed).map_err(refused)?, used));
    }
    let sources = tokens.train_sources();
    if sources.len() != weights.len() {
        let (weights, sources) = (weights.len(), sources.len());
        let problem =
            format!("training.source_weights: {weights} weights are given, but the token set has {sources} sources");
        return Err(JobError::Permanent(problem));
    }
    let used = |range: &Range<u64>| range.start..range.start + used_tokens(range.end - range.start, *data_fraction);
    let shares: Vec<Share> =
        sources.iter().zip(weights).map(|(source, weight)| Share { tokens: used(source), weight: *weight }).collect();
    let used = shares.iter().map(|share| share.tokens.end - share.tokens.start).sum();
    Ok((DataOrder::weighted(&shares, shape, training.sampling, *seed).map_err(refused)?, used))
}

/// Resident memory of this process in bytes, if the system reports it.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<f64>().ok()? * 1024.0)
}

/// Whether losses with this mean and standard deviation over positions look like those of a random
/// model of this shape.
fn starts_like_random(mean_nats: f64, deviation_nats: f64, config: &DecoderConfig) -> bool {
    let logit_variance = f64::from(config.d_model) * config.init_std * config.init_std;
    let uniform_nats = f64::from(config.vocab_size).ln();
    let near = (uniform_nats - NEAR_RANDOM_NATS)..(uniform_nats + logit_variance / 2.0 + NEAR_RANDOM_NATS);
    near.contains(&mean_nats) && deviation_nats < 1.5 * logit_variance.sqrt() + NEAR_RANDOM_NATS
}

fn adamw_config(spec: &TrainSpec) -> AdamWConfig {
    let training = &spec.training;
    AdamWConfig {
        beta1: training.beta1,
        beta2: training.beta2,
        eps: training.adam_eps,
        weight_decay: training.weight_decay,
        decay: training.decay,
    }
}
