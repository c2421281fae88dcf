//! The MPT families: `mpt`, with the keys and tensor names of Hugging Face `MptForCausalLM`, and
//! `mosaic_gpt`, with those of the code that MPT-1.3B (mosaicml/mpt-1b-redpajama-200b) was
//! published with.
//!
//! Both have ALiBi, LayerNorm and projections without biases, exact GELU and a tied head.
//! `mosaic_gpt` can normalise its queries and keys. Its LPLayerNorm is a LayerNorm in low
//! precision, which equals LayerNorm in fp32.

use serde_json::{Value, json};

use crate::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, refuse_unless, required_u32, text_or};
use crate::decoder_config::{ConfigError, DecoderConfig, Family};
use crate::safetensors_header::shortened;
use inheritune_ids::id::LayerCount;

use super::{Activation, Bias, FamilyTable, MatrixLayout, NormKind, QkvLayout, Slot};

/// MPT's maximum ALiBi bias. transformers supports no other value.
const ALIBI_BIAS_MAX: u32 = 8;
/// Ratio of the MLP's width to the model's width. transformers supports no other value.
const EXPANSION: u32 = 4;

pub(super) static MPT: FamilyTable = HF_MPT;

const HF_MPT: FamilyTable = FamilyTable {
    family: Family::Mpt,
    prefix: "transformer.",
    token_embedding: "transformer.wte",
    position_embedding: None,
    blocks: "transformer.blocks.",
    block: &[
        (Slot::AttentionNorm, "norm_1"),
        (Slot::Qkv, "attn.Wqkv"),
        (Slot::AttentionOut, "attn.out_proj"),
        (Slot::MlpNorm, "norm_2"),
        (Slot::Up, "ffn.up_proj"),
        (Slot::Down, "ffn.down_proj"),
    ],
    final_norm: "transformer.norm_f",
    head: "lm_head",
    head_alias: None,
    buffers: &[],
    norm: NormKind::Layer,
    bias: Bias::Never,
    layout: MatrixLayout::OutIn,
    qkv: QkvLayout::ByKind,
    activation: |_| Activation::Gelu,
    scaled_residual_init: false,
    rotary: false,
    untied_head: false,
    inverse_layer_scale: false,
    grouped_query: false,
    layers_key: "n_layers",
    special_ids: [None, None, None],
    keeps_architectures: false,
    from_hf,
    to_hf,
    fresh: |_, plain| DecoderConfig { alibi_bias_max: Some(ALIBI_BIAS_MAX), ..plain },
    check: |architecture, v| {
        let d_ff = architecture.d_ff.is_none_or(|d| u64::from(d) == 4 * u64::from(architecture.d_model));
        v.check(d_ff, "d_ff", "must be 4 d_model in the mpt family");
    },
};

/// MPT-1.3B: MPT with other names, and norms over queries and keys.
pub(super) static MOSAIC_GPT: FamilyTable = FamilyTable {
    family: Family::MosaicGpt,
    block: &[
        (Slot::AttentionNorm, "ln_1"),
        (Slot::Qkv, "attn.Wqkv"),
        (Slot::QNorm, "attn.q_ln"),
        (Slot::KNorm, "attn.k_ln"),
        (Slot::AttentionOut, "attn.out_proj"),
        (Slot::MlpNorm, "ln_2"),
        (Slot::Up, "mlp.mlp_up"),
        (Slot::Down, "mlp.mlp_down"),
    ],
    final_norm: "transformer.ln_f",
    keeps_architectures: true,
    from_hf: from_mosaic,
    to_hf: to_mosaic,
    fresh: |_, plain| DecoderConfig { alibi_bias_max: Some(ALIBI_BIAS_MAX), qk_norm: true, ..plain },
    check: |architecture, v| {
        let (d_ff, d_model) = (architecture.d_ff.unwrap_or(0), architecture.d_model.max(1));
        v.check(d_ff.is_multiple_of(d_model), "d_ff", "must be a multiple of d_model in the mosaic_gpt family");
        v.check(architecture.n_heads.is_power_of_two(), "n_heads", "must be a power of two in the mosaic_gpt family");
    },
    ..HF_MPT
};

