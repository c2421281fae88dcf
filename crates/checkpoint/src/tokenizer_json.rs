//! Checks a `tokenizer.json` before Hugging Face's library loads it: the cost of loading it and of
//! encoding with it.
//!
//! The library trusts the file. Parts of it can lengthen a text without bound (nested `Replace`),
//! take exponential time ([`super::tokenizer_pattern`]), or return different ids each time
//! (`dropout`). The worst case of each part is computed from the file alone. If it exceeds a limit,
//! the file is rejected with the name of the part.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::safetensors_header::shortened;
use super::tokenizer_pattern::Pattern;

#[cfg(test)]
mod tests;

/// Maximum size of a file. The largest known ones have about 35 MB.
pub const MAX_JSON_BYTES: usize = 64 << 20;
/// Maximum number of vocabulary entries. The largest known vocabularies have 260,000.
pub const MAX_ENTRIES: u64 = 1 << 20;
/// Maximum number of added tokens.
pub const MAX_ADDED_TOKENS: usize = 1 << 16;
/// Maximum length of a token.
pub const MAX_TOKEN_BYTES: usize = 8_192;
/// Maximum factor by which a text may grow, separately before and after it is split.
pub const MAX_GROWTH: u64 = 64;
/// Maximum length of a text that a `Prepend` or a `Replace` may insert.
const MAX_INSERTED_BYTES: usize = 256;
/// Maximum number and nesting depth of normalizers, pre-tokenizers, post-processors and decoders.
const MAX_PARTS: usize = 64;
const MAX_DEPTH: usize = 8;
/// Maximum number of tokens added around a text.
const MAX_AROUND: usize = 64;
/// Maximum length of a word in WordPiece, whose time is cubic in it.
const MAX_WORD_CHARS: u64 = 1_000;
/// Maximum number of JSON values in a part, not counting the model's vocabulary and merges.
const MAX_VALUES: usize = 1 << 16;
/// Maximum length of a `precompiled_charsmap` in base64. That of NFKC has 320 kB.
const MAX_CHARSMAP_BYTES: usize = 4 << 20;
/// Maximum length of a replacement in a charsmap. NFKC's longest has 33 bytes.
const MAX_CHARSMAP_TEXT_BYTES: usize = 64;

/// Properties of an accepted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerJson {
    /// Highest id of the vocabulary and the added tokens, plus one.
    pub entries: u64,
    /// Maximum factor by which a text grows.
    pub growth: u64,
}

