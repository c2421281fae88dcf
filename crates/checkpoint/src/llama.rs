//! The Llama family: keys and tensor names of Hugging Face `LlamaForCausalLM`.

use serde_json::{Value, json};

use super::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, refuse_unless, rope, text_or, u32_or};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use inheritune_ids::id::LayerCount;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "model.layers.";
const PREFIX: &str = "model.";

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
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
        return Err(bad_key("head_dim", &format!("is {head_dim}; rotary positions need an even one")));
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
        family: Family::Llama,
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

/// Files of the bare model have no `model.` prefix: both are read.
pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    if name == "lm_head.weight" {
        return NameInFile::Tensor(name.to_owned());
    }
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    if is_tensor(c, bare) { NameInFile::Tensor(format!("{PREFIX}{bare}")) } else { NameInFile::Unknown }
}

fn is_tensor(c: &DecoderConfig, bare: &str) -> bool {
    if matches!(bare, "embed_tokens.weight" | "norm.weight") {
        return true;
    }
    let Some((layer, rest)) = bare.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else { return false };
    layer.parse::<u32>().is_ok_and(|layer| layer < c.n_layers.0)
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
        )
}
