//! Settings files that are carried in a changed form, so that versions 4 and 5 of transformers both
//! load them.

use serde_json::{Map, Value};

use super::decoder_config::DecoderConfig;
use super::left_out::LeftOut;

/// Text generation settings.
const GENERATION_FILE: &str = "generation_config.json";
/// Tokenizer settings.
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// The tokenizer itself, which every tokenizer class can read.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Returns the files of `names`, the carried files, whose content may have to change.
pub fn files<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'static str> {
    let (mut found, mut has_tokenizer) = (Vec::new(), false);
    for name in names {
        has_tokenizer |= name == TOKENIZER_FILE;
        found.extend([GENERATION_FILE, TOKENIZER_CONFIG_FILE].into_iter().find(|file| *file == name));
    }
    // Without a tokenizer.json, the class determines how the other files are read.
    found.retain(|file| has_tokenizer || *file != TOKENIZER_CONFIG_FILE);
    found
}

/// Returns the new content of one of [`files`], and what changed in it. Returns `None` if the file
/// is carried as it is. Invalid JSON is left for the readers of the file to report.
pub fn written(file: &str, content: &[u8], config: &DecoderConfig) -> Option<(Value, Vec<LeftOut>)> {
    let json = serde_json::from_slice(content).ok()?;
    match file {
        GENERATION_FILE => generation(&json, config),
        TOKENIZER_CONFIG_FILE => tokenizer_config(&json),
        _ => None,
    }
}

/// Settings of `generation_config.json` that have no effect without sampling, or without beam
/// search.
const OF_SAMPLING: [&str; 8] =
    ["temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"];
const OF_BEAMS: [&str; 4] = ["early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"];

/// Removes what transformers warns about from a `generation_config.json`: settings without an
/// effect, and ids that no token has. Returns the new content and the removed settings, or `None`
/// if nothing is removed.
fn generation(json: &Value, config: &DecoderConfig) -> Option<(Value, Vec<LeftOut>)> {
    let mut keys = json.as_object()?.clone();
    let mut left_out = Vec::new();
    let mut drop = |keys: &mut Map<String, Value>, key: &str, why: &str| {
        if keys.remove(key).is_some() {
            left_out.push(LeftOut::file(&format!("generation_config.json: {key}"), why));
        }
    };
    if keys.get("do_sample") != Some(&Value::Bool(true)) {
        OF_SAMPLING.iter().for_each(|key| drop(&mut keys, key, "it has no effect without do_sample"));
    }
    if keys.get("num_beams").and_then(Value::as_u64).unwrap_or(1) <= 1 {
        OF_BEAMS.iter().for_each(|key| drop(&mut keys, key, "it has no effect without beams"));
    }
    let pad = keys.get("pad_token_id").filter(|id| id.is_number());
    if pad.is_some_and(|id| id.as_u64().is_none_or(|id| id >= u64::from(config.vocab_size))) {
        drop(&mut keys, "pad_token_id", "no token has this id");
    }
    (!left_out.is_empty()).then_some((Value::Object(keys), left_out))
}

/// Returns a `tokenizer_config.json` that versions 4 and 5 of transformers load together with a
/// `tokenizer.json`, and what changed in it. Returns `None` if nothing changed.
fn tokenizer_config(json: &Value) -> Option<(Value, Vec<LeftOut>)> {
    const ANY_CLASS: &str = "PreTrainedTokenizerFast";
    let mut keys = json.as_object()?.clone();
    let mut left_out = Vec::new();
    let mut note = |key: &str, why: &str| left_out.push(LeftOut::file(&format!("tokenizer_config.json: {key}"), why));
    let class = keys.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = keys.remove("auto_map");
    let is_foreign = code.as_ref().is_some_and(|code| !class.is_empty() && code.to_string().contains(&class));
    if code.is_some_and(|code| !code.is_null()) {
        note("auto_map", "the code it refers to is not copied");
    }
    if class == "TokenizersBackend" || is_foreign {
        note(
            "tokenizer_class",
            "written as PreTrainedTokenizerFast, which reads the same tokenizer.json in every version",
        );
        keys.insert("tokenizer_class".to_owned(), ANY_CLASS.into());
    }
    // Version 4 only accepts a dictionary for this key; version 5 accepts both keys.
    if keys.get("extra_special_tokens").is_some_and(Value::is_array) && !keys.contains_key("additional_special_tokens")
    {
        note("extra_special_tokens", "written as additional_special_tokens, which every version reads");
        let tokens = keys.remove("extra_special_tokens").unwrap_or_default();
        keys.insert("additional_special_tokens".to_owned(), tokens);
    }
    (!left_out.is_empty()).then_some((Value::Object(keys), left_out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn only_beside_a_tokenizer_json_is_the_class_free() {
        assert_eq!(files(["a", "tokenizer_config.json", "vocab.txt"]), [] as [&str; 0]);
        assert_eq!(
            files(["generation_config.json", "tokenizer_config.json", "tokenizer.json"]),
            [GENERATION_FILE, TOKENIZER_CONFIG_FILE]
        );
    }

    fn rewritten(json: Value) -> (Value, Vec<String>) {
        let (json, left_out) = tokenizer_config(&json).unwrap();
        (json, left_out.into_iter().map(|left| left.name).collect())
    }

    #[test]
    fn c2_the_class_that_transformers_5_writes_is_one_that_4_has() {
        let (json, changed) = rewritten(json!({"tokenizer_class": "TokenizersBackend", "eos_token": "</s>"}));
        assert_eq!(json, json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}));
        assert_eq!(changed, ["tokenizer_config.json: tokenizer_class"]);
        let (json, _) = rewritten(json!({"extra_special_tokens": ["<a>"]}));
        assert_eq!(json, json!({"additional_special_tokens": ["<a>"]}));
        let unchanged = json!({"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": {"image": "<i>"}});
        assert!(tokenizer_config(&unchanged).is_none());
    }

    #[test]
    fn code_that_stays_behind_is_not_named() {
        let code = json!({"AutoTokenizer": ["tokenization_x.XTokenizer", null]});
        let (json, changed) = rewritten(json!({"tokenizer_class": "XTokenizer", "auto_map": code}));
        assert_eq!(json, json!({"tokenizer_class": "PreTrainedTokenizerFast"}));
        assert_eq!(changed, ["tokenizer_config.json: auto_map", "tokenizer_config.json: tokenizer_class"]);
    }

    #[test]
    fn generation_settings_without_an_effect_are_left_out() {
        let config = json!({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 40});
        let config = DecoderConfig::from_hf(&config).unwrap();
        let idle = json!({"do_sample": false, "temperature": 0.9, "top_p": 0.6, "length_penalty": 2.0, "pad_token_id": -1, "eos_token_id": 2});
        let (json, left_out) = generation(&idle, &config).unwrap();
        assert_eq!(json, json!({"do_sample": false, "eos_token_id": 2}));
        assert_eq!(left_out.len(), 4);
        let busy =
            json!({"do_sample": true, "temperature": 0.9, "num_beams": 4, "length_penalty": 2.0, "pad_token_id": 0});
        assert_eq!(generation(&busy, &config), None);
    }
}
