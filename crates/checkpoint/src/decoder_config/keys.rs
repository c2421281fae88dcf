//! Reading single keys of a `config.json`. Absent and null both mean the family's default.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{ConfigError, MAX_DIMENSION};
use crate::safetensors_header::shortened;

/// Maximum number of characters of a value in a message.
const MAX_SHOWN_CHARS: usize = 80;

/// Reads a required positive whole number.
pub(crate) fn required_u32(config: &Value, key: &str) -> Result<u32, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Err(bad_key(key, "is missing")),
        Some(_) => optional_u32(config, key)?.ok_or_else(|| bad_key(key, "is missing")),
    }
}

/// Reads a positive whole number. Returns `None` if the key is absent or null.
pub(crate) fn optional_u32(config: &Value, key: &str) -> Result<Option<u32>, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=u64::from(MAX_DIMENSION)).contains(&n) => Ok(Some(n as u32)),
            _ => Err(bad_key(key, &format!("is {}, not a whole number from 1 to {MAX_DIMENSION}", shown(value)))),
        },
    }
}

/// Reads a non-negative number, or returns `default` if the key is absent or null.
pub(crate) fn float_or(config: &Value, key: &str, default: f64) -> Result<f64, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x >= 0.0 => Ok(x),
            _ => Err(bad_key(key, &format!("is {}, not a number greater than or equal to 0", shown(value)))),
        },
    }
}

/// Like [`float_or`], but rejects 0.
fn positive_or(config: &Value, key: &str, default: f64) -> Result<f64, ConfigError> {
    let x = float_or(config, key, default)?;
    if x > 0.0 { Ok(x) } else { Err(bad_key(key, "is 0, not a positive number")) }
}

/// Reads a boolean, or returns `default` if the key is absent or null.
pub(crate) fn bool_or(config: &Value, key: &str, default: bool) -> Result<bool, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| bad_key(key, &format!("is {}, not true or false", shown(value)))),
    }
}

/// Reads a string, or returns `default` if the key is absent or null.
pub(crate) fn text_or<'a>(config: &'a Value, key: &str, default: &'a str) -> Result<&'a str, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_str().ok_or_else(|| bad_key(key, &format!("is {}, not a string", shown(value)))),
    }
}

/// Reads a positive whole number, or returns `default`, the class's default in transformers, if the
/// key is absent. Null is rejected, because transformers does not load it.
pub(crate) fn u32_or(config: &Value, key: &str, default: u32) -> Result<u32, ConfigError> {
    match config.get(key) {
        None => Ok(default),
        Some(_) => required_u32(config, key),
    }
}

/// Rotary positions, as transformers 5 reads them from configs of version 4 and of version 5.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// The base.
    pub(crate) theta: f64,
    /// The fraction of a head that is rotated, if the dictionary sets it.
    pub(crate) partial: Option<f64>,
    /// A scaling that only has an effect beyond the model's maximum length. It is kept unchanged.
    pub(crate) beyond: Option<Value>,
    /// The base outside of the dictionary, if it differs. transformers 4 reads this one.
    pub(crate) other_theta: Option<f64>,
}

/// Reads `rope_scaling` (which takes precedence unless it is empty), `rope_parameters`, and the
/// top-level key `theta_key`.
///
/// # Errors
/// Positions are scaled, or differ between layer types.
pub(crate) fn rope(config: &Value, theta_key: &str) -> Result<Rope, ConfigError> {
    let mut found = None;
    for key in ["rope_parameters", "rope_scaling"] {
        match config.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(entries)) if entries.is_empty() => {}
            Some(rope @ Value::Object(_)) => found = Some((key, rope)),
            Some(other) => return Err(bad_key(key, &format!("is {}, not an object", shown(other)))),
        }
    }
    let beside = positive_or(config, theta_key, 10_000.0)?;
    let Some((key, rope)) = found else {
        return Ok(Rope { theta: beside, partial: None, beyond: None, other_theta: None });
    };
    if rope.as_object().is_some_and(|entries| entries.values().any(Value::is_object)) {
        return Err(bad_key(key, "has different rotary positions per layer type, which is not supported"));
    }
    let kinds = (text_or(rope, "rope_type", "")?, text_or(rope, "type", "")?);
    let kind = match kinds {
        ("", "") => "default",
        ("", kind) | (kind, "") => kind,
        (kind, other) if kind == other => kind,
        (kind, other) => {
            let (kind, other) = (shortened(kind), shortened(other));
            let problem = format!("has the rope_type `{kind}` and the type `{other}`: remove the wrong one");
            return Err(bad_key(key, &problem));
        }
    };
    let Some(beyond) = idle_scaling(config, rope, kind) else {
        let problem = format!("asks for `{}` rotary scaling, which is not supported", shortened(kind));
        return Err(bad_key(key, &problem));
    };
    let theta = positive_or(rope, "rope_theta", beside)?;
    let is_said = config.get(theta_key).is_some_and(|theta| !theta.is_null());
    let other_theta = (is_said && theta != beside).then_some(beside);
    let partial = match rope.get("partial_rotary_factor") {
        None | Some(Value::Null) => None,
        Some(_) => Some(float_or(rope, "partial_rotary_factor", 1.0)?),
    };
    Ok(Rope { theta, partial, beyond, other_theta })
}

