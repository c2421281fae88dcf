//! Lit-GPT's `lit_model.pth` and `lit_config.json`: the Llama family under names of its own.
//!
//! Source: `lit_gpt/config.py`, `lit_gpt/model.py` and `scripts/convert_hf_checkpoint.py` of Lightning-AI/litgpt. The
//! query, key and value projections are one tensor, interleaved by group: for each key head its query heads, then the
//! key head, then the value head. Rotary positions are in Hugging Face's form, so rows are copied as they are.

use serde_json::{Value as Json, json};

use super::decoder_config::{ConfigError, DecoderConfig, bad_key, shown};
use super::nanogpt::COMPILED;
use super::pickle::{Pickle, Value};
use super::safetensors_header::HeaderTensor;
use super::slice_plan::{Inventory, PlanError, Reading, SourceTensor};
use super::torch_archive::{ArchiveError, StateDict};

#[cfg(test)]
mod tests;

/// The weights.
pub const LITGPT_FILE: &str = "lit_model.pth";
/// The settings.
pub const LITGPT_CONFIG_FILE: &str = "lit_config.json";

/// What a block's tensors are called, there and here; `attn.attn.weight` is three of them.
const BLOCK_NAMES: [(&str, &str); 6] = [
    ("norm_1.weight", "input_layernorm.weight"),
    ("attn.proj.weight", "self_attn.o_proj.weight"),
    ("norm_2.weight", "post_attention_layernorm.weight"),
    ("mlp.fc_1.weight", "mlp.gate_proj.weight"),
    ("mlp.fc_2.weight", "mlp.up_proj.weight"),
    ("mlp.proj.weight", "mlp.down_proj.weight"),
];
const FUSED: &str = "attn.attn.weight";

/// The settings as a Hugging Face `config.json`.
///
/// # Errors
/// [`ConfigError`] naming the setting: one that is missing, or that makes another model than a Llama.
pub fn config_json(lit: &Json) -> Result<Json, ConfigError> {
    let get = |key: &str| lit.get(key).filter(|value| !value.is_null());
    let required = |key: &str| get(key).cloned().ok_or_else(|| bad_key(key, "is missing"));
    let class = |keys: [&str; 2], allowed: &[&str]| {
        let found = keys.iter().find_map(|key| get(key)).cloned().unwrap_or_default();
        match found.as_str() {
            Some(name) if allowed.contains(&name) => Ok(()),
            _ => Err(bad_key(keys[0], &format!("is {}; only {} is supported", shown(&found), allowed.join(" or ")))),
        }
    };
    class(["_norm_class", "norm_class_name"], &["RMSNorm", "FusedRMSNorm"])?;
    class(["_mlp_class", "mlp_class_name"], &["LLaMAMLP"])?;
    for (key, llama) in [
        ("rotary_percentage", json!(1.0)),
        ("rope_condense_ratio", json!(1)),
        ("parallel_residual", json!(false)),
        ("shared_attention_norm", json!(false)),
        ("bias", json!(false)),
        ("lm_head_bias", json!(false)),
        ("scale_embeddings", json!(false)),
        ("n_expert", json!(0)),
    ] {
        let found = get(key).unwrap_or(&llama);
        if *found != llama && found.as_f64().is_none_or(|found| Some(found) != llama.as_f64()) {
            return Err(bad_key(key, &format!("is {}; only {llama} is supported", shown(found))));
        }
    }
    for key in ["rope_adjustments", "sliding_window_size"] {
        if let Some(found) = get(key) {
            return Err(bad_key(key, &format!("is {}, which is not supported", shown(found))));
        }
    }
    let keys = json!({
        "model_type": "llama",
        "hidden_size": required("n_embd")?,
        "num_attention_heads": required("n_head")?,
        "num_key_value_heads": get("n_query_groups"),
        "head_dim": get("head_size"),
        "num_hidden_layers": required("n_layer")?,
        "intermediate_size": required("intermediate_size")?,
        "max_position_embeddings": required("block_size")?,
        "vocab_size": get("padded_vocab_size").cloned().map_or_else(|| required("vocab_size"), Ok)?,
        "rms_norm_eps": required("norm_eps")?,
        "rope_theta": get("rope_base").cloned().unwrap_or_else(|| json!(10_000)),
    });
    let mut json = DecoderConfig::from_hf(&keys)?.to_hf();
    if let Some(object) = json.as_object_mut() {
        object.insert("bos_token_id".to_owned(), Json::Null);
        object.insert("eos_token_id".to_owned(), Json::Null);
    }
    Ok(json)
}

