//! The settings files next to a vocabulary: additional tokens, special tokens, and tokens that are
//! added around a text.
//!
//! The rules are those of transformers 5 (`PreTrainedTokenizerBase._from_pretrained`,
//! `TokenizersBackend.__init__`). If `tokenizer_config.json` has an `added_tokens_decoder`, the two
//! older files are ignored. Otherwise `special_tokens_map.json` takes precedence over it.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use super::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE};
use crate::error::LmError;
use crate::files;

const ADDED_TOKENS_FILE: &str = "added_tokens.json";
/// Size limit of these files; the largest known ones have about 2 MB.
const MAX_BYTES: u64 = 8 << 20;
/// Roles of special tokens, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of special tokens without a role: the newer and the older one.
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";
const DECODER: &str = "added_tokens_decoder";

/// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, as far as they
/// exist.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// Names and contents of the existing files.
    pub(super) files: Vec<(&'static str, Vec<u8>)>,
    config: Value,
    special_tokens: Value,
    added_tokens: Value,
}

impl Settings {
    /// Reads the files that exist in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, LmError> {
        let mut read = Vec::new();
        let mut parse = |name: &'static str| -> Result<Value, LmError> {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            let bytes = files::read(&path, MAX_BYTES)?;
            if bytes.starts_with(b"\xef\xbb\xbf") {
                return Err(LmError::file(
                    &path,
                    "begins with a byte order mark (EF BB BF); save it as UTF-8 without one",
                ));
            }
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

    /// A flag in `tokenizer_config.json`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// Whether transformers reads the folder with the class `name`, or with its older name, which
    /// ends in `Fast`.
    pub(super) fn is_of_class(&self, name: &str) -> bool {
        self.config["tokenizer_class"].as_str().is_some_and(|class| class.strip_suffix("Fast").unwrap_or(class) == name)
    }

    fn has_decoder(&self) -> bool {
        self.config.get(DECODER).is_some()
    }

    /// The file that sets `key`, and the value.
    fn said(&self, key: &str) -> Option<(&'static str, &Value)> {
        let older = (!self.has_decoder()).then_some((SPECIAL_TOKENS_FILE, &self.special_tokens));
        let files = older.into_iter().chain([(TOKENIZER_CONFIG_FILE, &self.config)]);
        files.into_iter().find_map(|(file, values)| Some((file, values.get(key)?)))
    }

    /// The token with a role such as `eos_token`.
    pub(super) fn token(&self, role: &str) -> Option<AddedToken> {
        self.said(role).and_then(|(_, value)| added_token(value, true))
    }

    /// Whether no file sets this role, so that the class's default applies.
    pub(super) fn leaves_open(&self, role: &str) -> bool {
        self.said(role).is_none()
    }

    /// Tokens that a file lists with ids, besides those of the vocabulary, in the order of the ids.
    /// As in transformers the ids themselves are ignored: a new token gets the next free id.
    fn listed(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<(u64, AddedToken)> = if let Some(decoder) = self.config[DECODER].as_object() {
            let entry = |(id, token): (&String, &Value)| Some((id.parse().ok()?, added_token(token, false)?));
            decoder.iter().filter_map(entry).collect()
        } else {
            let special: Vec<String> =
                self.named().into_iter().chain(self.extra()).map(|token| token.content).collect();
            let entry = |(content, id): (&String, &Value)| {
                Some((id.as_u64()?, AddedToken::from(content.clone(), special.contains(content))))
            };
            self.added_tokens.as_object().into_iter().flatten().filter_map(entry).collect()
        };
        tokens.sort_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token).collect()
    }

    /// Tokens with a role: the usual roles, then model-specific ones (`image_token`).
    fn named(&self) -> Vec<AddedToken> {
        let own = self.config.as_object().into_iter().flatten();
        let own = own.filter(|(key, _)| key.ends_with("_token") && !ROLES.contains(&key.as_str()));
        let own = own.filter_map(|(_, value)| added_token(value, true));
        let of_dictionary = self.said(EXTRA).and_then(|(_, value)| value.as_object()).into_iter().flatten();
        let of_dictionary = of_dictionary.filter_map(|(_, value)| added_token(value, true));
        ROLES.iter().filter_map(|role| self.token(role)).chain(own).chain(of_dictionary).collect()
    }

    /// Special tokens without a role.
    fn extra(&self) -> Vec<AddedToken> {
        let is_said = |value: &&Value| value.as_array().is_some_and(|list| !list.is_empty());
        let config = self.config.get(EXTRA).filter(is_said).or_else(|| self.config.get(ADDITIONAL));
        let map = (!self.has_decoder()).then_some(&self.special_tokens);
        let newer = map.and_then(|map| map.get(EXTRA));
        let older = map.and_then(|map| map.get(ADDITIONAL)).filter(|_| config.is_none());
        let lists = [config, newer, older].into_iter().flatten().filter_map(Value::as_array);
        lists.flatten().filter_map(|token| added_token(token, true)).collect()
    }

    /// The tokens to add to a vocabulary that already has the added tokens `known`, in the order in
    /// which transformers adds them. `defaults` are the class's own tokens for roles that no file
    /// sets.
    pub(super) fn tokens_to_add(&self, known: &[String], defaults: &[(&str, &str)]) -> Vec<AddedToken> {
        let mut named = self.named();
        let open = defaults.iter().filter(|(role, _)| self.leaves_open(role));
        named.splice(0..0, open.map(|(_, content)| AddedToken::from(*content, true)));
        let mut tokens = self.listed();
        for token in &mut tokens {
            token.special |= named.iter().any(|named| named.content == token.content);
        }
        for token in named.into_iter().chain(self.extra()) {
            let is_new = |other: &str| other != token.content;
            if known.iter().all(|known| is_new(known)) && tokens.iter().all(|other| is_new(&other.content)) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Whether a token begins or ends texts. Such a token needs a row in the model, whatever the
    /// texts contain.
    pub(super) fn is_boundary(&self, content: &str) -> bool {
        ["bos_token", "eos_token"].iter().any(|role| self.token(role).is_some_and(|token| token.content == content))
    }
}

/// Parses a token: either its text, or an object. Old files use an empty text for no token.
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
