//! The GPT-NeoX family (Pythia): keys and tensor names of Hugging Face `GPTNeoXForCausalLM`.

use serde_json::{Value, json};

use super::block_parts::{self, Part, linear, norm};
use super::decoder_config::keys::{bad_key, bool_or, float_or, refuse_unless, rope, text_or, u32_or};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use super::tensor_names::CAUSAL_MASK;
use inheritune_ids::id::LayerCount;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "gpt_neox.layers.";
const PREFIX: &str = "gpt_neox.";
const EMBEDDING: &str = "gpt_neox.embed_in.weight";
const FINAL_NORM: [&str; 2] = ["gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"];
const HEAD: &str = "embed_out.weight";
/// The head's name inside transformers 5, which its own files do not use.
const HEAD_IN_MEMORY: &str = "lm_head.weight";
/// transformers' default share of a head that RoPE turns; Pythia's own too.
const ROTARY_PCT: f64 = 0.25;

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "hidden_size", 6144)?;
    let n_heads = u32_or(config, "num_attention_heads", 64)?;
    if d_model % n_heads != 0 {
        let problem = format!("is {d_model}, not a multiple of num_attention_heads ({n_heads})");
        return Err(bad_key("hidden_size", &problem));
    }
    let head_dim = d_model / n_heads;
    // The tanh form is one formula, written several times in transformers.
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
/// `rotary_pct` (transformers 4 and Pythia's files), or both in `rope_parameters` (transformers 5), which win.
fn rotary(config: &Value) -> Result<(f64, (&'static str, f64)), ConfigError> {
    let rope = rope(config, "rotary_emb_base")?;
    let pct = match rope.partial {
        Some(partial) => ("partial_rotary_factor", partial),
        None => ("rotary_pct", float_or(config, "rotary_pct", ROTARY_PCT)?),
    };
    Ok((rope.theta, pct))
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
    all.push(spec(FINAL_NORM[0], &[d], TensorRole::FinalNorm, Init::Ones));
    all.push(spec(FINAL_NORM[1], &[d], TensorRole::FinalNorm, Init::Zeros));
    let head = spec(HEAD, &[vocab, d], TensorRole::Head, normal);
    all.push(TensorSpec { tied_to: c.tied_head.then(|| EMBEDDING.to_owned()), ..head });
    all
}

/// Files of the bare model have no `gpt_neox.` prefix: both are read.
pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    if matches!(name, HEAD | HEAD_IN_MEMORY) {
        return NameInFile::Tensor(HEAD.to_owned());
    }
    let canonical = if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}{name}") };
    if canonical == EMBEDDING || FINAL_NORM.contains(&canonical.as_str()) {
        return NameInFile::Tensor(canonical);
    }
    match block_parts::split(&canonical, BLOCKS) {
        Some((_, "attention.bias" | "attention.masked_bias")) => NameInFile::NotNeeded(CAUSAL_MASK),
        Some(block) if block_parts::has(block, c.n_layers.0, &parts(c)) => NameInFile::Tensor(canonical),
        Some(_) | None => NameInFile::Unknown,
    }
}
