//! Estimates the cost of a training from shapes alone: pure arithmetic, with a source for each
//! formula. The result is an estimate, not a guarantee.

use inheritune_checkpoint::decoder_config::{DecoderConfig, TensorRole};
use inheritune_domain::spec::{Precision, TrainingSpec};
use inheritune_lm::SCORE_ROWS;

/// Number of copies of the parameters: weights, gradients and AdamW's two moments.
const PARAMETER_COPIES: u64 = 4;
/// Number of activations stored for the backward pass, per token, layer and unit of width.
/// Korthikanti et al. (2022, arXiv 2205.05198, eq. 1) count 34 bytes in 16-bit floats, including
/// dropout masks. Their term quadratic in the sequence length is omitted, because
/// scaled-dot-product attention does not store the scores.
const ACTIVATION_NUMBERS: u64 = 17;
/// Bytes per logit: fp32, before and after the softmax.
const SCORE_ROW_BYTES: u64 = 2 * 4;
/// Assumed share of the device's matmul peak that a training step reaches.
pub const ASSUMED_UTILISATION: f64 = 0.5;

/// The estimated cost of a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Number of optimizer steps.
    pub steps: u64,
    /// Number of tokens seen, including repetitions.
    pub tokens: u64,
    /// Number of parameters; tied ones are counted once.
    pub parameters: u64,
    /// Size of weights, gradients and optimizer moments.
    pub state_bytes: u64,
    /// Peak size of the activations of one micro-batch, including logits.
    pub activation_bytes: u64,
    /// Total number of floating-point operations.
    pub flops: f64,
    /// Time in seconds at [`ASSUMED_UTILISATION`] of the given peak.
    pub seconds: f64,
}

/// Estimates the cost of training a model of shape `config` as `training` specifies, with
/// `train_tokens` usable tokens, on a device with a peak of `peak_flops` floating-point operations
/// per second.
pub fn estimate(config: &DecoderConfig, training: &TrainingSpec, train_tokens: u64, peak_flops: f64) -> Estimate {
    let steps = training.total_steps(train_tokens);
    let tokens = steps.saturating_mul(training.tokens_per_step());
    // The backward pass costs twice the forward pass. Activation checkpointing adds a forward pass.
    let recomputed = if training.activation_checkpointing { 4.0 / 3.0 } else { 1.0 };
    let flops = recomputed * flops_per_token(config, training.block_size) * tokens as f64;
    Estimate {
        steps,
        tokens,
        parameters: config.parameters(),
        state_bytes: config.parameters().saturating_mul(PARAMETER_COPIES * bytes_kept(training.precision)),
        activation_bytes: activation_bytes(config, training),
        flops,
        seconds: flops / (peak_flops.max(1.0) * ASSUMED_UTILISATION),
    }
}

/// Floating-point operations per token, forward and backward: `6 N + 12 L H Q T` (Chowdhery et al.,
/// 2022, PaLM, arXiv 2204.02311, appendix B). N is the number of parameters in matrix products:
/// those of the blocks and the head, but not the embeddings, which are looked up. As in the paper,
/// the attention term is not halved for the causal mask.
pub fn flops_per_token(config: &DecoderConfig, block_size: u32) -> f64 {
    let multiplied: u64 = config
        .tensors()
        .iter()
        .filter(|tensor| match tensor.role {
            TensorRole::Block { .. } | TensorRole::FinalNorm | TensorRole::Head => true,
            TensorRole::TokenEmbedding | TensorRole::PositionEmbedding => false,
        })
        .map(|tensor| tensor.shape.iter().product::<u64>())
        .sum();
    let attention = 12.0
        * f64::from(config.n_layers.0)
        * f64::from(config.n_heads)
        * f64::from(config.head_dim)
        * f64::from(block_size);
    6.0 * multiplied as f64 + attention
}