/// Why a file is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file is too large.
    #[error("is {file_bytes} bytes long; at most {limit} are allowed")]
    TooLong {
        /// The size of the file.
        file_bytes: usize,
        /// The maximum size.
        limit: usize,
    },
    /// The file is not UTF-8 without a byte order mark.
    #[error("{0}")]
    Encoding(&'static str),
    /// The file is not the expected JSON.
    #[error("{0}")]
    Json(String),
    /// A part is not acceptable.
    #[error("{part}: {problem}")]
    Part {
        /// Its path in the file.
        part: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl TokenizerJson {
    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// The bytes are not such a file, or a part may cost too much. The error names it.
    pub fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        check_text(bytes, MAX_JSON_BYTES)?;
        let file: File = serde_json::from_slice(bytes).map_err(|error| TokenizerError::Json(json_problem(&error)))?;
        let added = file.added_tokens.0.iter().map(|token| token.id.saturating_add(1)).max().unwrap_or(0);
        let Some(Model { vocab, .. }) = &file.model else { return Err(part("model", "is missing")) };
        let entries = vocab.entries.max(added);
        if entries > u64::from(u32::MAX) {
            return Err(part("model.vocab", "has a token id that does not fit in 32 bits"));
        }
        let mut parts = Parts { left: MAX_PARTS, entries };
        let before = parts.growth("normalizer", &file.normalizer.0, 0)?;
        let after = parts.growth("pre_tokenizer", &file.pre_tokenizer.0, 0)?;
        parts.growth("decoder", &file.decoder.0, 0)?;
        let around = parts.around("post_processor", &file.post_processor.0, 0)?;
        if around > MAX_AROUND {
            let problem = format!("adds {around} tokens to every text; at most {MAX_AROUND} are accepted");
            return Err(part("post_processor", problem));
        }
        if let Some(model) = &file.model {
            model.check()?;
        }
        Ok(Self { entries, growth: before.saturating_mul(after) })
    }
}

/// Checks that a text file is UTF-8, without a byte order mark, and within the size limit.
pub(super) fn check_text(bytes: &[u8], limit: usize) -> Result<(), TokenizerError> {
    if bytes.len() > limit {
        return Err(TokenizerError::TooLong { file_bytes: bytes.len(), limit });
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(TokenizerError::Encoding("begins with a byte order mark (EF BB BF); save it as UTF-8 without one"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(TokenizerError::Encoding("is UTF-16; save it as UTF-8"));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(TokenizerError::Encoding("is a Git LFS pointer, not the file itself; run `git lfs pull`"));
    }
    if std::str::from_utf8(bytes).is_err() {
        return Err(TokenizerError::Encoding("is not UTF-8"));
    }
    Ok(())
}

/// Returns serde's message, bounded in length and without control characters, because it may quote
/// the file.
pub(super) fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!("at line {} column {}", error.line(), error.column());
    if text.len() <= 200 && !text.contains(char::is_control) {
        return text;
    }
    format!("{} {place}", shortened(&text))
}

fn part(part: impl Into<String>, problem: impl Into<String>) -> TokenizerError {
    TokenizerError::Part { part: part.into(), problem: problem.into() }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: AddedTokens,
    #[serde(default)]
    normalizer: Part,
    #[serde(default)]
    pre_tokenizer: Part,
    #[serde(default)]
    post_processor: Part,
    #[serde(default)]
    decoder: Part,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    /// Only its length is checked.
    #[serde(rename = "content")]
    _content: Length,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    continuing_subword_prefix: Option<Length>,
    #[serde(default)]
    end_of_word_suffix: Option<Length>,
    vocab: Vocabulary,
    /// Only counted.
    #[serde(default, rename = "merges")]
    _merges: Option<Merges>,
}

impl Model {
    fn check(&self) -> Result<(), TokenizerError> {
        if let Some(dropout) = self.dropout.filter(|dropout| *dropout != 0.0) {
            let problem = format!("is {dropout}: it skips merges at random; set it to null");
            return Err(part("model.dropout", problem));
        }
        if let Some(chars) = self.max_input_chars_per_word.filter(|chars| *chars > MAX_WORD_CHARS) {
            let problem = format!("is {chars}; at most {MAX_WORD_CHARS} are accepted");
            return Err(part("model.max_input_chars_per_word", problem));
        }
        let of_word = [
            ("model.continuing_subword_prefix", &self.continuing_subword_prefix),
            ("model.end_of_word_suffix", &self.end_of_word_suffix),
        ];
        for (name, text) in of_word {
            if let Some(Length(bytes)) = text
                && *bytes > MAX_INSERTED_BYTES
            {
                return Err(part(name, format!("is {bytes} bytes long; at most {MAX_INSERTED_BYTES} are accepted")));
            }
        }
        Ok(())
    }
}

/// Reads the parts of a file.
struct Parts {
    /// Number of further parts allowed.
    left: usize,
    entries: u64,
}

impl Parts {
    fn enter(&mut self, name: &str, depth: usize) -> Result<(), TokenizerError> {
        if depth > MAX_DEPTH {
            return Err(part(name, format!("is nested more than {MAX_DEPTH} levels deep")));
        }
        self.left =
            self.left.checked_sub(1).ok_or_else(|| part(name, format!("exceeds the limit of {MAX_PARTS} parts")))?;
        Ok(())
    }

    /// Returns the maximum factor by which a normalizer, a pre-tokenizer or a decoder lengthens a
    /// text.
    fn growth(&mut self, name: &str, value: &Value, depth: usize) -> Result<u64, TokenizerError> {
        if value.is_null() {
            return Ok(1);
        }
        self.enter(name, depth)?;
        let mut growth = own_growth(name, value)?;
        for list in ["normalizers", "pretokenizers", "decoders"] {
            let children = value.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for (at, child) in children.iter().enumerate() {
                let child_name = format!("{name}.{list}[{at}]");
                growth = growth.saturating_mul(self.growth(&child_name, child, depth + 1)?);
                if growth > MAX_GROWTH {
                    return Err(lengthens(&child_name, growth));
                }
            }
        }
        if growth > MAX_GROWTH { Err(lengthens(name, growth)) } else { Ok(growth) }
    }

    /// Returns the number of tokens that a post-processor adds around a text.
    fn around(&mut self, name: &str, value: &Value, depth: usize) -> Result<usize, TokenizerError> {
        if value.is_null() {
            return Ok(0);
        }
        self.enter(name, depth)?;
        let mut around = 0;
        for (at, child) in value["processors"].as_array().into_iter().flatten().enumerate() {
            around += self.around(&format!("{name}.processors[{at}]"), child, depth + 1)?;
        }
        for end in ["sep", "cls"] {
            if let Some(id) = value[end][1].as_u64() {
                self.check_id(&format!("{name}.{end}"), id)?;
                around += 1;
            }
        }
        for (token, special) in value["special_tokens"].as_object().into_iter().flatten() {
            for id in special["ids"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
                self.check_id(&format!("{name}.special_tokens.{}", shortened(token)), id)?;
            }
        }
        let mut texts = 0;
        for piece in value["single"].as_array().into_iter().flatten() {
            if let Some(token) = piece["SpecialToken"]["id"].as_str() {
                around += value["special_tokens"][token]["ids"].as_array().map_or(1, Vec::len);
            }
            texts += usize::from(piece.get("Sequence").is_some());
        }
        if texts > 1 {
            return Err(part(format!("{name}.single"), format!("uses the text {texts} times")));
        }
        Ok(around)
    }

    fn check_id(&self, name: &str, id: u64) -> Result<(), TokenizerError> {
        if id < self.entries {
            return Ok(());
        }
        Err(part(
            name,
            format!("has the id {id}, but the highest id of the vocabulary is {}", self.entries.saturating_sub(1)),
        ))
    }
}

fn lengthens(name: &str, growth: u64) -> TokenizerError {
    let problem = format!(
        "can make a text {growth} times as long, together with the parts before it; at most {MAX_GROWTH} times is accepted"
    );
    part(name, problem)
}

/// Returns the growth factor of a single part, without nested parts.
fn own_growth(name: &str, value: &Value) -> Result<u64, TokenizerError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let inserted = |key: &str| {
        let bytes = text(key).map_or(0, str::len);
        if bytes > MAX_INSERTED_BYTES {
            let problem = format!("is {bytes} bytes long; at most {MAX_INSERTED_BYTES} are accepted");
            return Err(part(format!("{name}.{key}"), problem));
        }
        Ok(bytes as u64)
    };
    let pattern = match &value["pattern"] {
        Value::Object(object) => match (object.get("Regex"), object.get("String")) {
            (Some(Value::String(regex)), _) => {
                let read = Pattern::parse(regex);
                let problem =
                    |problem| part(format!("{name}.pattern"), format!("the pattern `{}` {problem}", shortened(regex)));
                Some(read.map_err(problem)?.min_bytes as u64)
            }
            (_, Some(Value::String(string))) => Some(string.len() as u64),
            _ => None,
        },
        _ => None,
    };
    match text("type").unwrap_or_default() {
        "Prepend" => Ok(inserted("prepend")? + 1),
        "Replace" => {
            let content = inserted("content")?;
            match pattern.unwrap_or(0) {
                0 => Ok(content + 1),
                shortest => Ok(content.div_ceil(shortest).max(1)),
            }
        }
        "ByteLevel" => Ok(2 + u64::from(value["add_prefix_space"].as_bool().unwrap_or(false))),
        "Metaspace" => Ok(inserted("replacement")?.max(3) + 1),
        "Precompiled" => check_charsmap(name, text("precompiled_charsmap").unwrap_or_default()),
        "FixedLength" if value["length"].as_u64() == Some(0) => Err(part(format!("{name}.length"), "is 0")),
        _ => Ok(1),
    }
}

/// Checks that the longest replacement in a charsmap is short. The replacements follow the double
/// array, each terminated by a NUL.
fn check_charsmap(name: &str, base64: &str) -> Result<u64, TokenizerError> {
    let bad = |problem: String| part(format!("{name}.precompiled_charsmap"), problem);
    if base64.len() > MAX_CHARSMAP_BYTES {
        return Err(bad(format!("is {} bytes long; at most {MAX_CHARSMAP_BYTES} are read", base64.len())));
    }
    let bytes = decode_base64(base64).ok_or_else(|| bad("is not base64".to_owned()))?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| bad("has no length".to_owned()))?;
    let length = u32::from_le_bytes(*length) as usize;
    let texts = rest.get(length..).ok_or_else(|| bad(format!("has no double array of {length} bytes")))?;
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAX_CHARSMAP_TEXT_BYTES {
        return Err(bad(format!(
            "inserts {longest} bytes at one position; at most {MAX_CHARSMAP_TEXT_BYTES} are accepted"
        )));
    }
    // The worst case of NFKC: one character of 3 bytes becomes 33 bytes.
    Ok(11)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let [_, a, b, c] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend_from_slice(&[a, b, c][..group.len() - usize::from(group.len() > 1)]);
    }
    Some(bytes)
}

