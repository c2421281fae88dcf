//! How a model is trained: the knobs of the paper (§4 and appendix) and of the released code.

use serde::{Deserialize, Serialize};

use super::{defaults, limits};
use crate::violation::Violations;
use inheritune_ids::named;

/// How a model is trained (paper §4 and appendix; knobs of the released code).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// Tokens a sequence.
    pub block_size: u32,
    /// Sequences a forward pass.
    pub micro_batch: u32,
    /// Micro-batches a step: tokens a step = block_size x micro_batch x gradient_accumulation.
    #[serde(default = "defaults::gradient_accumulation")]
    pub gradient_accumulation: u32,
    /// What weights, activations and optimizer are kept and computed in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Keeps of the forward pass only what each block begins with, and computes the rest once more on the way back: less
    /// memory, a third more work (Chen et al. 2016).
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation_checkpointing: bool,
    /// Which blocks of the training tokens each step trains on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// How often sequences come from each source of the token set, in its order and relative to each other; by their
    /// numbers of tokens when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_weights: Vec<f64>,
    /// Attention stays inside of a document. Positions go on through the block, as without it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub document_mask: bool,
    /// Optimizer steps; or give `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training tokens; or give `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Learning rate after the warm-up.
    pub lr_max: f64,
    /// Learning rate at the end of a cosine.
    #[serde(default)]
    pub lr_min: f64,
    /// Steps of linear warm-up from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up.
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
    /// A metric point every so many steps.
    #[serde(default = "defaults::log_every_steps")]
    pub log_every_steps: u64,
    /// A quick validation loss for the curves every so many steps; 0 turns it off.
    #[serde(default)]
    pub evaluate_every_steps: u64,
    /// Validation sequences of that quick loss.
    #[serde(default = "defaults::evaluate_sequences")]
    pub evaluate_sequences: u32,
    /// A resumable checkpoint every so many steps; 0 keeps only those made on stopping.
    #[serde(default = "defaults::checkpoint_every_steps")]
    pub checkpoint_every_steps: u64,
    /// Newest resumable checkpoints that are kept while the training goes on.
    #[serde(default = "defaults::keep_newest", skip_serializing_if = "is_default_keep_newest")]
    pub keep_newest: u32,
    /// A resumable checkpoint at every new lowest validation loss (of `evaluate_every_steps`); the last of them stays when
    /// the training has ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_best: bool,
}

named! {
    /// What a model is trained in.
    #[derive(Default)]
    pub enum Precision {
        /// Everything in 32-bit floats.
        #[default]
        Fp32 = "fp32",
        /// Matrix products and attention in bfloat16; weights, gradients, moments, norms, the residual stream and the loss
        /// in 32-bit floats (PyTorch's autocast; the paper's GPT-2 runs).
        Bf16Mixed = "bf16-mixed",
        /// Everything but the loss in bfloat16 (Lightning's `bf16-true`, in the paper's released Llama code).
        Bf16 = "bf16",
    }
}

named! {
    /// Which blocks of the training tokens each step trains on.
    #[derive(Default)]
    pub enum Sampling {
        /// Every aligned block once a pass, in an order of the seed's.
        #[default]
        Permutation = "permutation",
        /// Blocks that start anywhere, with replacement (nanoGPT, and the released GPT-2 code).
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
        /// `lr_max` to the end.
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

/// The first `fraction` of `train_tokens` tokens, in whole tokens; all of them at 1.
pub fn used_tokens(train_tokens: u64, fraction: f64) -> u64 {
    ((train_tokens as f64 * fraction).floor() as u64).min(train_tokens)
}

impl TrainingSpec {
    /// Tokens an optimizer step sees.
    pub fn tokens_per_step(&self) -> u64 {
        self.micro_batch_tokens().saturating_mul(self.gradient_accumulation.into())
    }

    /// Tokens a forward pass sees.
    fn micro_batch_tokens(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.micro_batch)
    }

    /// Optimizer steps over `train_tokens` tokens: `steps`, or as many whole steps as `epochs` passes hold,
    /// at least one.
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

    /// What does not fit a training on `tokens` tokens, which are known only once they are counted.
    ///
    /// # Errors
    /// The violations, fields named relative to this spec.
    pub fn check_tokens(&self, tokens: u64) -> Result<(), Violations> {
        let mut v = Violations::default();
        let blocks = tokens.saturating_sub(1) / u64::from(self.block_size).max(1);
        if blocks == 0 {
            let needed = u64::from(self.block_size) + 1;
            v.add(
                "block_size",
                format!("one block needs {needed} tokens and there are {tokens}: use more text, a larger data_fraction or a \
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

    /// Every bad field.
    ///
    /// # Errors
    /// The violations, fields named relative to this spec.
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
            "needs evaluate_every_steps, which says when the validation loss is measured",
        );
        limits::QUICK_SEQUENCES.check(&mut v, "evaluate_sequences", self.evaluate_sequences);
        v.into_result()
    }

    /// Each factor may be large, but not all of them at once.
    fn validate_products(&self, v: &mut Violations) {
        let (batch, step) = (limits::MICRO_BATCH_TOKENS, limits::STEP_TOKENS);
        if limits::MICRO_BATCH.holds(self.micro_batch) && self.micro_batch_tokens() as i128 > batch.max {
            let problem = format!(
                "times block_size is {} tokens a forward pass; at most {}",
                self.micro_batch_tokens(),
                batch.max
            );
            v.add("micro_batch", problem);
        } else if limits::GRADIENT_ACCUMULATION.holds(self.gradient_accumulation)
            && self.tokens_per_step() as i128 > step.max
        {
            let problem = format!(
                "times block_size x micro_batch is {} tokens a step; at most {}",
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