/// Returns `None` if a scaling has an effect within the model's maximum length. Otherwise returns
/// what to keep of it, if it has an effect beyond that length.
fn idle_scaling(config: &Value, rope: &Value, kind: &str) -> Option<Option<Value>> {
    let number = |key: &str| rope.get(key).filter(|value| !value.is_null()).map(Value::as_f64);
    let is_one = |key: &str| matches!(number(key), None | Some(Some(1.0)));
    let length = config.get("max_position_embeddings").map_or(Some(2048.0), Value::as_f64);
    // The length that the factor refers to must be the model's own. It may also be outside of the
    // dictionary (Phi-3).
    let beside = config.get("original_max_position_embeddings").filter(|from| !from.is_null()).map(Value::as_f64);
    let from = number("original_max_position_embeddings");
    let from_its_length = from.is_none_or(|from| from == length) && beside.is_none_or(|from| from == length);
    let ones = |key: &str| {
        rope.get(key).and_then(Value::as_array).is_some_and(|list| list.iter().all(|one| one.as_f64() == Some(1.0)))
    };
    match kind {
        "default" => Some(None),
        "linear" | "proportional" | "llama3" if number("factor") == Some(Some(1.0)) => Some(None),
        "yarn" if number("factor") == Some(Some(1.0)) && is_one("attention_factor") && from_its_length => Some(None),
        "longrope" | "su" => {
            // If the attention factor is not set, it is derived from the lengths.
            let factor_is_said = number("attention_factor") == Some(Some(1.0)) && from.is_none();
            let idle = is_one("factor") && is_one("attention_factor") && (from_its_length || factor_is_said);
            (idle && ones("short_factor") && ones("long_factor")).then_some(None)
        }
        // The base only grows with more positions than the model has.
        "dynamic" => match (number("factor"), from.or(beside)) {
            (Some(Some(factor)), None) if factor >= 1.0 => {
                Some(Some(json!({ "rope_type": "dynamic", "factor": factor })))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Returns the aliases that transformers defines for keys of this family. An alias takes precedence
/// if a file has both names.
pub(crate) fn aliases(model_type: Option<&str>) -> &'static [(&'static str, &'static str)] {
    match model_type {
        Some("gpt2") => &[
            ("hidden_size", "n_embd"),
            ("max_position_embeddings", "n_positions"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ],
        Some("mpt") => {
            &[("hidden_size", "d_model"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")]
        }
        _ => &[],
    }
}

/// Returns the config with the values of aliases under the family's own names.
pub(crate) fn unaliased(config: &Value) -> Cow<'_, Value> {
    let aliases = aliases(config.get("model_type").and_then(Value::as_str));
    let given = aliases.iter().filter(|(alias, _)| config.get(alias).is_some_and(|value| !value.is_null()));
    let given: Vec<_> = given.collect();
    if given.is_empty() {
        return Cow::Borrowed(config);
    }
    let mut config = config.clone();
    for (alias, own) in given {
        config[*own] = config[*alias].clone();
    }
    Cow::Owned(config)
}

/// Formats a value from an untrusted file for a message: printable and short.
pub(crate) fn shown(value: &Value) -> String {
    let json = value.to_string();
    let short = json.char_indices().nth(MAX_SHOWN_CHARS).map_or(json.as_str(), |(end, _)| &json[..end]);
    let mut shown = short.replace(char::is_control, "\u{fffd}");
    if short.len() < json.len() {
        shown.push('…');
    }
    shown
}

pub(crate) fn bad_key(key: &str, problem: &str) -> ConfigError {
    ConfigError::Key { key: key.to_owned(), problem: problem.to_owned() }
}

/// Rejects a key that requests something unsupported, unless it is absent, null or `only`.
pub(crate) fn refuse_unless(config: &Value, key: &str, only: &Value) -> Result<(), ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value == only || is_same_number(value, only) => Ok(()),
        Some(value) if only.is_null() => Err(bad_key(key, &format!("is {}, which is not supported", shown(value)))),
        Some(value) => Err(bad_key(key, &format!("is {}; only {only} is supported", shown(value)))),
    }
}

/// 1 and 1.0 mean the same number in a file.
fn is_same_number(a: &Value, b: &Value) -> bool {
    a.is_number() && a.as_f64() == b.as_f64()
}
