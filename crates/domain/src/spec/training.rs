//! How a model is trained: the hyperparameters of the paper (§4 and appendix) and of its released
//! code.

use serde::{Deserialize, Serialize};

use super::{defaults, limits};
use crate::violation::Violations;
use inheritune_ids::named;

/// How a model is trained (paper §4 and appendix, and its released code).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// Tokens per sequence.
    pub block_size: u32,
    /// Sequences per forward pass.
    pub micro_batch: u32,
    /// Micro-batches per optimizer step: tokens per step = block_size x micro_batch x
    /// gradient_accumulation.
    #[serde(default = "defaults::gradient_accumulation")]
    pub gradient_accumulation: u32,
    /// The precision of weights, activations and optimizer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Store only each block's input in the forward pass and recompute the rest in the backward
    /// pass (activation checkpointing). Uses less memory and a third more compute (Chen et al.
    /// 2016).
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation_checkpointing: bool,
    /// Which blocks of the training tokens each step trains on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// Relative sampling weights of the sources of the token set, in order; proportional to their
    /// numbers of tokens when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_weights: Vec<f64>,
    /// Restrict attention to the same document. Positions still count through the whole block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub document_mask: bool,
    /// Optimizer steps. Give either `steps` or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training tokens. Give either `steps` or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Learning rate after the warm-up.
    pub lr_max: f64,
    /// Learning rate at the end of the cosine schedule.
    #[serde(default)]
    pub lr_min: f64,
    /// Number of steps of linear warm-up from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// The schedule after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// AdamW's decoupled weight decay.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Which parameters decay.
    #[serde(default)]
    pub decay: DecayOn,
    /// AdamW's first moment factor.
    #[serde(default = "defaults::beta1")]
    pub beta1: f64,
    /// AdamW's second moment factor.
    #[serde(default = "defaults::beta2")]
    pub beta2: f64,
    /// AdamW's epsilon.
    #[serde(default = "defaults::adam_eps")]
    pub adam_eps: f64,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    #[serde(default = "defaults::clip_norm")]
    pub clip_norm: f64,
    /// Log metrics every N steps.
    #[serde(default = "defaults::log_every_steps")]
    pub log_every_steps: u64,
    /// Measure a quick validation loss for the curves every N steps; 0 turns it off.
    #[serde(default)]
    pub evaluate_every_steps: u64,
    /// Number of validation sequences of the quick loss.
    #[serde(default = "defaults::evaluate_sequences")]
    pub evaluate_sequences: u32,
    /// Save a training state every N steps; with 0, one is saved only when the training is stopped.
    #[serde(default = "defaults::checkpoint_every_steps")]
    pub checkpoint_every_steps: u64,
    /// Number of newest training states to keep during the training.
    #[serde(default = "defaults::keep_newest", skip_serializing_if = "is_default_keep_newest")]
    pub keep_newest: u32,
    /// Save a training state at every new lowest validation loss (see `evaluate_every_steps`). The
    /// last of them is kept after the training has ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_best: bool,
}

named! {
    /// The precision that a model is trained in.
    #[derive(Default)]
    pub enum Precision {
        /// Everything in 32-bit floats.
        #[default]
        Fp32 = "fp32",
        /// Matrix products and attention in bfloat16; weights, gradients, moments, norms, the
        /// residual stream and the loss in 32-bit floats (PyTorch's autocast; the paper's GPT-2
        /// runs).
        Bf16Mixed = "bf16-mixed",
        /// Everything but the loss in bfloat16 (Lightning's `bf16-true`, in the paper's released
        /// Llama code).
        Bf16 = "bf16",
    }
}

named! {
    /// Which blocks of the training tokens each step trains on.
    #[derive(Default)]
    pub enum Sampling {
        /// Every aligned block once per pass, in an order derived from the seed.
        #[default]
        Permutation = "permutation",
        /// Blocks at random offsets, with replacement (nanoGPT and the released GPT-2 code).
        RandomOffsets = "random-offsets",
    }
}

named! {
    /// The learning rate after the warm-up.
    #[derive(Default)]
    pub enum Schedule {
        /// Half a cosine from `lr_max` to `lr_min`.
        #[default]
        Cosine = "cosine",
        /// `lr_max` until the end.
        Constant = "constant",
    }
}

named! {
    /// Which parameters weight decay applies to.
    #[derive(Default)]
    pub enum DecayOn {
        /// Tensors of two or more dimensions, embeddings included (nanoGPT).
        #[default]
        Matrices = "matrices",
        /// Everything (the released Llama code).
        All = "all",
    }
}

/// Returns `fraction` of `train_tokens`, rounded down to whole tokens: all of them at 1.
pub fn used_tokens(train_tokens: u64, fraction: f64) -> u64 {
    ((train_tokens as f64 * fraction).floor() as u64).min(train_tokens)
}

impl TrainingSpec {
    /// Returns the number of tokens per optimizer step.
    pub fn tokens_per_step(&self) -> u64 {
        self.micro_batch_tokens().saturating_mul(self.gradient_accumulation.into())
    }

