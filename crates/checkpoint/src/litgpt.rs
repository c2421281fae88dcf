//! Lit-GPT's `lit_model.pth` and `lit_config.json`: the Llama family with different names.
//!
//! Since 2024 the settings are in `model_config.yaml`, and the fused projection is `attn.qkv`: all
//! query heads, then all key heads, then all value heads.
//!
//! Source: `lit_gpt/config.py`, `lit_gpt/model.py` and `scripts/convert_hf_checkpoint.py` of
//! Lightning-AI/litgpt. The query, key and value projections are one tensor, interleaved by group:
//! for each key head its query heads, then the key head, then the value head. Rotary positions are
//! in Hugging Face's form, so rows are copied unchanged.

use serde_json::{Map, Value as Json, json};

use super::decoder_config::{ConfigError, DecoderConfig, bad_key, shown};
use super::left_out::LeftOut;
use super::safetensors_header::HeaderTensor;
use super::slice_plan::{Inventory, PlanError, Reading, SourceTensor};
use super::tensor_names::not_needed;

#[cfg(test)]
mod tests;

/// The weights file.
pub const LITGPT_FILE: &str = "lit_model.pth";
/// The settings file until 2024.
pub const LITGPT_CONFIG_FILE: &str = "lit_config.json";
/// The settings file since 2024.
pub const LITGPT_YAML_FILE: &str = "model_config.yaml";

/// The prefix that torch.compile adds to every name.
const COMPILED: &str = "_orig_mod.";
/// The names of a block's tensors in lit-gpt and in Hugging Face's layout. The fused projection is
/// not listed: it becomes three tensors.
const BLOCK_NAMES: [(&str, &str); 6] = [
    ("norm_1.weight", "input_layernorm.weight"),
    ("attn.proj.weight", "self_attn.o_proj.weight"),
    ("norm_2.weight", "post_attention_layernorm.weight"),
    ("mlp.fc_1.weight", "mlp.gate_proj.weight"),
    ("mlp.fc_2.weight", "mlp.up_proj.weight"),
    ("mlp.proj.weight", "mlp.down_proj.weight"),
];
/// The names of the fused projection, and the order of its heads.
const FUSED: [(&str, Order); 2] = [("attn.attn.weight", Order::Grouped), ("attn.qkv.weight", Order::Plain)];

/// The order of the heads in a fused projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// For each key head its query heads, then the key head, then the value head.
    Grouped,
    /// All query heads, then all key heads, then all value heads.
    Plain,
}