/// Bytes per weight, gradient or moment.
fn bytes_kept(precision: Precision) -> u64 {
    match precision {
        Precision::Fp32 | Precision::Bf16Mixed => 4,
        Precision::Bf16 => 2,
    }
}

fn activation_bytes(config: &DecoderConfig, training: &TrainingSpec) -> u64 {
    let layers = u64::from(config.n_layers.0);
    // In mixed precision, a copy of the weights lives from the forward to the backward pass.
    let (bytes, weights) = match training.precision {
        Precision::Fp32 => (4, 0),
        Precision::Bf16Mixed => (2, 2 * config.parameters()),
        Precision::Bf16 => (2, 0),
    };
    let tokens = u64::from(training.block_size) * u64::from(training.micro_batch);
    let block = tokens * u64::from(config.d_model) * ACTIVATION_NUMBERS * bytes;
    let (blocks, weights) = if training.activation_checkpointing {
        // The input of each block, and the activations and weights of one block.
        let inputs = tokens * u64::from(config.d_model) * layers * bytes_kept(training.precision);
        (inputs + block, weights / layers)
    } else {
        (block * layers, weights)
    };
    let scores = tokens.min(SCORE_ROWS.into()) * u64::from(config.vocab_size) * SCORE_ROW_BYTES;
    blocks + weights + scores
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use inheritune_checkpoint::decoder_config::Architecture;

    use super::*;

    fn gpt2_small() -> DecoderConfig {
        let architecture: Architecture = serde_json::from_value(serde_json::json!({
            "family": "gpt2", "n_layers": 12, "d_model": 768, "n_heads": 12, "max_positions": 1024,
        }))
        .unwrap();
        architecture.config(50257)
    }

    fn training(json: serde_json::Value) -> TrainingSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn gpt2_small_costs_what_the_formulas_say() {
        let config = gpt2_small();
        let training = training(
            serde_json::json!({"block_size": 1024, "micro_batch": 8, "gradient_accumulation": 2, "steps": 10, "lr_max": 1e-3}),
        );
        let found = estimate(&config, &training, 1_000_000, 1e12);
        assert_eq!(found.parameters, 124_439_808);
        assert_eq!((found.steps, found.tokens), (10, 163_840));
        // 124,439,808 minus 1024 x 768 position embeddings; the tied head counts, the embedding
        // does not.
        let per_token = 6.0 * (124_439_808.0 - 786_432.0) + 12.0 * 12.0 * 768.0 * 1024.0;
        assert_eq!(found.flops, per_token * 163_840.0);
        assert_eq!(found.seconds, found.flops / 0.5e12);
        assert_eq!(found.state_bytes, 124_439_808 * 16);
        assert_eq!(found.activation_bytes, 8192 * 12 * 768 * 68 + 512 * 50257 * 8);
        let in_bf16 = |precision| estimate(&config, &TrainingSpec { precision, ..training.clone() }, 1_000_000, 1e12);
        let mixed = in_bf16(Precision::Bf16Mixed);
        assert_eq!(mixed.state_bytes, found.state_bytes);
        assert_eq!(mixed.activation_bytes, 8192 * 12 * 768 * 34 + 512 * 50257 * 8 + 124_439_808 * 2);
        assert_eq!(in_bf16(Precision::Bf16).state_bytes, 124_439_808 * 8);
        let training = TrainingSpec { activation_checkpointing: true, ..training };
        let twice = estimate(&config, &training, 1_000_000, 1e12);
        assert_eq!(twice.activation_bytes, 8192 * 768 * (12 * 4 + 68) + 512 * 50257 * 8);
        assert_eq!(twice.flops, found.flops * 4.0 / 3.0);
    }

    #[test]
    fn epochs_become_steps_of_the_usable_tokens() {
        let training = training(serde_json::json!({"block_size": 10, "micro_batch": 2, "epochs": 4, "lr_max": 1e-3}));
        let found = estimate(&gpt2_small(), &training, 101, 1e12);
        assert_eq!((found.steps, found.tokens), (20, 400));
    }
}
