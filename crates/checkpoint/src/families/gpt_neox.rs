//! The GPT-NeoX family (Pythia): keys and tensor names of Hugging Face `GPTNeoXForCausalLM`.

use serde_json::{Value, json};

use crate::decoder_config::keys::{bad_key, bool_or, float_or, refuse_unless, rope, text_or, u32_or};
use crate::decoder_config::{Architecture, ConfigError, DecoderConfig, Family};
use crate::safetensors_header::shortened;
use crate::tensor_names::CAUSAL_MASK;
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

use super::{Activation, Bias, FamilyTable, MatrixLayout, NormKind, QkvLayout, Slot};

/// transformers' default for the fraction of a head that RoPE rotates. Pythia uses it too.
const ROTARY_PCT: f64 = 0.25;

pub(super) static GPT_NEOX: FamilyTable = FamilyTable {
    family: Family::GptNeox,
    prefix: "gpt_neox.",
    token_embedding: "gpt_neox.embed_in",
    position_embedding: None,
    blocks: "gpt_neox.layers.",
    block: &[
        (Slot::AttentionNorm, "input_layernorm"),
        (Slot::Qkv, "attention.query_key_value"),
        (Slot::AttentionOut, "attention.dense"),
        (Slot::MlpNorm, "post_attention_layernorm"),
        (Slot::Up, "mlp.dense_h_to_4h"),
        (Slot::Down, "mlp.dense_4h_to_h"),
    ],
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    // The name inside transformers 5, which its own files do not use.
    head_alias: Some("lm_head.weight"),
    buffers: &[("attention.bias", CAUSAL_MASK), ("attention.masked_bias", CAUSAL_MASK)],
    norm: NormKind::Layer,
    bias: Bias::Always,
    layout: MatrixLayout::OutIn,
    qkv: QkvLayout::ByHead,
    activation: |config| if config.tanh_gelu { Activation::TanhGelu } else { Activation::Gelu },
    scaled_residual_init: false,
    rotary: true,
    untied_head: true,
    inverse_layer_scale: false,
    grouped_query: false,
    keeps_architectures: false,
    layers_key: "num_hidden_layers",
    special_ids: [Some(0), Some(2), None],
    from_hf,
    to_hf,
    fresh,
    check,
};

/// Pythia rotates a quarter of each head. The minimum is one pair of dimensions.
fn fresh(_: &Architecture, plain: DecoderConfig) -> DecoderConfig {
    DecoderConfig { rotary_dims: Some((plain.head_dim / 8 * 2).max(2)), parallel_residual: true, ..plain }
}

fn check(architecture: &Architecture, v: &mut Violations) {
    let message = "d_model / n_heads must be at least 2 for rotary positions";
    v.check(architecture.d_model / architecture.n_heads.max(1) >= 2, "d_model", message);
}

fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "hidden_size", 6144)?;
    let n_heads = u32_or(config, "num_attention_heads", 64)?;
    if d_model % n_heads != 0 {
        let problem = format!("is {d_model}, not a multiple of num_attention_heads ({n_heads})");
        return Err(bad_key("hidden_size", &problem));
    }
    let head_dim = d_model / n_heads;
    // The tanh form is one formula, which transformers implements several times.
    let tanh_gelu = match text_or(config, "hidden_act", "gelu")? {
        "gelu" | "gelu_python" => false,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" | "gelu_python_tanh" => true,
        other => {
            let problem =
                format!("is `{}`; gelu, gelu_new, gelu_fast and gelu_pytorch_tanh are supported", shortened(other));
            return Err(bad_key("hidden_act", &problem));
        }
    };
    refuse_unless(config, "attention_bias", &true.into())?;
    let (rope_theta, (pct_key, rotary_pct)) = rotary(config)?;
    // Rounded as in transformers.
    let rotary_dims = (f64::from(head_dim) * rotary_pct) as u32;
    if rotary_pct > 1.0 || rotary_dims == 0 || !rotary_dims.is_multiple_of(2) {
        let problem = format!(
            "is {rotary_pct}, which rotates {rotary_dims} of a head's {head_dim} dimensions; rotary positions need an even number of them, at least 2"
        );
        return Err(bad_key(pct_key, &problem));
    }
    Ok(DecoderConfig {
        n_layers: LayerCount(u32_or(config, "num_hidden_layers", 44)?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: u32_or(config, "intermediate_size", 24_576)?,
        vocab_size: u32_or(config, "vocab_size", 50_432)?,
        max_positions: u32_or(config, "max_position_embeddings", 2048)?,
        norm_eps: float_or(config, "layer_norm_eps", 1e-5)?,
        rope_theta: Some(rope_theta),
        tied_head: bool_or(config, "tie_word_embeddings", false)?,
        init_std: float_or(config, "initializer_range", 0.02)?,
        rotary_dims: Some(rotary_dims),
        parallel_residual: bool_or(config, "use_parallel_residual", true)?,
        tanh_gelu,
        ..DecoderConfig::plain(Family::GptNeox)
    })
}

/// Returns RoPE's base, and the fraction of a head that it rotates together with the key that sets
/// it: `rotary_emb_base` and `rotary_pct` (transformers 4 and Pythia's files), or both in
/// `rope_parameters` (transformers 5), which takes precedence.
fn rotary(config: &Value) -> Result<(f64, (&'static str, f64)), ConfigError> {
    let rope = rope(config, "rotary_emb_base")?;
    let pct = match rope.partial {
        Some(partial) => ("partial_rotary_factor", partial),
        None => ("rotary_pct", float_or(config, "rotary_pct", ROTARY_PCT)?),
    };
    Ok((rope.theta, pct))
}

fn to_hf(c: &DecoderConfig) -> Value {
    json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "attention_bias": true,
        "attention_dropout": 0.0,
        "hidden_act": if c.tanh_gelu { "gelu_new" } else { "gelu" },
        "hidden_dropout": 0.0,
        "hidden_size": c.d_model,
        "initializer_range": c.init_std,
        "intermediate_size": c.d_ff,
        "layer_norm_eps": c.norm_eps,
        "max_position_embeddings": c.max_positions,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers.0,
        "rope_parameters": {
            "partial_rotary_factor": rotary_pct(c),
            "rope_theta": c.rope_theta.unwrap_or(10_000.0),
            "rope_type": "default",
        },
        "rope_scaling": null,
        "rotary_emb_base": c.rope_theta.unwrap_or(10_000.0),
        "rotary_pct": rotary_pct(c),
        "tie_word_embeddings": c.tied_head,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": true,
        "use_parallel_residual": c.parallel_residual,
        "vocab_size": c.vocab_size,
    })
}

/// Returns a fraction of the head that gives exactly the wanted number of dimensions after
/// multiplication and truncation.
fn rotary_pct(c: &DecoderConfig) -> f64 {
    let (head_dim, dims) = (f64::from(c.head_dim), f64::from(c.rotary_dims.unwrap_or(c.head_dim)));
    let share = dims / head_dim;
    if (head_dim * share).floor() == dims { share } else { (dims + 0.5) / head_dim }
}