/// The length of a string, which is not kept.
pub(super) struct Length(pub(super) usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LengthVisitor;
        impl Visitor<'_> for LengthVisitor {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Length, E> {
                if text.len() > MAX_TOKEN_BYTES {
                    return Err(E::custom(format!(
                        "a token is {} bytes long; at most {MAX_TOKEN_BYTES} are allowed",
                        text.len()
                    )));
                }
                Ok(Length(text.len()))
            }
        }
        deserializer.deserialize_str(LengthVisitor)
    }
}

/// A vocabulary, which is not kept: `{token: id}`, or `[[token, score]]` (Unigram).
struct Vocabulary {
    /// The highest id plus one.
    entries: u64,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabularyVisitor;
        impl<'de> Visitor<'de> for VocabularyVisitor {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let (mut count, mut entries) = (0, 0);
                while let Some((_, id)) = map.next_entry::<Length, u64>()? {
                    count += 1;
                    check_count(count, MAX_ENTRIES, "entries in the vocabulary")?;
                    entries = id.saturating_add(1).max(entries);
                }
                Ok(Vocabulary { entries })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocabulary, A::Error> {
                let mut entries = 0;
                while seq.next_element::<(Length, IgnoredAny)>()?.is_some() {
                    entries += 1;
                    check_count(entries, MAX_ENTRIES, "entries in the vocabulary")?;
                }
                Ok(Vocabulary { entries })
            }
        }
        deserializer.deserialize_any(VocabularyVisitor)
    }
}