    /// Returns the number of tokens per forward pass.
    fn micro_batch_tokens(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.micro_batch)
    }

    /// Returns the optimizer steps over `train_tokens` tokens: `steps`, or the number of whole
    /// steps in `epochs` passes, at least one.
    pub fn total_steps(&self, train_tokens: u64) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => {
                let block = u64::from(self.block_size).max(1);
                let sequences = (train_tokens.saturating_sub(1) / block).saturating_mul(epochs.into());
                let sequences_per_step = u64::from(self.micro_batch) * u64::from(self.gradient_accumulation);
                (sequences / sequences_per_step.max(1)).max(1)
            }
            (None, None) => 0,
        }
    }

    /// Checks that the training fits `tokens` tokens, a number that is only known once they are
    /// counted.
    ///
    /// # Errors
    /// All violations, with fields named relative to this spec.
    pub fn check_tokens(&self, tokens: u64) -> Result<(), Violations> {
        let mut v = Violations::default();
        let blocks = tokens.saturating_sub(1) / u64::from(self.block_size).max(1);
        if blocks == 0 {
            let needed = u64::from(self.block_size) + 1;
            v.add(
                "block_size",
                format!("one block needs {needed} tokens, but there are only {tokens}: use more text, a larger data_fraction or a \
                         smaller block_size"),
            );
            return v.into_result();
        }
        let Some(epochs) = self.epochs else { return v.into_result() };
        let (steps, per_step) = (self.total_steps(tokens), self.tokens_per_step());
        let found = format!("{epochs} epochs of {tokens} tokens are {steps} steps of {per_step} tokens");
        v.check(
            blocks * u64::from(epochs) >= u64::from(self.micro_batch) * u64::from(self.gradient_accumulation),
            "epochs",
            format!(
                "{epochs} epochs of {tokens} tokens do not fill one step of {per_step}: give more epochs, more text, a \
                     larger data_fraction, or a smaller micro_batch or gradient_accumulation"
            ),
        );
        v.check(
            self.warmup_steps < steps,
            "warmup_steps",
            format!(
                "{} do not fit: {found}, and lr_max would never be reached. Lower warmup_steps, or give more \
                     epochs, more text, a larger data_fraction or smaller steps",
                self.warmup_steps
            ),
        );
        v.into_result()
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All violations, with fields named relative to this spec.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        limits::BLOCK_SIZE.check(&mut v, "block_size", self.block_size);
        limits::MICRO_BATCH.check(&mut v, "micro_batch", self.micro_batch);
        limits::GRADIENT_ACCUMULATION.check(&mut v, "gradient_accumulation", self.gradient_accumulation);
        self.validate_products(&mut v);
        limits::SOURCE_WEIGHTS.check(&mut v, "source_weights", self.source_weights.len());
        for (i, weight) in self.source_weights.iter().enumerate() {
            limits::SOURCE_WEIGHT.check(&mut v, format!("source_weights[{i}]"), *weight);
        }
        limits::STEPS.check_optional(&mut v, "steps", self.steps);
        limits::EPOCHS.check_optional(&mut v, "epochs", self.epochs);
        limits::MAYBE_STEPS.check(&mut v, "warmup_steps", self.warmup_steps);
        match (self.steps, self.epochs) {
            (Some(_), Some(_)) => v.add("epochs", "give either steps or epochs, not both"),
            (None, None) => v.add("steps", "give steps or epochs"),
            (Some(steps), None) => {
                let fits = self.warmup_steps <= steps || !limits::MAYBE_STEPS.holds(self.warmup_steps) || steps == 0;
                v.check(fits, "warmup_steps", format!("must not exceed steps ({steps})"));
            }
            (None, Some(_)) => {}
        }
        limits::LR_MAX.check(&mut v, "lr_max", self.lr_max);
        v.check(self.lr_min >= 0.0 && self.lr_min <= self.lr_max, "lr_min", "must be at least 0 and at most lr_max");
        limits::DECAY_OR_NORM.check(&mut v, "weight_decay", self.weight_decay);
        limits::BETA.check(&mut v, "beta1", self.beta1);
        limits::BETA.check(&mut v, "beta2", self.beta2);
        limits::ADAM_EPS.check(&mut v, "adam_eps", self.adam_eps);
        limits::DECAY_OR_NORM.check(&mut v, "clip_norm", self.clip_norm);
        limits::EVERY_STEPS.check(&mut v, "log_every_steps", self.log_every_steps);
        limits::MAYBE_STEPS.check(&mut v, "evaluate_every_steps", self.evaluate_every_steps);
        limits::MAYBE_STEPS.check(&mut v, "checkpoint_every_steps", self.checkpoint_every_steps);
        limits::KEEP_NEWEST.check(&mut v, "keep_newest", self.keep_newest);
        v.check(
            !self.keep_best || self.evaluate_every_steps >= 1,
            "keep_best",
            "requires evaluate_every_steps, which sets when the validation loss is measured",
        );
        limits::QUICK_SEQUENCES.check(&mut v, "evaluate_sequences", self.evaluate_sequences);
        v.into_result()
    }

    /// Checks the products of the batch sizes: each factor may be large, but not all of them at
    /// once.
    fn validate_products(&self, v: &mut Violations) {
        let (batch, step) = (limits::MICRO_BATCH_TOKENS, limits::STEP_TOKENS);
        if limits::MICRO_BATCH.holds(self.micro_batch) && self.micro_batch_tokens() as i128 > batch.max {
            let problem = format!(
                "times block_size is {} tokens per forward pass; the limit is {}",
                self.micro_batch_tokens(),
                batch.max
            );
            v.add("micro_batch", problem);
        } else if limits::GRADIENT_ACCUMULATION.holds(self.gradient_accumulation)
            && self.tokens_per_step() as i128 > step.max
        {
            let problem = format!(
                "times block_size x micro_batch is {} tokens per step; the limit is {}",
                self.tokens_per_step(),
                step.max
            );
            v.add("gradient_accumulation", problem);
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
fn is_default_keep_newest(newest: &u32) -> bool {
    *newest == defaults::keep_newest()
}
