//! Creates a target's `config.json` from its reference's. transformers 4 and 5 both load the same
//! model from it, and it does not claim anything that is not true of the written weights.

use serde_json::{Map, Value, json};

use super::decoder_config::keys::{aliases, rope};
use super::decoder_config::{ConfigError, DecoderConfig, bad_key, shown};
use super::families;
use super::layer_map::LayerMap;
use super::left_out::LeftOut;
use super::safetensors_header::Dtype;

#[cfg(test)]
mod tests;

/// What Python writes for numbers that JSON does not have. While the file is read, strings stand in
/// for them.
const NOT_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// Prefix of a stand-in. No string in a file contains it, because JSON must escape it.
const STAND_IN: char = '\u{1}';

/// A parsed `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadConfig {
    /// All keys in their order. A non-finite number is a string with its name, which no setting
    /// accepts.
    pub json: Value,
    /// The top-level keys whose values contain a non-finite number.
    pub not_finite: Vec<String>,
}

/// Parses a `config.json`: JSON, optionally with a byte order mark and with the non-finite numbers
/// that Python writes.
///
/// # Errors
/// The parser's message.
pub fn parse(bytes: &[u8]) -> Result<ReadConfig, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Ok(json) = serde_json::from_slice(bytes) {
        return Ok(ReadConfig { json, not_finite: Vec::new() });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut json: Value = serde_json::from_str(&with_stand_ins(text)).map_err(|error| error.to_string())?;
    let mut not_finite = Vec::new();
    if let Some(object) = json.as_object_mut() {
        for (key, value) in object {
            if named(value) {
                not_finite.push(key.clone());
            }
        }
    }
    Ok(ReadConfig { json, not_finite })
}

impl ReadConfig {
    /// Returns the keys that can be written as JSON, and those that cannot.
    pub fn finite(mut self) -> (Value, Vec<LeftOut>) {
        if let Some(object) = self.json.as_object_mut() {
            object.retain(|key, _| !self.not_finite.contains(key));
        }
        let left_out = self.not_finite.iter().map(|key| LeftOut::key(key, "JSON has no Infinity and no NaN"));
        (self.json, left_out.collect())
    }
}

