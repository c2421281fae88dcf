//! The GPT-NeoX family (Pythia): keys and tensor names of Hugging Face `GPTNeoXForCausalLM`.

use serde_json::{Value, json};

use super::block_parts::{self, Part, linear, norm};
use super::decoder_config::keys::{bad_key, bool_or, float_or, refuse_unless, required_u32, text_or, unscaled_rope};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use crate::id::LayerCount;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "gpt_neox.layers.";
const EMBEDDING: &str = "gpt_neox.embed_in.weight";
const HEAD: &str = "embed_out.weight";
/// The head's name inside transformers 5, which its own files do not use.
const HEAD_IN_MEMORY: &str = "lm_head.weight";
/// transformers' default share of a head that RoPE turns; Pythia's own too.
const ROTARY_PCT: f64 = 0.25;

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = required_u32(config, "hidden_size")?;
    let n_heads = required_u32(config, "num_attention_heads")?;
    if d_model % n_heads != 0 {
        let problem = format!("is {d_model}, not a multiple of num_attention_heads ({n_heads})");
        return Err(bad_key("hidden_size", &problem));
    }
    let head_dim = d_model / n_heads;
    // gelu_fast and gelu_new are one formula, written twice in transformers.
    let tanh_gelu = match text_or(config, "hidden_act", "gelu")? {
        "gelu" => false,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => true,
        other => {
            let problem =
                format!("is `{}`; gelu, gelu_new, gelu_fast and gelu_pytorch_tanh are supported", shortened(other));
            return Err(bad_key("hidden_act", &problem));
        }
    };
    refuse_unless(config, "attention_bias", &true.into())?;
    let (rope_theta, (pct_key, rotary_pct)) = rope(config)?;
    // As transformers counts them.
    let rotary_dims = (f64::from(head_dim) * rotary_pct) as u32;
    if rotary_pct > 1.0 || rotary_dims == 0 || !rotary_dims.is_multiple_of(2) {
        let problem = format!(
            "is {rotary_pct}, which turns {rotary_dims} of a head's {head_dim} dimensions; rotary positions need an even number of them, at least 2"
        );
        return Err(bad_key(pct_key, &problem));
    }
    Ok(DecoderConfig {
        family: Family::GptNeox,
        n_layers: LayerCount(required_u32(config, "num_hidden_layers")?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: required_u32(config, "intermediate_size")?,
        vocab_size: required_u32(config, "vocab_size")?,
        max_positions: required_u32(config, "max_position_embeddings")?,
        norm_eps: float_or(config, "layer_norm_eps", 1e-5)?,
        rope_theta: Some(rope_theta),
        tied_head: bool_or(config, "tie_word_embeddings", false)?,
        inverse_layer_scale: false,
        init_std: float_or(config, "initializer_range", 0.02)?,
        no_bias: false,
        rotary_dims: Some(rotary_dims),
        parallel_residual: bool_or(config, "use_parallel_residual", true)?,
        tanh_gelu,
        alibi_bias_max: None,
        qk_norm: false,
    })
}

/// RoPE's base, and the share of a head that it turns with the key that says so: `rotary_emb_base` and
/// `rotary_pct` (transformers 4 and Pythia's files), or both in `rope_parameters` (transformers 5).
fn rope(config: &Value) -> Result<(f64, (&'static str, f64)), ConfigError> {
    let mut theta = float_or(config, "rotary_emb_base", 10_000.0)?;
    let mut pct = ("rotary_pct", float_or(config, "rotary_pct", ROTARY_PCT)?);
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = unscaled_rope(config, key)? else { continue };
        theta = float_or(rope, "rope_theta", theta)?;
        if rope.get("partial_rotary_factor").is_some() {
            pct = ("partial_rotary_factor", float_or(rope, "partial_rotary_factor", pct.1)?);
        }
    }
    Ok((theta, pct))
}

pub(super) fn to_hf(c: &DecoderConfig) -> Value {
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
        "rotary_emb_base": c.rope_theta.unwrap_or(10_000.0),
        "rotary_pct": rotary_pct(c),
        "tie_word_embeddings": c.tied_head,
        "torch_dtype": "float32",
        "use_cache": true,
        "use_parallel_residual": c.parallel_residual,
        "vocab_size": c.vocab_size,
    })
}

/// A share of the head that comes out as the wanted number of dimensions when it is multiplied and cut.
fn rotary_pct(c: &DecoderConfig) -> f64 {
    let (head_dim, dims) = (f64::from(c.head_dim), f64::from(c.rotary_dims.unwrap_or(c.head_dim)));
    let share = dims / head_dim;
    if (head_dim * share).floor() == dims { share } else { (dims + 0.5) / head_dim }
}

fn parts(c: &DecoderConfig) -> Vec<Part> {
    let (d, ff) = (u64::from(c.d_model), u64::from(c.d_ff));
    let init = (c.init_std, true);
    [
        norm("input_layernorm", d, true),
        linear("attention.query_key_value", (3 * d, d), BlockPart::Attention, init),
        linear("attention.dense", (d, d), BlockPart::Attention, init),
        norm("post_attention_layernorm", d, true),
        linear("mlp.dense_h_to_4h", (ff, d), BlockPart::Mlp, init),
        linear("mlp.dense_4h_to_h", (d, ff), BlockPart::Mlp, init),
    ]
    .concat()
}

pub(super) fn tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let (d, vocab) = (u64::from(c.d_model), u64::from(c.vocab_size));
    let normal = Init::Normal { std: c.init_std };
    let spec = TensorSpec::new;
    let mut all = vec![spec(EMBEDDING, &[vocab, d], TensorRole::TokenEmbedding, normal)];
    all.extend(block_parts::tensors(BLOCKS, c.n_layers.0, &parts(c)));
    all.push(spec("gpt_neox.final_layer_norm.weight", &[d], TensorRole::FinalNorm, Init::Ones));
    all.push(spec("gpt_neox.final_layer_norm.bias", &[d], TensorRole::FinalNorm, Init::Zeros));
    let head = spec(HEAD, &[vocab, d], TensorRole::Head, normal);
    all.push(TensorSpec { tied_to: c.tied_head.then(|| EMBEDDING.to_owned()), ..head });
    all
}

pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    match name {
        HEAD_IN_MEMORY => return NameInFile::Tensor(HEAD.to_owned()),
        HEAD | EMBEDDING | "gpt_neox.final_layer_norm.weight" | "gpt_neox.final_layer_norm.bias" => {
            return NameInFile::Tensor(name.to_owned());
        }
        _ => {}
    }
    match block_parts::split(name, BLOCKS) {
        Some((_, "attention.bias" | "attention.masked_bias" | "attention.rotary_emb.inv_freq")) => NameInFile::Buffer,
        Some(block) if block_parts::has(block, c.n_layers.0, &parts(c)) => NameInFile::Tensor(name.to_owned()),
        Some(_) | None => NameInFile::Unknown,
    }
}