/// Converts the settings to a Hugging Face `config.json`.
///
/// # Errors
/// [`ConfigError`] naming a setting that is missing, or that describes a model other than a Llama.
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
        ("attn_bias", json!(false)),
        ("norm_qk", json!(false)),
        ("post_attention_norm", json!(false)),
        ("post_mlp_norm", json!(false)),
        ("norm_1", json!(true)),
        ("norm_2", json!(true)),
        ("learned_pos_emb", json!(false)),
        ("rope_interleave", json!(false)),
        ("tie_embeddings", json!(false)),
    ] {
        let found = get(key).unwrap_or(&llama);
        if *found != llama && found.as_f64().is_none_or(|found| Some(found) != llama.as_f64()) {
            return Err(bad_key(key, &format!("is {}; only {llama} is supported", shown(found))));
        }
    }
    for key in [
        "rope_adjustments",
        "sliding_window_size",
        "attention_scores_scalar",
        "attention_logit_softcapping",
        "final_logit_softcapping",
        "latent_attention",
    ] {
        if let Some(found) = get(key) {
            let found = if found.is_object() { "set".to_owned() } else { shown(found) };
            return Err(bad_key(key, &format!("is {found}, which is not supported")));
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

/// Returns the tensors as those of a Hugging Face Llama. `tensors` are the result of
/// [`StateDict::located`] for the file `file`.
///
/// # Errors
/// Same as [`Inventory::new`].
pub fn inventory(config: DecoderConfig, file: &str, tensors: &[HeaderTensor]) -> Result<Inventory, PlanError> {
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let error =
            |problem: String| Err(PlanError::Tensor { file: file.to_owned(), tensor: tensor.name.clone(), problem });
        let whole = SourceTensor::whole(file, tensor);
        let name = tensor.name.strip_prefix(COMPILED).unwrap_or(&tensor.name);
        if let Some(why) = not_needed(name) {
            left_out.push(LeftOut::tensor(&tensor.name, why));
            continue;
        }
        let block = name.strip_prefix("transformer.h.").and_then(|rest| rest.split_once('.'));
        match (name, block) {
            ("lm_head.weight", _) => found.push((name.to_owned(), whole)),
            ("transformer.wte.weight", _) => found.push(("model.embed_tokens.weight".to_owned(), whole)),
            ("transformer.ln_f.weight", _) => found.push(("model.norm.weight".to_owned(), whole)),
            (_, Some((layer, rest))) if order(rest).is_some() => {
                let rows = fused_rows(&config);
                if whole.shape != [rows, u64::from(config.d_model)] {
                    let expected = [rows, u64::from(config.d_model)];
                    return error(format!("has shape {:?}; its settings require {expected:?}", whole.shape));
                }
                let parts = split(&config, &whole, order(rest).unwrap_or(Order::Grouped));
                found.extend(parts.map(|(name, part)| (format!("model.layers.{layer}.self_attn.{name}.weight"), part)));
            }
            (_, Some((layer, rest))) => match BLOCK_NAMES.iter().find(|(theirs, _)| *theirs == rest) {
                Some((_, ours)) => found.push((format!("model.layers.{layer}.{ours}"), whole)),
                None => return error("is unknown in lit-gpt's Llama".to_owned()),
            },
            (_, None) => return error("is unknown in lit-gpt's Llama".to_owned()),
        }
    }
    Inventory::from_tensors(config, found, left_out)
}

/// Returns the number of rows of the fused tensor: all query, key and value heads.
fn fused_rows(config: &DecoderConfig) -> u64 {
    (u64::from(config.n_heads) + 2 * u64::from(config.n_kv_heads)) * u64::from(config.head_dim)
}

fn order(name: &str) -> Option<Order> {
    FUSED.iter().find(|(fused, _)| *fused == name).map(|(_, order)| *order)
}

/// Splits a fused tensor, whose shape has been checked, into queries, keys and values.
fn split(config: &DecoderConfig, fused: &SourceTensor, order: Order) -> [(&'static str, SourceTensor); 3] {
    let row = u64::from(config.d_model) * fused.dtype.size_bytes();
    let head = u64::from(config.head_dim) * row;
    let (heads, kv_heads) = (u64::from(config.n_heads), u64::from(config.n_kv_heads));
    // In plain order, there is a single group.
    let (groups, queries, keys) = match order {
        Order::Grouped => (kv_heads, heads / kv_heads, 1),
        Order::Plain => (1, heads, kv_heads),
    };
    let part = |heads_before: u64, heads: u64| SourceTensor {
        shape: vec![groups * heads * u64::from(config.head_dim), u64::from(config.d_model)],
        reading: Reading::Parts {
            first: heads_before * head,
            length: heads * head,
            step: (queries + 2 * keys) * head,
            count: groups,
        },
        ..fused.clone()
    };
    [("q_proj", part(0, queries)), ("k_proj", part(queries, keys)), ("v_proj", part(queries + keys, keys))]
}

/// Converts `model_config.yaml` to JSON. Only single-line settings are converted. The other values
/// that litgpt writes, lists and tables, are not used by a plain Llama and become empty objects.
///
/// # Errors
/// A line is not a setting.
pub fn yaml(text: &str) -> Result<Json, String> {
    let mut settings = Map::new();
    let mut last: Option<String> = None;
    for (number, line) in (1_usize..).zip(text.trim_start_matches('\u{feff}').lines()) {
        if matches!(line.trim_end(), "---" | "...") || line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t', '-']) {
            // Continuation of the setting above.
            let Some(key) = &last else { return Err(format!("line {number} does not belong to a setting")) };
            settings.insert(key.clone(), json!({}));
            continue;
        }
        let setting = line.split_once(':').filter(|(_, value)| value.is_empty() || value.starts_with([' ', '\t']));
        let Some((key, value)) = setting else {
            return Err(format!("line {number} is not `setting: value`"));
        };
        last = Some(key.to_owned());
        settings.insert(key.to_owned(), scalar(value));
    }
    Ok(Json::Object(settings))
}

fn scalar(text: &str) -> Json {
    let text = text.trim();
    let text = if text.starts_with(['"', '\'']) { text } else { text.split(" #").next().unwrap_or_default().trim() };
    let quoted = |quote: char| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Json::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => match (quoted('"').or_else(|| quoted('\'')), text.parse::<i64>(), text.parse::<f64>()) {
            (Some(inner), ..) => inner.into(),
            (None, Ok(whole), _) => whole.into(),
            (None, Err(_), Ok(number)) => number.into(),
            (None, Err(_), Err(_)) if text.starts_with(['{', '[']) => json!({}),
            (None, Err(_), Err(_)) => text.into(),
        },
    }
}
