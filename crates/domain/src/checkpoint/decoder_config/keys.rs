//! Reading one key of a `config.json`: absent and null mean the family's default.

use serde_json::Value;

use super::{ConfigError, MAX_DIMENSION};
use crate::checkpoint::safetensors_header::shortened;

/// Characters of a value that a message repeats.
const MAX_SHOWN_CHARS: usize = 80;

/// Reads a key that must be a positive whole number.
pub(in crate::checkpoint) fn required_u32(config: &Value, key: &str) -> Result<u32, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Err(bad_key(key, "is missing")),
        Some(_) => optional_u32(config, key)?.ok_or_else(|| bad_key(key, "is missing")),
    }
}

/// Reads a key that is absent, null, or a positive whole number.
pub(in crate::checkpoint) fn optional_u32(config: &Value, key: &str) -> Result<Option<u32>, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=u64::from(MAX_DIMENSION)).contains(&n) => Ok(Some(n as u32)),
            _ => Err(bad_key(key, &format!("is {}, not a whole number from 1 to {MAX_DIMENSION}", shown(value)))),
        },
    }
}

/// Reads a number, or takes `default` where it is absent or null.
pub(in crate::checkpoint) fn float_or(config: &Value, key: &str, default: f64) -> Result<f64, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(bad_key(key, &format!("is {}, not a positive number", shown(value)))),
        },
    }
}

/// Reads a truth value, or takes `default` where it is absent or null.
pub(in crate::checkpoint) fn bool_or(config: &Value, key: &str, default: bool) -> Result<bool, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| bad_key(key, &format!("is {}, not true or false", shown(value)))),
    }
}

/// Reads a string, or takes `default` where it is absent or null.
pub(in crate::checkpoint) fn text_or<'a>(
    config: &'a Value,
    key: &str,
    default: &'a str,
) -> Result<&'a str, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_str().ok_or_else(|| bad_key(key, &format!("is {}, not a string", shown(value)))),
    }
}

/// What `key` says of rotary positions, where it is there; scaled ones are refused.
pub(in crate::checkpoint) fn unscaled_rope<'a>(config: &'a Value, key: &str) -> Result<Option<&'a Value>, ConfigError> {
    let Some(rope) = config.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    if !rope.is_object() {
        return Err(bad_key(key, &format!("is {}, not an object", shown(rope))));
    }
    let kind = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    match text_or(rope, kind, "default")? {
        "default" => Ok(Some(rope)),
        kind => Err(bad_key(key, &format!("asks for `{}` rotary scaling, which is not supported", shortened(kind)))),
    }
}

/// A value for a message: printable and short, whoever wrote the file.
pub(in crate::checkpoint) fn shown(value: &Value) -> String {
    let json = value.to_string();
    let short = json.char_indices().nth(MAX_SHOWN_CHARS).map_or(json.as_str(), |(end, _)| &json[..end]);
    let mut shown = short.replace(char::is_control, "\u{fffd}");
    if short.len() < json.len() {
        shown.push('…');
    }
    shown
}

pub(in crate::checkpoint) fn bad_key(key: &str, problem: &str) -> ConfigError {
    ConfigError::Key { key: key.to_owned(), problem: problem.to_owned() }
}

/// Refuses a key that, unless absent, null or `only`, asks for something that is not computed here.
pub(in crate::checkpoint) fn refuse_unless(config: &Value, key: &str, only: &Value) -> Result<(), ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value == only || is_same_number(value, only) => Ok(()),
        Some(value) if only.is_null() => Err(bad_key(key, &format!("is {}, which is not supported", shown(value)))),
        Some(value) => Err(bad_key(key, &format!("is {}; only {only} is supported", shown(value)))),
    }
}

/// 1 and 1.0 are one number to whoever wrote the file.
fn is_same_number(a: &Value, b: &Value) -> bool {
    a.is_number() && a.as_f64() == b.as_f64()
}
