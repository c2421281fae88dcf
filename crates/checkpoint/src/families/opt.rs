//! The OPT family: keys and tensor names of Hugging Face `OPTForCausalLM`.

use serde_json::{Value, json};

use crate::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, refuse_unless, text_or, u32_or};
use crate::decoder_config::{ConfigError, DecoderConfig, Family};
use crate::safetensors_header::shortened;
use inheritune_ids::id::LayerCount;

use super::{Activation, Bias, FamilyTable, MatrixLayout, NormKind, QkvLayout, Slot};

/// Number of rows of the position embedding before position 0 (fairseq's padding index plus one).
const POSITION_OFFSET: u32 = 2;

/// PyTorch's default. OPT's `config.json` has no key for it.
const NORM_EPS: f64 = 1e-5;

pub(super) static OPT: FamilyTable = FamilyTable {
    family: Family::Opt,
    prefix: "model.",
    token_embedding: "model.decoder.embed_tokens",
    position_embedding: Some(("model.decoder.embed_positions", POSITION_OFFSET)),
    blocks: "model.decoder.layers.",
    block: &[
        (Slot::AttentionNorm, "self_attn_layer_norm"),
        (Slot::Q, "self_attn.q_proj"),
        (Slot::K, "self_attn.k_proj"),
        (Slot::V, "self_attn.v_proj"),
        (Slot::AttentionOut, "self_attn.out_proj"),
        (Slot::MlpNorm, "final_layer_norm"),
        (Slot::Up, "fc1"),
        (Slot::Down, "fc2"),
    ],
    // The second norm of a block is also called `final_layer_norm`.
    final_norm: "model.decoder.final_layer_norm",
    head: "lm_head",
    head_alias: None,
    buffers: &[],
    norm: NormKind::Layer,
    bias: Bias::Always,
    layout: MatrixLayout::OutIn,
    qkv: QkvLayout::ByKind,
    activation: |_| Activation::Relu,
    scaled_residual_init: false,
    rotary: false,
    untied_head: false,
    inverse_layer_scale: false,
    grouped_query: false,
    keeps_architectures: false,
    layers_key: "num_hidden_layers",
    special_ids: [Some(2), Some(2), Some(1)],
    from_hf,
    to_hf,
    fresh: |_, plain| plain,
    check: |_, _| {},
};

fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "hidden_size", 768)?;
    let n_heads = u32_or(config, "num_attention_heads", 12)?;
    if d_model % n_heads != 0 {
        let problem = format!("is {d_model}, not a multiple of num_attention_heads ({n_heads})");
        return Err(bad_key("hidden_size", &problem));
    }
    if !bool_or(config, "do_layer_norm_before", true)? {
        let problem = "is false: the norms come after attention and MLP, as in OPT-350M, which is not supported";
        return Err(bad_key("do_layer_norm_before", problem));
    }
    let embedding = optional_u32(config, "word_embed_proj_dim")?.unwrap_or(d_model);
    if embedding != d_model {
        let problem = format!(
            "is {embedding}, but hidden_size is {d_model}: projected embeddings, as in OPT-350M, are not supported"
        );
        return Err(bad_key("word_embed_proj_dim", &problem));
    }
    match text_or(config, "activation_function", "relu")? {
        "relu" => {}
        other => {
            return Err(bad_key("activation_function", &format!("is `{}`; only relu is supported", shortened(other))));
        }
    }
    for key in ["enable_bias", "layer_norm_elementwise_affine", "tie_word_embeddings"] {
        refuse_unless(config, key, &true.into())?;
    }
    refuse_unless(config, "_remove_final_layer_norm", &false.into())?;
    let max_positions = u32_or(config, "max_position_embeddings", 2048)?;
    Ok(DecoderConfig {
        n_layers: LayerCount(u32_or(config, "num_hidden_layers", 12)?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        d_ff: u32_or(config, "ffn_dim", 3072)?,
        vocab_size: u32_or(config, "vocab_size", 50_272)?,
        max_positions,
        norm_eps: NORM_EPS,
        tied_head: true,
        init_std: float_or(config, "init_std", 0.02)?,
        ..DecoderConfig::plain(Family::Opt)
    })
}

fn to_hf(c: &DecoderConfig) -> Value {
    json!({
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "attention_dropout": 0.0,
        "do_layer_norm_before": true,
        "dropout": 0.0,
        "enable_bias": true,
        "ffn_dim": c.d_ff,
        "hidden_size": c.d_model,
        "init_std": c.init_std,
        "layer_norm_elementwise_affine": true,
        "layerdrop": 0.0,
        "max_position_embeddings": c.max_positions,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers.0,
        // With a padding id, that token's row is not trained, and the row may not exist here.
        "pad_token_id": null,
        "tie_word_embeddings": true,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": c.vocab_size,
        "word_embed_proj_dim": c.d_model,
    })
}
