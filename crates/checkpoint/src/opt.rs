//! The OPT family: keys and tensor names of Hugging Face `OPTForCausalLM`.

use serde_json::{Value, json};

use super::block_parts::{self, Part, linear, norm};
use super::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, refuse_unless, text_or, u32_or};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use inheritune_ids::id::LayerCount;

/// Rows of the position embedding before position 0 (fairseq's padding index plus one).
pub const POSITION_OFFSET: u32 = 2;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "model.decoder.layers.";
const PREFIX: &str = "model.";
const EMBEDDING: &str = "model.decoder.embed_tokens.weight";
const POSITIONS: &str = "model.decoder.embed_positions.weight";
/// The norm after the last block; a block's second norm is called `final_layer_norm` as well.
const FINAL_NORM: [&str; 2] = ["model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"];
const HEAD: &str = "lm_head.weight";
/// PyTorch's default; OPT's `config.json` has no key for it.
const NORM_EPS: f64 = 1e-5;

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
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
            "is {embedding} where hidden_size is {d_model}: projected embeddings, as in OPT-350M, are not supported"
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
        family: Family::Opt,
        n_layers: LayerCount(u32_or(config, "num_hidden_layers", 12)?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        d_ff: u32_or(config, "ffn_dim", 3072)?,
        vocab_size: u32_or(config, "vocab_size", 50_272)?,
        max_positions,
        norm_eps: NORM_EPS,
        rope_theta: None,
        tied_head: true,
        inverse_layer_scale: false,
        init_std: float_or(config, "init_std", 0.02)?,
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
        // A padding id would keep that token's row from learning, and may have no row here.
        "pad_token_id": null,
        "tie_word_embeddings": true,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": c.vocab_size,
        "word_embed_proj_dim": c.d_model,
    })
}

fn parts(c: &DecoderConfig) -> Vec<Part> {
    let (d, ff) = (u64::from(c.d_model), u64::from(c.d_ff));
    let init = (c.init_std, true);
    let attention = |name| linear(name, (d, d), BlockPart::Attention, init);
    [
        norm("self_attn_layer_norm", d, true),
        attention("self_attn.q_proj"),
        attention("self_attn.k_proj"),
        attention("self_attn.v_proj"),
        attention("self_attn.out_proj"),
        norm("final_layer_norm", d, true),
        linear("fc1", (ff, d), BlockPart::Mlp, init),
        linear("fc2", (d, ff), BlockPart::Mlp, init),
    ]
    .concat()
}

pub(super) fn tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let (d, vocab) = (u64::from(c.d_model), u64::from(c.vocab_size));
    let positions = u64::from(c.max_positions) + u64::from(POSITION_OFFSET);
    let normal = Init::Normal { std: c.init_std };
    let spec = TensorSpec::new;
    let mut all = vec![
        spec(EMBEDDING, &[vocab, d], TensorRole::TokenEmbedding, normal),
        spec(POSITIONS, &[positions, d], TensorRole::PositionEmbedding, normal),
    ];
    all.extend(block_parts::tensors(BLOCKS, c.n_layers.0, &parts(c)));
    all.push(spec(FINAL_NORM[0], &[d], TensorRole::FinalNorm, Init::Ones));
    all.push(spec(FINAL_NORM[1], &[d], TensorRole::FinalNorm, Init::Zeros));
    let head = spec(HEAD, &[vocab, d], TensorRole::Head, normal);
    all.push(TensorSpec { tied_to: Some(EMBEDDING.to_owned()), ..head });
    all
}

/// Files of the bare model have no `model.` prefix: both are read.
pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    if name == HEAD {
        // Some savers write the tied head as a second copy.
        return NameInFile::Tensor(name.to_owned());
    }
    let canonical = if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}{name}") };
    let known = canonical == EMBEDDING
        || canonical == POSITIONS
        || FINAL_NORM.contains(&canonical.as_str())
        || block_parts::split(&canonical, BLOCKS).is_some_and(|block| block_parts::has(block, c.n_layers.0, &parts(c)));
    if known { NameInFile::Tensor(canonical) } else { NameInFile::Unknown }
}