/// The tensors of a pickle: a state dict, or one under `model` as `Fabric.save` writes it.
///
/// # Errors
/// As [`StateDict::of`].
pub fn state_dict(pickle: &[u8]) -> Result<StateDict, ArchiveError> {
    let pickle = Pickle::parse(pickle)?;
    let entries = pickle.dict(pickle.root()).unwrap_or_default();
    let model = entries.iter().find(|(key, value)| *key == Value::Text("model") && pickle.dict(*value).is_some());
    StateDict::of(&pickle, model.map_or(pickle.root(), |(_, model)| *model))
}

/// The tensors as those of a Hugging Face Llama. `tensors` are [`StateDict::located`]'s, of the file `file`.
///
/// # Errors
/// As [`Inventory::new`].
pub fn inventory(config: DecoderConfig, file: &str, tensors: &[HeaderTensor]) -> Result<Inventory, PlanError> {
    let mut found = Vec::new();
    for tensor in tensors {
        let error =
            |problem: String| Err(PlanError::Tensor { file: file.to_owned(), tensor: tensor.name.clone(), problem });
        let whole = SourceTensor::whole(file, tensor);
        let name = tensor.name.strip_prefix(COMPILED).unwrap_or(&tensor.name);
        let block = name.strip_prefix("transformer.h.").and_then(|rest| rest.split_once('.'));
        match (name, block) {
            ("lm_head.weight", _) => found.push((name.to_owned(), whole)),
            ("transformer.wte.weight", _) => found.push(("model.embed_tokens.weight".to_owned(), whole)),
            ("transformer.ln_f.weight", _) => found.push(("model.norm.weight".to_owned(), whole)),
            (_, Some((layer, FUSED))) => {
                let rows = fused_rows(&config);
                if whole.shape != [rows, u64::from(config.d_model)] {
                    let expected = [rows, u64::from(config.d_model)];
                    return error(format!("has shape {:?}; {LITGPT_CONFIG_FILE} makes it {expected:?}", whole.shape));
                }
                let parts = split(&config, &whole);
                found.extend(parts.map(|(name, part)| (format!("model.layers.{layer}.self_attn.{name}.weight"), part)));
            }
            (_, Some((layer, rest))) => match BLOCK_NAMES.iter().find(|(theirs, _)| *theirs == rest) {
                Some((_, ours)) => found.push((format!("model.layers.{layer}.{ours}"), whole)),
                None => return error("is unknown in lit-gpt's Llama".to_owned()),
            },
            (_, None) => return error("is unknown in lit-gpt's Llama".to_owned()),
        }
    }
    Inventory::from_tensors(config, found)
}

/// Rows of the fused tensor: every query, key and value head.
fn fused_rows(config: &DecoderConfig) -> u64 {
    (u64::from(config.n_heads) + 2 * u64::from(config.n_kv_heads)) * u64::from(config.head_dim)
}

/// Queries, keys and values out of a fused tensor whose shape was checked.
fn split(config: &DecoderConfig, fused: &SourceTensor) -> [(&'static str, SourceTensor); 3] {
    let row = u64::from(config.d_model) * fused.dtype.size_bytes();
    let head = u64::from(config.head_dim) * row;
    let groups = u64::from(config.n_kv_heads);
    // Query heads of a group, then its key head and its value head.
    let queries = u64::from(config.n_heads) / groups;
    let part = |heads_before: u64, heads: u64| SourceTensor {
        shape: vec![groups * heads * u64::from(config.head_dim), u64::from(config.d_model)],
        reading: Reading::Parts {
            first: heads_before * head,
            length: heads * head,
            step: (queries + 2) * head,
            count: groups,
        },
        ..fused.clone()
    };
    [("q_proj", part(0, queries)), ("k_proj", part(queries, 1)), ("v_proj", part(queries + 1, 1))]
}
