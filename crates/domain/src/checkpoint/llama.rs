//! The Llama family: keys and tensor names of Hugging Face `LlamaForCausalLM`.

use serde_json::{Value, json};

use super::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, required_u32, text_or, unscaled_rope};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use crate::id::LayerCount;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "model.layers.";

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = required_u32(config, "hidden_size")?;
    let n_heads = required_u32(config, "num_attention_heads")?;
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
        return Err(bad_key("head_dim", &format!("is {head_dim}; rotary positions need an even one")));
    }
    match text_or(config, "hidden_act", "silu")? {
        "silu" => {}
        other => return Err(bad_key("hidden_act", &format!("is `{}`; only silu is supported", shortened(other)))),
    }
    for key in ["attention_bias", "mlp_bias"] {
        if bool_or(config, key, false)? {
            return Err(bad_key(key, "is true, which is not supported"));
        }
    }
    Ok(DecoderConfig {
        family: Family::Llama,
        n_layers: LayerCount(required_u32(config, "num_hidden_layers")?),
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff: required_u32(config, "intermediate_size")?,
        vocab_size: required_u32(config, "vocab_size")?,
        max_positions: required_u32(config, "max_position_embeddings")?,
        norm_eps: float_or(config, "rms_norm_eps", 1e-6)?,
        rope_theta: Some(rope_theta(config)?),
        tied_head: bool_or(config, "tie_word_embeddings", false)?,
        inverse_layer_scale: false,
        init_std: float_or(config, "initializer_range", 0.02)?,
        no_bias: false,
        rotary_dims: None,
        parallel_residual: false,
        tanh_gelu: false,
        alibi_bias_max: None,
        qk_norm: false,
    })
}

/// `rope_theta` beside `rope_scaling` (transformers 4), or both in `rope_parameters` (transformers 5).
fn rope_theta(config: &Value) -> Result<f64, ConfigError> {
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = unscaled_rope(config, key)? else { continue };
        if rope.get("rope_theta").is_some() {
            return float_or(rope, "rope_theta", 10_000.0);
        }
    }
    float_or(config, "rope_theta", 10_000.0)
}

pub(super) fn to_hf(c: &DecoderConfig) -> Value {
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
        "rope_theta": c.rope_theta.unwrap_or(10_000.0),
        "tie_word_embeddings": c.tied_head,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": c.vocab_size,
    })
}

pub(super) fn tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let (d, ff, vocab) = (u64::from(c.d_model), u64::from(c.d_ff), u64::from(c.vocab_size));
    let q = u64::from(c.n_heads) * u64::from(c.head_dim);
    let kv = u64::from(c.n_kv_heads) * u64::from(c.head_dim);
    let normal = Init::Normal { std: c.init_std };
    let spec =
        |name: String, shape: &[u64], role, init| TensorSpec { name, shape: shape.to_vec(), role, init, tied_to: None };
    let mut all = vec![spec("model.embed_tokens.weight".to_owned(), &[vocab, d], TensorRole::TokenEmbedding, normal)];
    for layer in 0..c.n_layers.0 {
        let parts: [(&str, &[u64], BlockPart, Init); 9] = [
            ("input_layernorm.weight", &[d], BlockPart::Norm, Init::Ones),
            ("self_attn.q_proj.weight", &[q, d], BlockPart::Attention, normal),
            ("self_attn.k_proj.weight", &[kv, d], BlockPart::Attention, normal),
            ("self_attn.v_proj.weight", &[kv, d], BlockPart::Attention, normal),
            ("self_attn.o_proj.weight", &[d, q], BlockPart::Attention, normal),
            ("post_attention_layernorm.weight", &[d], BlockPart::Norm, Init::Ones),
            ("mlp.gate_proj.weight", &[ff, d], BlockPart::Mlp, normal),
            ("mlp.up_proj.weight", &[ff, d], BlockPart::Mlp, normal),
            ("mlp.down_proj.weight", &[d, ff], BlockPart::Mlp, normal),
        ];
        for (name, shape, part, init) in parts {
            all.push(spec(format!("{BLOCKS}{layer}.{name}"), shape, TensorRole::Block { layer, part }, init));
        }
    }
    all.push(spec("model.norm.weight".to_owned(), &[d], TensorRole::FinalNorm, Init::Ones));
    all.push(TensorSpec {
        name: "lm_head.weight".to_owned(),
        shape: vec![vocab, d],
        role: TensorRole::Head,
        init: normal,
        tied_to: c.tied_head.then(|| "model.embed_tokens.weight".to_owned()),
    });
    all
}

pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    if matches!(name, "model.embed_tokens.weight" | "model.norm.weight" | "lm_head.weight") {
        return NameInFile::Tensor(name.to_owned());
    }
    let Some((layer, rest)) = name.strip_prefix(BLOCKS).and_then(|rest| rest.split_once('.')) else {
        return NameInFile::Unknown;
    };
    if rest == "self_attn.rotary_emb.inv_freq" {
        return NameInFile::Buffer;
    }
    let known = layer.parse::<u32>().is_ok_and(|layer| layer < c.n_layers.0)
        && matches!(
            rest.strip_suffix(".weight"),
            Some(
                "input_layernorm"
                    | "post_attention_layernorm"
                    | "self_attn.q_proj"
                    | "self_attn.k_proj"
                    | "self_attn.v_proj"
                    | "self_attn.o_proj"
                    | "mlp.gate_proj"
                    | "mlp.up_proj"
                    | "mlp.down_proj"
            )
        );
    if known { NameInFile::Tensor(name.to_owned()) } else { NameInFile::Unknown }
}