/// Reads the config.json of Hugging Face's `mpt`.
fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let attention = config.get("attn_config").filter(|value| !value.is_null()).cloned().unwrap_or_else(|| json!({}));
    if !attention.is_object() {
        return Err(bad_key("attn_config", "is not an object"));
    }
    let in_attention = |error: ConfigError| match error {
        ConfigError::Key { key, problem } => ConfigError::Key { key: format!("attn_config.{key}"), problem },
        ConfigError::UnknownFamily { .. } | ConfigError::NotAnObject { .. } => error,
    };
    let refused = [
        ("alibi", json!(true)),
        ("alibi_bias_max", json!(ALIBI_BIAS_MAX)),
        ("attn_type", json!("multihead_attention")),
        ("attn_uses_sequence_id", json!(false)),
        ("clip_qkv", Value::Null),
        ("prefix_lm", json!(false)),
        ("qk_gn", json!(false)),
        ("qk_ln", json!(false)),
        ("rope", json!(false)),
        ("sliding_window_size", json!(-1)),
        ("softmax_scale", Value::Null),
    ];
    for (key, only) in &refused {
        refuse_unless(&attention, key, only).map_err(in_attention)?;
    }
    match text_or(config, "norm_type", "low_precision_layernorm")? {
        "low_precision_layernorm" | "layernorm" => {}
        other => return Err(bad_key("norm_type", &format!("is `{}`; only LayerNorm is supported", shortened(other)))),
    }
    // learned_pos_emb has no effect with ALiBi: published models set it and have no such table.
    refuse_unless(config, "expansion_ratio", &EXPANSION.into())?;
    let shape = shape(&with_defaults(config))?;
    Ok(DecoderConfig {
        family: Family::Mpt,
        d_ff: EXPANSION * shape.d_model,
        norm_eps: float_or(config, "layer_norm_epsilon", 1e-5)?,
        init_std: float_or(config, "initializer_range", 0.02)?,
        alibi_bias_max: Some(ALIBI_BIAS_MAX),
        ..shape
    })
}

/// Reads the config.json of `mosaic_gpt`, which has its own attention keys.
fn from_mosaic(config: &Value) -> Result<DecoderConfig, ConfigError> {
    if config.get("attn_config").is_some() {
        let problem = "is set: this is a newer layout of mosaic_gpt than MPT-1.3B's, which is not supported";
        return Err(bad_key("attn_config", problem));
    }
    if !bool_or(config, "alibi", false)? {
        return Err(bad_key("alibi", "is false; only ALiBi positions are supported"));
    }
    if !bool_or(config, "no_bias", false)? {
        return Err(bad_key("no_bias", "is false; only mosaic_gpt without biases is supported"));
    }
    for (key, only) in [
        ("attn_clip_qkv", Value::Null),
        ("attn_uses_sequence_id", json!(false)),
        ("prefix_lm", json!(false)),
        ("softmax_scale", Value::Null),
    ] {
        refuse_unless(config, key, &only)?;
    }
    let shape = shape(config)?;
    if !shape.n_heads.is_power_of_two() {
        let problem = format!(
            "is {}: versions of mosaic_gpt disagree about ALiBi's slopes unless it is a power of two",
            shape.n_heads
        );
        return Err(bad_key("n_heads", &problem));
    }
    let d_ff = u64::from(optional_u32(config, "mlp_ratio")?.unwrap_or(EXPANSION)) * u64::from(shape.d_model);
    let d_ff = u32::try_from(d_ff).ok().filter(|d_ff| *d_ff <= crate::decoder_config::MAX_DIMENSION);
    Ok(DecoderConfig {
        family: Family::MosaicGpt,
        d_ff: d_ff.ok_or_else(|| bad_key("mlp_ratio", "times d_model is more than 1048576"))?,
        init_std: float_or(config, "init_std", 0.02)?,
        alibi_bias_max: Some(optional_u32(config, "alibi_bias_max")?.unwrap_or(ALIBI_BIAS_MAX)),
        qk_norm: bool_or(config, "attn_qk_ln", false)?,
        ..shape
    })
}

