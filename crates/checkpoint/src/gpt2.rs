//! The GPT-2 family: keys and tensor names of Hugging Face `GPT2LMHeadModel`.

use serde_json::{Value, json};

use super::decoder_config::keys::{bad_key, bool_or, float_or, optional_u32, text_or, u32_or};
use super::decoder_config::{BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec};
use super::safetensors_header::shortened;
use super::tensor_names::CAUSAL_MASK;
use inheritune_ids::id::LayerCount;

/// What stands before a layer's index.
pub(super) const BLOCKS: &str = "transformer.h.";
const PREFIX: &str = "transformer.";
/// Our own key, named after nanoGPT's: false where no projection and no LayerNorm has a bias (docs/adr/0005).
const BIAS_KEY: &str = "bias";

/// Which of its attentions transformers uses. Before version 5, only this one divides by the layer's index.
pub(super) const ATTENTION_KEY: &str = "_attn_implementation";
pub(super) const EAGER: &str = "eager";

pub(super) fn from_hf(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let d_model = u32_or(config, "n_embd", 768)?;
    let n_heads = u32_or(config, "n_head", 12)?;
    if d_model % n_heads != 0 {
        return Err(bad_key("n_embd", &format!("is {d_model}, not a multiple of n_head ({n_heads})")));
    }
    match text_or(config, "activation_function", "gelu_new")? {
        // One formula, written several times in transformers.
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
        family: Family::Gpt2,
        n_layers: LayerCount(u32_or(config, "n_layer", 12)?),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: d_model / n_heads,
        d_ff: optional_u32(config, "n_inner")?.unwrap_or(4 * d_model),
        vocab_size: u32_or(config, "vocab_size", 50_257)?,
        max_positions: u32_or(config, "n_positions", 1024)?,
        norm_eps: float_or(config, "layer_norm_epsilon", 1e-5)?,
        rope_theta: None,
        tied_head: true,
        inverse_layer_scale: bool_or(config, "scale_attn_by_inverse_layer_idx", false)?,
        init_std: float_or(config, "initializer_range", 0.02)?,
        no_bias: !bool_or(config, BIAS_KEY, true)?,
        rotary_dims: None,
        parallel_residual: false,
        tanh_gelu: false,
        alibi_bias_max: None,
        qk_norm: false,
    })
}

pub(super) fn to_hf(c: &DecoderConfig) -> Value {
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

pub(super) fn tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let (d, ff) = (u64::from(c.d_model), u64::from(c.d_ff));
    let normal = Init::Normal { std: c.init_std };
    // GPT-2 scales the initialisation of residual projections by 1/sqrt(2 x layers) (GPT-2 paper, §2.3).
    let residual = Init::Normal { std: c.init_std / f64::from(2 * c.n_layers.0).sqrt() };
    let spec =
        |name: String, shape: &[u64], role, init| TensorSpec { name, shape: shape.to_vec(), role, init, tied_to: None };
    let mut all = vec![
        spec(format!("{PREFIX}wte.weight"), &[c.vocab_size.into(), d], TensorRole::TokenEmbedding, normal),
        spec(format!("{PREFIX}wpe.weight"), &[c.max_positions.into(), d], TensorRole::PositionEmbedding, normal),
    ];
    for layer in 0..c.n_layers.0 {
        let parts: [(&str, &[u64], BlockPart, Init); 12] = [
            ("ln_1.weight", &[d], BlockPart::Norm, Init::Ones),
            ("ln_1.bias", &[d], BlockPart::Norm, Init::Zeros),
            ("attn.c_attn.weight", &[d, 3 * d], BlockPart::Attention, normal),
            ("attn.c_attn.bias", &[3 * d], BlockPart::Attention, Init::Zeros),
            ("attn.c_proj.weight", &[d, d], BlockPart::Attention, residual),
            ("attn.c_proj.bias", &[d], BlockPart::Attention, Init::Zeros),
            ("ln_2.weight", &[d], BlockPart::Norm, Init::Ones),
            ("ln_2.bias", &[d], BlockPart::Norm, Init::Zeros),
            ("mlp.c_fc.weight", &[d, ff], BlockPart::Mlp, normal),
            ("mlp.c_fc.bias", &[ff], BlockPart::Mlp, Init::Zeros),
            ("mlp.c_proj.weight", &[ff, d], BlockPart::Mlp, residual),
            ("mlp.c_proj.bias", &[d], BlockPart::Mlp, Init::Zeros),
        ];
        for (name, shape, part, init) in parts {
            all.push(spec(format!("{PREFIX}h.{layer}.{name}"), shape, TensorRole::Block { layer, part }, init));
        }
    }
    all.push(spec(format!("{PREFIX}ln_f.weight"), &[d], TensorRole::FinalNorm, Init::Ones));
    all.push(spec(format!("{PREFIX}ln_f.bias"), &[d], TensorRole::FinalNorm, Init::Zeros));
    if c.no_bias {
        all.retain(|spec| !spec.name.ends_with(".bias"));
    }
    all.push(TensorSpec {
        name: "lm_head.weight".to_owned(),
        shape: vec![c.vocab_size.into(), d],
        role: TensorRole::Head,
        init: normal,
        tied_to: Some(format!("{PREFIX}wte.weight")),
    });
    all
}

/// Hub files use bare names, saved fine-tunes the `transformer.` prefix: both are read.
pub(super) fn name_in_file(c: &DecoderConfig, name: &str) -> NameInFile {
    if name == "lm_head.weight" {
        // Some savers write the tied head as a second copy.
        return NameInFile::Tensor(name.to_owned());
    }
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    if bare.starts_with("h.") && (bare.ends_with(".attn.bias") || bare.ends_with(".attn.masked_bias")) {
        return NameInFile::NotNeeded(CAUSAL_MASK);
    }
    let canonical = format!("{PREFIX}{bare}");
    if is_tensor(c, bare) { NameInFile::Tensor(canonical) } else { NameInFile::Unknown }
}

fn is_tensor(c: &DecoderConfig, bare: &str) -> bool {
    if c.no_bias && bare.ends_with(".bias") {
        return false;
    }
    if matches!(bare, "wte.weight" | "wpe.weight" | "ln_f.weight" | "ln_f.bias") {
        return true;
    }
    let Some((layer, rest)) = bare.strip_prefix("h.").and_then(|rest| rest.split_once('.')) else { return false };
    layer.parse::<u32>().is_ok_and(|layer| layer < c.n_layers.0)
        && matches!(
            rest.rsplit_once('.'),
            Some(("ln_1" | "ln_2" | "attn.c_attn" | "attn.c_proj" | "mlp.c_fc" | "mlp.c_proj", "weight" | "bias"))
        )
}