/// Returns `text` with a string in place of every non-finite number.
fn with_stand_ins(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(next) = rest.chars().next() {
        let name = NOT_FINITE.iter().find(|name| !in_string && rest.starts_with(**name));
        let length = match (name, in_string, next) {
            (Some(name), ..) => {
                out.push_str(&format!("\"\\u0001{name}\""));
                name.len()
            }
            (None, true, '\\') => {
                let escaped = rest.chars().nth(1).map_or(0, char::len_utf8);
                out.push_str(&rest[..1 + escaped]);
                1 + escaped
            }
            (None, _, _) => {
                in_string ^= next == '"';
                out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    out
}

/// Returns whether `value` contains a stand-in, and removes the stand-in's prefix.
fn named(value: &mut Value) -> bool {
    match value {
        Value::String(text) => match text.strip_prefix(STAND_IN) {
            Some(name) if NOT_FINITE.contains(&name) => {
                *text = name.to_owned();
                true
            }
            _ => false,
        },
        Value::Array(values) => values.iter_mut().map(named).fold(false, |any, one| any | one),
        Value::Object(entries) => entries.values_mut().map(named).fold(false, |any, one| any | one),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The dtype of a target's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsDtype {
    /// Copied weights: the reference's `config.json` determines the dtype, otherwise the dtype that
    /// all of them have, if there is one.
    Copied(Option<Dtype>),
    /// Trained weights.
    Trained(Dtype),
}

/// Keys that describe the reference's files, or the program that wrote or ran them, but not the
/// target.
const DROPPED: [(&str, &str); 22] = [
    ("quantization_config", NOT_QUANTISED),
    ("quantization", NOT_QUANTISED),
    ("compression_config", NOT_QUANTISED),
    ("sparsity_config", NOT_QUANTISED),
    ("pre_quantization_dtype", NOT_QUANTISED),
    ("_pre_quantization_dtype", NOT_QUANTISED),
    ("auto_map", "the code it refers to is not copied"),
    ("custom_pipelines", "the code it refers to is not copied"),
    ("trust_remote_code", "the code it refers to is not copied"),
    ("_attn_implementation", HOW_TO_RUN),
    ("attn_implementation", HOW_TO_RUN),
    ("_attn_implementation_internal", HOW_TO_RUN),
    ("_attn_implementation_autoset", HOW_TO_RUN),
    ("_experts_implementation", HOW_TO_RUN),
    ("_flash_attn_2_enabled", HOW_TO_RUN),
    // With any of these, transformers warns or returns a tuple that its own models cannot handle.
    ("gradient_checkpointing", HOW_TO_RUN),
    ("return_dict", HOW_TO_RUN),
    ("torchscript", HOW_TO_RUN),
    ("_name_or_path", "the location of another model"),
    ("_commit_hash", "the location of another model"),
    ("transformers_version", "the version that wrote the reference's file"),
    ("pruned_heads", "the written weights have all heads"),
];
const NOT_QUANTISED: &str = "the written weights are not quantised";
const HOW_TO_RUN: &str = "a runtime setting, not part of the model";
/// Keys with a default in transformers. A target sets them explicitly.
const SIZES: [&str; 23] = [
    "d_model",
    "ffn_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "max_seq_len",
    "n_embd",
    "n_head",
    "n_heads",
    "n_layer",
    "n_layers",
    "n_positions",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
    // Only if they are null, which transformers 5 does not load.
    "activation_function",
    "hidden_act",
    "initializer_range",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_parallel_residual",
];
/// Number of them that are sizes.
const ABSENT_SIZES: usize = 15;
/// Keys that programs read the number of layers from.
const LAYER_KEYS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// Returns the target's `config.json`, made from the reference's `json`, for the shape `config` and
/// the layers of `layers`. Also returns the keys that are not taken over unchanged.
///
/// # Errors
/// It is unclear whether a list has one entry per layer.
pub fn target(
    json: &Value,
    config: &DecoderConfig,
    layers: &LayerMap,
    dtype: WeightsDtype,
) -> Result<(Value, Vec<LeftOut>), ConfigError> {
    let mut made = Made { keys: json.as_object().cloned().unwrap_or_default(), left_out: Vec::new() };
    for (key, why) in DROPPED {
        // Every installation supports these two, and some settings need the first.
        if key == "_attn_implementation" && matches!(made.text(key), Some("eager" | "sdpa")) {
            continue;
        }
        made.drop(key, why);
    }
    if config.inverse_layer_scale && made.text(families::ATTENTION_KEY) != Some(families::EAGER) {
        let why = "written as eager: the other attention implementations of transformers 4 do not scale by layer";
        made.replace(families::ATTENTION_KEY, families::EAGER.into(), why);
    }
    let plain = config.to_hf();
    made.sizes(&plain);
    made.aliases(config);
    let table = config.family.table();
    if table.rotary {
        made.rope(json, &plain)?;
    }
    let told = made.keys.get("tie_word_embeddings").and_then(Value::as_bool);
    if told.unwrap_or(!table.untied_head) != config.tied_head {
        let why = if config.tied_head {
            "written as true: the head equals the token embedding"
        } else {
            "written as false: the head has its own weights"
        };
        made.replace("tie_word_embeddings", config.tied_head.into(), why);
    }
    if made.keys.get("architectures") != plain.get("architectures") {
        let was_there = made.keys.contains_key("architectures");
        let class = plain.get("architectures").cloned().unwrap_or_default();
        if was_there && !table.keeps_architectures {
            made.replace("architectures", class, "written as the class that matches the written weights");
        }
    }
    made.dtype(dtype);
    made.special_ids(config);
    made.layers(config, layers)?;
    Ok((Value::Object(made.keys), made.left_out))
}

struct Made {
    keys: Map<String, Value>,
    left_out: Vec<LeftOut>,
}

impl Made {
    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    fn drop(&mut self, key: &str, why: &str) {
        if let Some(value) = self.keys.remove(key) {
            let empty = value.is_null() || value == json!({}) || value == json!("");
            if !empty {
                self.left_out.push(LeftOut::key(key, why));
            }
        }
    }

    fn replace(&mut self, key: &str, value: Value, why: &str) {
        self.keys.insert(key.to_owned(), value);
        self.left_out.push(LeftOut::key(key, why));
    }

    /// Sets the keys that a reader would otherwise fill in.
    fn sizes(&mut self, plain: &Value) {
        for (i, key) in SIZES.iter().enumerate() {
            let Some(value) = plain.get(key) else { continue };
            match self.keys.get(*key) {
                Some(Value::Null) => {}
                None if i < ABSENT_SIZES => {}
                Some(_) | None => continue,
            }
            self.keys.insert((*key).to_owned(), value.clone());
        }
    }

    /// Sets both names of a key to the alias, which is what transformers reads.
    fn aliases(&mut self, config: &DecoderConfig) {
        for (alias, own) in aliases(Some(config.family.as_str())) {
            match self.keys.get(*alias) {
                None => {}
                Some(Value::Null) => drop(self.keys.remove(*alias)),
                Some(value) if self.keys.get(*own) == Some(value) => {}
                Some(value) => {
                    let value = value.clone();
                    let why = format!("written as {value}: `{alias}` is its alias, and transformers reads the alias");
                    self.replace(own, value, &why);
                }
            }
        }
    }

    /// Writes rotary positions in the spelling of both transformers 4 and 5.
    fn rope(&mut self, json: &Value, plain: &Value) -> Result<(), ConfigError> {
        let neox = plain.get("rotary_emb_base").is_some();
        let rope = rope(json, if neox { "rotary_emb_base" } else { "rope_theta" })?;
        let scaled = |key: &str| json.get(key).is_some_and(|rope| rope.get("factor").is_some());
        if rope.beyond.is_none() && (scaled("rope_scaling") || scaled("rope_parameters")) {
            self.left_out.push(LeftOut::key("rope_scaling", "a scaling without an effect"));
        }
        if let Some(other) = rope.other_theta {
            let why = format!(
                "written as {}, from rope_parameters, which transformers 5 reads; {other} is dropped",
                rope.theta
            );
            self.left_out.push(LeftOut::key(if neox { "rotary_emb_base" } else { "rope_theta" }, &why));
        }
        for key in ["rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor"] {
            self.keys.remove(key);
        }
        for key in ["rope_theta", "rotary_emb_base", "rotary_pct", "rope_parameters"] {
            if let Some(value) = plain.get(key) {
                self.keys.insert(key.to_owned(), value.clone());
            }
        }
        if let (Some(beyond), Some(parameters)) = (rope.beyond.as_ref().and_then(Value::as_object), self.parameters()) {
            parameters.extend(beyond.clone());
        }
        self.keys.insert("rope_scaling".to_owned(), rope.beyond.unwrap_or_default());
        Ok(())
    }

    fn parameters(&mut self) -> Option<&mut Map<String, Value>> {
        self.keys.get_mut("rope_parameters").and_then(Value::as_object_mut)
    }

    /// Writes the dtype of the weights under both names.
    fn dtype(&mut self, dtype: WeightsDtype) {
        let told = ["dtype", "torch_dtype"].into_iter().find(|key| self.keys.get(*key).is_some_and(|v| !v.is_null()));
        let told = told.map(|key| (key, self.keys[key].clone()));
        let known = |value: &Value| matches!(value.as_str(), Some("float32" | "float16" | "bfloat16" | "float64"));
        let dtype = match (dtype, &told) {
            (WeightsDtype::Trained(dtype), _) => Some(json!(torch_name(dtype))),
            (WeightsDtype::Copied(_), Some((_, told))) if known(told) => Some(told.clone()),
            (WeightsDtype::Copied(uniform), _) => uniform.map(|dtype| json!(torch_name(dtype))),
        };
        if let Some((key, told)) = told.filter(|(_, told)| Some(told) != dtype.as_ref()) {
            let written = dtype.as_ref().map_or("left out".to_owned(), |dtype| format!("written as {dtype}"));
            let why = format!("{written}: the written weights are not {told}");
            self.left_out.push(LeftOut::key(key, &why));
        }
        for key in ["dtype", "torch_dtype"] {
            match &dtype {
                Some(dtype) => drop(self.keys.insert(key.to_owned(), dtype.clone())),
                None => drop(self.keys.remove(key)),
            }
        }
    }

    /// Removes ids that no token has. transformers warns about them, or does not load the model at
    /// all.
    fn special_ids(&mut self, config: &DecoderConfig) {
        let has_row = |id: &Value| id.as_u64().is_some_and(|id| id < u64::from(config.vocab_size));
        let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
        for (key, default) in keys.into_iter().zip(config.family.table().special_ids) {
            let default = default.map_or(Value::Null, Value::from);
            let (written, id) = match self.keys.get(key).cloned() {
                None if default.is_null() || has_row(&default) => continue,
                // Overrides the default of the class.
                None => {
                    self.keys.insert(key.to_owned(), Value::Null);
                    continue;
                }
                Some(Value::Array(ids)) => {
                    let (kept, gone): (Vec<Value>, Vec<Value>) = ids.into_iter().partition(has_row);
                    let Some(id) = gone.into_iter().next() else { continue };
                    (if kept.is_empty() { Value::Null } else { kept.into() }, id)
                }
                Some(id) if id.is_number() && !has_row(&id) => (Value::Null, id),
                Some(_) => continue,
            };
            let why = format!("written as {written}: no token has the id {}", shown(&id));
            self.replace(key, written, &why);
        }
    }

    fn layers(&mut self, config: &DecoderConfig, layers: &LayerMap) -> Result<(), ConfigError> {
        let (before, after) = (config.n_layers.0, layers.layers().0);
        // No supported family reads this key, and transformers 5 does not load a model with unknown
        // values in it.
        if let Some(types) = self.keys.get("layer_types")
            && !types.is_null()
            && !types.as_array().is_some_and(|types| types.iter().all(is_layer_type))
        {
            self.drop("layer_types", "transformers does not support its values");
        }
        // transformers 5 compares the length of this list with the number of layers.
        if let Some(types) = self.keys.get("layer_types").and_then(Value::as_array).filter(|t| t.len() as u32 != before)
        {
            let problem = format!("has {} entries, but the model has {before} layers", types.len());
            return Err(bad_key("layer_types", &problem));
        }
        let unchanged = before == after && layers.sources().iter().enumerate().all(|(to, from)| to as u32 == *from);
        if !unchanged {
            for (key, value) in &mut self.keys {
                per_layer(value, key, (before as usize, layers.sources()))?;
            }
        }
        for key in LAYER_KEYS {
            if let Some(value) = self.keys.get_mut(key).filter(|value| value.as_u64() == Some(before.into())) {
                *value = after.into();
            }
        }
        self.keys.insert(config.family.table().layers_key.to_owned(), after.into());
        Ok(())
    }
}

/// Returns whether transformers 4 and 5 both know this layer type.
fn is_layer_type(kind: &Value) -> bool {
    let known = ["full_attention", "sliding_attention", "chunked_attention", "linear_attention"];
    kind.as_str().is_some_and(|kind| known.contains(&kind))
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        Dtype::F64 => "float64",
        // No other dtype is written.
        Dtype::F32 | Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => "float32",
    }
}

/// Words in the names of per-layer settings.
const LAYER_WORDS: [&str; 24] = [
    "layer",
    "block",
    "pattern",
    "window",
    "sliding",
    "attention",
    "attn",
    "head",
    "mlp",
    "ffn",
    "moe",
    "expert",
    "rope",
    "intermediate",
    "hidden",
    "inner",
    "width",
    "dim",
    "sparsity",
    "dropout",
    "scale",
    "mixer",
    "norm",
    "per_depth",
];
/// Names, or ends of names, of lists that are unrelated to layers.
const OTHER_LISTS: [&str; 14] = [
    "architectures",
    "keys_to_ignore_at_inference",
    "_id",
    "_ids",
    "tokens",
    "bad_words",
    "tags",
    "datasets",
    "languages",
    "language",
    "labels",
    "betas",
    "authors",
    "license",
];

/// Applies the layer map to all lists with one entry per layer, at any depth of `value`. `map` is
/// the number of source layers and the source of each target layer.
fn per_layer(value: &mut Value, key: &str, map: (usize, &[u32])) -> Result<(), ConfigError> {
    let (layers, sources) = map;
    match value {
        Value::Array(entries) => {
            if key == "attention_types"
                && let Some(all) = expanded(entries).filter(|all| all.len() == layers)
            {
                let picked: Vec<Value> = picked(&all, sources);
                *value = json!([[picked, 1]]);
                return Ok(());
            }
            if entries.len() != layers {
                return entries.iter_mut().try_for_each(|entry| per_layer(entry, key, map));
            }
            let is_other = OTHER_LISTS.iter().any(|name| key.ends_with(name));
            let is_layers = !is_other && LAYER_WORDS.iter().any(|word| key.contains(word));
            let kinds = |entry: &Value| std::mem::discriminant(entry);
            let alike = entries.iter().all(|entry| kinds(entry) == kinds(&entries[0]));
            if is_layers {
                *entries = picked(entries, sources);
            } else if !is_other && alike && layers > 1 {
                let problem = format!(
                    "is a list of {layers} entries, as many as there are layers, but it is unclear whether each entry belongs \
                     to a layer: remove it from config.json, or rename it, with `layer` in the name if they do"
                );
                return Err(bad_key(key, &problem));
            }
            Ok(())
        }
        Value::Object(entries) => {
            let by_layer = !entries.is_empty()
                && LAYER_WORDS.iter().any(|word| key.contains(word))
                && entries.keys().all(|key| key.parse::<usize>().is_ok_and(|layer| layer < layers));
            if by_layer {
                let before = std::mem::take(entries);
                for (to, from) in sources.iter().enumerate() {
                    if let Some(entry) = before.get(&from.to_string()) {
                        entries.insert(to.to_string(), entry.clone());
                    }
                }
                return Ok(());
            }
            entries.iter_mut().try_for_each(|(key, entry)| per_layer(entry, key, map))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn picked(entries: &[Value], sources: &[u32]) -> Vec<Value> {
    sources.iter().filter_map(|source| entries.get(*source as usize).cloned()).collect()
}

/// Expands GPT-Neo's `[[["global", "local"], 12]]`: patterns and their number of repetitions.
fn expanded(patterns: &[Value]) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    for pattern in patterns {
        let [pattern, times] = pattern.as_array()?.as_slice() else { return None };
        for _ in 0..times.as_u64().filter(|times| *times <= 1024)? {
            all.extend(pattern.as_array()?.iter().cloned());
        }
    }
    Some(all)
}