/// Fills in missing sizes with the defaults of transformers' MptConfig.
fn with_defaults(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        for (key, default) in
            [("d_model", 2048), ("n_heads", 16), ("n_layers", 24), ("vocab_size", 50_368), ("max_seq_len", 2048)]
        {
            object.entry(key).or_insert_with(|| default.into());
        }
    }
    config
}

/// Reads the keys that both families share. The family and its own keys remain to be filled in.
fn shape(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = required_u32(config, "d_model")?;
    let n_heads = required_u32(config, "n_heads")?;
    if d_model % n_heads != 0 {
        return Err(bad_key("d_model", &format!("is {d_model}, not a multiple of n_heads ({n_heads})")));
    }
    refuse_unless(config, "embedding_fraction", &json!(1.0))?;
    refuse_unless(config, "logit_scale", &Value::Null)?;
    refuse_unless(config, "no_bias", &true.into())?;
    refuse_unless(config, "tie_word_embeddings", &true.into())?;
    Ok(DecoderConfig {
        n_layers: LayerCount(required_u32(config, "n_layers")?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        vocab_size: required_u32(config, "vocab_size")?,
        max_positions: required_u32(config, "max_seq_len")?,
        ..DecoderConfig::plain(Family::Mpt)
    })
}

fn to_hf(c: &DecoderConfig) -> Value {
    json!({
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "attn_config": {
            "alibi": true,
            "alibi_bias_max": ALIBI_BIAS_MAX,
            "attn_pdrop": 0,
            "attn_type": "multihead_attention",
            "attn_uses_sequence_id": false,
            "clip_qkv": null,
            "prefix_lm": false,
            "qk_ln": false,
            "softmax_scale": null,
        },
        "d_model": c.d_model,
        "emb_pdrop": 0.0,
        "embedding_fraction": 1.0,
        "expansion_ratio": EXPANSION,
        "initializer_range": c.init_std,
        "layer_norm_epsilon": c.norm_eps,
        "learned_pos_emb": false,
        "logit_scale": null,
        "max_seq_len": c.max_positions,
        "n_heads": c.n_heads,
        "n_layers": c.n_layers.0,
        "no_bias": true,
        "norm_type": "low_precision_layernorm",
        "resid_pdrop": 0.0,
        "tie_word_embeddings": true,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": false,
        "vocab_size": c.vocab_size,
    })
}

fn to_mosaic(c: &DecoderConfig) -> Value {
    json!({
        "architectures": ["MosaicGPT"],
        "model_type": "mosaic_gpt",
        "alibi": true,
        "alibi_bias_max": c.alibi_bias_max.unwrap_or(ALIBI_BIAS_MAX),
        "attn_clip_qkv": null,
        "attn_impl": "torch",
        "attn_pdrop": 0.0,
        "attn_qk_ln": c.qk_norm,
        "attn_uses_sequence_id": false,
        "d_model": c.d_model,
        "emb_pdrop": 0.0,
        "embedding_fraction": 1.0,
        "init_std": c.init_std,
        "logit_scale": null,
        "low_precision_layernorm": true,
        "max_seq_len": c.max_positions,
        "mlp_ratio": c.d_ff / c.d_model.max(1),
        "n_heads": c.n_heads,
        "n_layers": c.n_layers.0,
        "no_bias": true,
        "prefix_lm": false,
        "resid_pdrop": 0.0,
        "softmax_scale": null,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": false,
        "vocab_size": c.vocab_size,
    })
}
