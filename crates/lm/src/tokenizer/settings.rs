//! What stands beside a vocabulary: which tokens are special, and what is put around a text.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use super::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE};
use crate::error::LmError;
use crate::files;

const ADDED_TOKENS_FILE: &str = "added_tokens.json";
/// Parts that a token can have in a text.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of special tokens that have no part, by their newer and their older name.
const FURTHER_TOKENS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, so far as a folder has them.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// Their names and contents.
    pub(super) files: Vec<(&'static str, Vec<u8>)>,
    config: Value,
    special_tokens: Value,
    added_tokens: Value,
}

impl Settings {
    /// Reads the files that are in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, LmError> {
        let mut read = Vec::new();
        let mut parse = |name: &'static str| -> Result<Value, LmError> {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            let bytes = files::read(&path, files::MAX_JSON_BYTES)?;
            let value = serde_json::from_slice(&bytes).map_err(|error| LmError::file(&path, error.to_string()))?;
            read.push((name, bytes));
            Ok(value)
        };
        let config = parse(TOKENIZER_CONFIG_FILE)?;
        let special_tokens = parse(SPECIAL_TOKENS_FILE)?;
        let added_tokens = parse(ADDED_TOKENS_FILE)?;
        Ok(Self { files: read, config, special_tokens, added_tokens })
    }

    /// Whether there is a `tokenizer_config.json`.
    pub(super) fn has_config(&self) -> bool {
        self.config.is_object()
    }

    /// A switch of `tokenizer_config.json`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// The token that plays a part such as `eos_token`, by `tokenizer_config.json`, else by `special_tokens_map.json`.
    pub(super) fn token(&self, role: &str) -> Option<AddedToken> {
        [&self.config, &self.special_tokens].into_iter().find_map(|file| added_token(file.get(role)?, true))
    }

    /// The file that names the token of [`Settings::token`].
    pub(super) fn file_of(&self, role: &str) -> &'static str {
        let in_config = self.config.get(role).is_some_and(|token| added_token(token, true).is_some());
        if in_config { TOKENIZER_CONFIG_FILE } else { SPECIAL_TOKENS_FILE }
    }

    /// Every special token, in the order in which transformers adds them.
    pub(super) fn special_tokens(&self) -> Vec<AddedToken> {
        let further = [&self.config, &self.special_tokens]
            .into_iter()
            .flat_map(|file| FURTHER_TOKENS.iter().filter_map(|name| file.get(*name)?.as_array()))
            .flatten()
            .filter_map(|token| added_token(token, true));
        ROLES.iter().filter_map(|role| self.token(role)).chain(further).collect()
    }

    /// Tokens besides those of the vocabulary, by their id: `added_tokens_decoder` of `tokenizer_config.json`, else
    /// `added_tokens.json`.
    pub(super) fn added_tokens(&self) -> Vec<(u32, AddedToken)> {
        let id = |id: u64| u32::try_from(id).ok();
        let mut tokens: Vec<(u32, AddedToken)> = if let Some(tokens) = self.config["added_tokens_decoder"].as_object() {
            let entry = |(key, token): (&String, &Value)| Some((id(key.parse().ok()?)?, added_token(token, false)?));
            tokens.iter().filter_map(entry).collect()
        } else {
            let special: Vec<String> = self.special_tokens().into_iter().map(|token| token.content).collect();
            let entry = |(content, value): (&String, &Value)| {
                Some((id(value.as_u64()?)?, AddedToken::from(content.clone(), special.contains(content))))
            };
            self.added_tokens.as_object().into_iter().flatten().filter_map(entry).collect()
        };
        tokens.sort_by_key(|(id, _)| *id);
        tokens
    }
}

/// A token as the files write one: its text alone, or an object. Old files name no token by an empty text.
fn added_token(value: &Value, is_special: bool) -> Option<AddedToken> {
    let content = value.get("content").unwrap_or(value).as_str().filter(|content| !content.is_empty())?;
    let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = is_special || flag("special", false);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}