fn check_count<E: serde::de::Error>(count: u64, most: u64, what: &str) -> Result<(), E> {
    if count > most { Err(E::custom(format!("there are more than {most} {what}"))) } else { Ok(()) }
}

/// Merges, which are only counted.
struct Merges;

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        counted::<IgnoredAny, D>(deserializer, 4 * MAX_ENTRIES, "merges").map(|_| Self)
    }
}

#[derive(Default)]
struct AddedTokens(Vec<Added>);

impl<'de> Deserialize<'de> for AddedTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        counted(deserializer, MAX_ADDED_TOKENS as u64, "added tokens").map(Self)
    }
}

/// Reads a list of at most `most` items.
fn counted<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    most: u64,
    what: &'static str,
) -> Result<Vec<T>, D::Error> {
    struct Counted<T>(u64, &'static str, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Counted<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of {}", self.1)
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                items.push(item);
                check_count(items.len() as u64, self.0, self.1)?;
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(Counted(most, what, PhantomData))
}

/// A part as it is in the file, with a bounded number of values.
#[derive(Default)]
struct Part(Value);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(MAX_VALUES);
        Bounded(&left).deserialize(deserializer).map(Self)
    }
}

/// Reads any JSON up to a limit on the number of values.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    fn one<E: serde::de::Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| E::custom(format!("a part has more than {MAX_VALUES} values")))?);
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.one(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        self.one(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut items = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            // The library may use either of them, and which one is not specified.
            if items.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{}` occurs twice", shortened(&key))));
            }
            let value = map.next_value_seed(self)?;
            items.insert(key, value);
        }
        self.one(Value::Object(items))
    }
}
