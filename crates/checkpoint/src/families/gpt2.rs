//! The GPT-2 family: keys and tensor names of Hugging Face `GPT2LMHeadModel`.

use serde_json::{Value, json};

use crate::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, text_or, u32_or};
use crate::decoder_config::{ConfigError, DecoderConfig, Family};
use crate::safetensors_header::shortened;
use crate::tensor_names::CAUSAL_MASK;
use inheritune_ids::id::LayerCount;

use super::{Activation, Bias, FamilyTable, MatrixLayout, NormKind, QkvLayout, Slot};

/// Our own key, named after nanoGPT's: false if projections and LayerNorms have no biases
/// (docs/adr/0005).
const BIAS_KEY: &str = "bias";

/// The attention implementation of transformers. Before version 5, only this one divides by the
/// layer's index.
pub(crate) const ATTENTION_KEY: &str = "_attn_implementation";
pub(crate) const EAGER: &str = "eager";

pub(super) static GPT2: FamilyTable = FamilyTable {
    family: Family::Gpt2,
    prefix: "transformer.",
    token_embedding: "transformer.wte",
    position_embedding: Some(("transformer.wpe", 0)),
    blocks: "transformer.h.",
    block: &[
        (Slot::AttentionNorm, "ln_1"),
        (Slot::Qkv, "attn.c_attn"),
        (Slot::AttentionOut, "attn.c_proj"),
        (Slot::MlpNorm, "ln_2"),
        (Slot::Up, "mlp.c_fc"),
        (Slot::Down, "mlp.c_proj"),
    ],
    final_norm: "transformer.ln_f",
    head: "lm_head",
    head_alias: None,
    buffers: &[("attn.bias", CAUSAL_MASK), ("attn.masked_bias", CAUSAL_MASK)],
    norm: NormKind::Layer,
    bias: Bias::Chosen,
    layout: MatrixLayout::InOut,
    qkv: QkvLayout::ByKind,
    activation: |_| Activation::TanhGelu,
    scaled_residual_init: true,
    rotary: false,
    untied_head: false,
    inverse_layer_scale: true,
    grouped_query: false,
    keeps_architectures: false,
    layers_key: "n_layer",
    special_ids: [Some(50_256), Some(50_256), None],
    from_hf,
    to_hf,
    fresh: |_, plain| plain,
    check: |_, _| {},
};

fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "n_embd", 768)?;
    let n_heads = u32_or(config, "n_head", 12)?;
    if d_model % n_heads != 0 {
        return Err(bad_key("n_embd", &format!("is {d_model}, not a multiple of n_head ({n_heads})")));
    }
    match text_or(config, "activation_function", "gelu_new")? {
        // These are all the same formula, which transformers implements several times.
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {}
        other => {
            return Err(bad_key(
                "activation_function",
                &format!("is `{}`; only gelu_new is supported", shortened(other)),
            ));
        }
    }
    if !bool_or(config, "tie_word_embeddings", true)? {
        return Err(bad_key("tie_word_embeddings", "is false; only tied gpt2 heads are supported"));
    }
    if !bool_or(config, "scale_attn_weights", true)? {
        return Err(bad_key("scale_attn_weights", "is false, which is not supported"));
    }
    if bool_or(config, "add_cross_attention", false)? {
        return Err(bad_key("add_cross_attention", "is true, which is not supported"));
    }
    Ok(DecoderConfig {
        n_layers: LayerCount(u32_or(config, "n_layer", 12)?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        d_ff: optional_u32(config, "n_inner")?.unwrap_or(4 * d_model),
        vocab_size: u32_or(config, "vocab_size", 50_257)?,
        max_positions: u32_or(config, "n_positions", 1024)?,
        norm_eps: float_or(config, "layer_norm_epsilon", 1e-5)?,
        tied_head: true,
        inverse_layer_scale: bool_or(config, "scale_attn_by_inverse_layer_idx", false)?,
        init_std: float_or(config, "initializer_range", 0.02)?,
        no_bias: !bool_or(config, BIAS_KEY, true)?,
        ..DecoderConfig::plain(Family::Gpt2)
    })
}

fn to_hf(c: &DecoderConfig) -> Value {
    let mut config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": c.init_std,
        "layer_norm_epsilon": c.norm_eps,
        "n_ctx": c.max_positions,
        "n_embd": c.d_model,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "n_layer": c.n_layers.0,
        "n_positions": c.max_positions,
        "scale_attn_by_inverse_layer_idx": c.inverse_layer_scale,
        "scale_attn_weights": true,
        "tie_word_embeddings": true,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": c.vocab_size,
    });
    if let Some(object) = config.as_object_mut() {
        if c.no_bias {
            object.insert(BIAS_KEY.to_owned(), false.into());
        }
        if c.inverse_layer_scale {
            object.insert(ATTENTION_KEY.to_owned(), EAGER.into());
        }
    }
    config
}
