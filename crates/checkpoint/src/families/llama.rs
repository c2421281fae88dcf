//! The Llama family: keys and tensor names of Hugging Face `LlamaForCausalLM`.

use serde_json::{Value, json};

use crate::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, refuse_unless, rope, text_or, u32_or};
use crate::decoder_config::{Architecture, ConfigError, DecoderConfig, Family};
use crate::safetensors_header::shortened;
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

use super::{Activation, Bias, FamilyTable, MatrixLayout, NormKind, QkvLayout, Slot};

pub(super) static LLAMA: FamilyTable = FamilyTable {
    family: Family::Llama,
    prefix: "model.",
    token_embedding: "model.embed_tokens",
    position_embedding: None,
    blocks: "model.layers.",
    block: &[
        (Slot::AttentionNorm, "input_layernorm"),
        (Slot::Q, "self_attn.q_proj"),
        (Slot::K, "self_attn.k_proj"),
        (Slot::V, "self_attn.v_proj"),
        (Slot::AttentionOut, "self_attn.o_proj"),
        (Slot::MlpNorm, "post_attention_layernorm"),
        (Slot::Gate, "mlp.gate_proj"),
        (Slot::Up, "mlp.up_proj"),
        (Slot::Down, "mlp.down_proj"),
    ],
    final_norm: "model.norm",
    head: "lm_head",
    head_alias: None,
    buffers: &[],
    norm: NormKind::Rms,
    bias: Bias::Never,
    layout: MatrixLayout::OutIn,
    qkv: QkvLayout::ByKind,
    activation: |_| Activation::Silu,
    scaled_residual_init: false,
    rotary: true,
    untied_head: true,
    inverse_layer_scale: false,
    grouped_query: true,
    keeps_architectures: false,
    layers_key: "num_hidden_layers",
    special_ids: [Some(1), Some(2), None],
    from_hf,
    to_hf,
    fresh: |_, plain| DecoderConfig { norm_eps: 1e-6, ..plain },
    check,
};

fn check(architecture: &Architecture, v: &mut Violations) {
    let message = "d_model / n_heads must be even for rotary positions";
    v.check((architecture.d_model / architecture.n_heads.max(1)).is_multiple_of(2), "d_model", message);
}

fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "hidden_size", 4096)?;
    let n_heads = u32_or(config, "num_attention_heads", 32)?;
    let n_kv_heads = optional_u32(config, "num_key_value_heads")?.unwrap_or(n_heads);
    if n_heads % n_kv_heads != 0 {
        return Err(bad_key(
            "num_key_value_heads",
            &format!("is {n_kv_heads}, which does not divide num_attention_heads ({n_heads})"),
        ));
    }
    let head_dim = match optional_u32(config, "head_dim")? {
        Some(head_dim) => head_dim,
        None if d_model % n_heads == 0 => d_model / n_heads,
        None => {
            return Err(bad_key(
                "hidden_size",
                &format!("is {d_model}, not a multiple of num_attention_heads ({n_heads})"),
            ));
        }
    };
    if head_dim % 2 != 0 {
        return Err(bad_key("head_dim", &format!("is {head_dim}; rotary positions need an even number")));
    }
    match text_or(config, "hidden_act", "silu")? {
        "silu" | "swish" => {}
        other => return Err(bad_key("hidden_act", &format!("is `{}`; only silu is supported", shortened(other)))),
    }
    for key in ["attention_bias", "mlp_bias"] {
        if bool_or(config, key, false)? {
            return Err(bad_key(key, "is true, which is not supported"));
        }
    }
    let rope = rope(config, "rope_theta")?;
    refuse_unless(config, "partial_rotary_factor", &json!(1.0))?;
    if rope.partial.is_some_and(|partial| partial != 1.0) {
        return Err(bad_key("partial_rotary_factor", "is not 1.0, which is not supported in the llama family"));
    }
    Ok(DecoderConfig {
        n_layers: LayerCount(u32_or(config, "num_hidden_layers", 32)?),
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff: u32_or(config, "intermediate_size", 11_008)?,
        vocab_size: u32_or(config, "vocab_size", 32_000)?,
        max_positions: u32_or(config, "max_position_embeddings", 2048)?,
        norm_eps: float_or(config, "rms_norm_eps", 1e-6)?,
        rope_theta: Some(rope.theta),
        tied_head: bool_or(config, "tie_word_embeddings", false)?,
        init_std: float_or(config, "initializer_range", 0.02)?,
        ..DecoderConfig::plain(Family::Llama)
    })
}

fn to_hf(c: &DecoderConfig) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.d_model,
        "initializer_range": c.init_std,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_positions,
        "mlp_bias": false,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers.0,
        "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": { "rope_theta": c.rope_theta.unwrap_or(10_000.0), "rope_type": "default" },
        "rope_scaling": null,
        "rope_theta": c.rope_theta.unwrap_or(10_000.0),
        "tie_word_embeddings": c.tied_head,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": c.vocab_size,
    })
}
