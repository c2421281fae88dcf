//! Checks GPT-2's pair of `vocab.json` and `merges.txt` before Hugging Face's library reads them,
//! so that errors name the file and the line.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::safetensors_header::shortened;
use super::tokenizer_json::{MAX_ENTRIES, MAX_JSON_BYTES, MAX_TOKEN_BYTES, TokenizerError, check_text, json_problem};

/// The names of the files.
pub const PAIR_FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// An error in one of the two files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct PairError {
    /// The file.
    pub file: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// A validated pair. Its contents are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabularyPair {
    /// The highest id plus one.
    pub entries: u64,
}

impl VocabularyPair {
    /// Parses the contents of both files.
    ///
    /// # Errors
    /// The bytes are not such a file, or a merge contains tokens that are not in the vocabulary.
    pub fn parse(vocab: &[u8], merges: &[u8]) -> Result<Self, PairError> {
        let (vocabulary, pair) = vocabulary(vocab)?;
        check_merges(merges, &vocabulary)?;
        Ok(pair)
    }

    /// Parses the content of `vocab.json` alone.
    ///
    /// # Errors
    /// Same as [`VocabularyPair::parse`].
    pub fn of_vocabulary(vocab: &[u8]) -> Result<Self, PairError> {
        Ok(vocabulary(vocab)?.1)
    }
}

fn vocabulary(bytes: &[u8]) -> Result<(HashSet<String>, VocabularyPair), PairError> {
    let bad = |problem: String| PairError { file: PAIR_FILES[0], problem };
    check_text(bytes, MAX_JSON_BYTES).map_err(|error| bad(error.to_string()))?;
    let Tokens { tokens, entries } = serde_json::from_slice(bytes).map_err(|error| bad(json_problem(&error)))?;
    if tokens.is_empty() {
        return Err(bad("has no vocabulary".to_owned()));
    }
    if entries > u64::from(u32::MAX) {
        return Err(bad("has a token id that does not fit in 32 bits".to_owned()));
    }
    Ok((tokens, VocabularyPair { entries }))
}

fn check_merges(bytes: &[u8], vocabulary: &HashSet<String>) -> Result<(), PairError> {
    let bad = |problem: String| PairError { file: PAIR_FILES[1], problem };
    check_text(bytes, MAX_JSON_BYTES).map_err(|error: TokenizerError| bad(error.to_string()))?;
    let text = std::str::from_utf8(bytes).map_err(|_| bad("is not UTF-8".to_owned()))?;
    let mut joined = String::new();
    for (line, number) in text.lines().zip(1u64..) {
        if line.starts_with("#version") {
            continue;
        }
        let bad = |problem: String| bad(format!("line {number} {problem}"));
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            let found = if line.is_empty() { "is empty".to_owned() } else { format!("is `{}`", shortened(line)) };
            return Err(bad(format!("{found}; expected two tokens separated by one space")));
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for token in [left, right, &joined] {
            if !vocabulary.contains(token) {
                let problem = format!("merges `{}` and `{}`, but", shortened(left), shortened(right));
                return Err(bad(format!("{problem} {} has no token `{}`", PAIR_FILES[0], shortened(token))));
            }
        }
        if number > 4 * MAX_ENTRIES {
            return Err(bad(format!("exceeds the limit of {} lines", 4 * MAX_ENTRIES)));
        }
    }
    Ok(())
}

/// The vocabulary, `{token: id}`.
struct Tokens {
    tokens: HashSet<String>,
    entries: u64,
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokensVisitor;
        impl<'de> Visitor<'de> for TokensVisitor {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                use serde::de::Error;
                let (mut tokens, mut entries) = (HashSet::new(), 0);
                while let Some((token, id)) = map.next_entry::<String, u64>()? {
                    if token.len() > MAX_TOKEN_BYTES {
                        let problem =
                            format!("a token is {} bytes long; at most {MAX_TOKEN_BYTES} are allowed", token.len());
                        return Err(A::Error::custom(problem));
                    }
                    tokens.insert(token);
                    if tokens.len() as u64 > MAX_ENTRIES {
                        return Err(A::Error::custom(format!(
                            "there are more than {MAX_ENTRIES} entries in the vocabulary"
                        )));
                    }
                    entries = id.saturating_add(1).max(entries);
                }
                Ok(Tokens { tokens, entries })
            }
        }
        deserializer.deserialize_map(TokensVisitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::VocabularyPair;

    fn problem(vocab: &str, merges: &str) -> String {
        match VocabularyPair::parse(vocab.as_bytes(), merges.as_bytes()) {
            Ok(pair) => format!("{} entries", pair.entries),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_wrong_is_said_of_its_file() {
        let vocab = r#"{"a": 0, "b": 1, "ab": 7}"#;
        let found = [
            problem(vocab, "#version: 0.2\na b\n"),
            problem(vocab, "a b\r\n"),
            problem(vocab, "\u{feff}#version: 0.2\na b\n"),
            problem(vocab, "a b\n\n"),
            problem(vocab, "a b c"),
            problem(vocab, "a  b"),
            problem(vocab, "b a"),
            problem(vocab, "x b"),
            problem("\u{feff}{}", ""),
            problem("{}", ""),
            problem(r#"{"a": -1}"#, ""),
            problem(r#"{"a": 4294967296}"#, ""),
            problem(r#"["a"]"#, ""),
            problem(vocab, "version https://git-lfs.github.com/spec/v1"),
        ];
        expect_test::expect![[r#"
            8 entries
            8 entries
            merges.txt: begins with a byte order mark (EF BB BF); save it as UTF-8 without one
            merges.txt: line 2 is empty; expected two tokens separated by one space
            merges.txt: line 1 is `a b c`; expected two tokens separated by one space
            merges.txt: line 1 is `a  b`; expected two tokens separated by one space
            merges.txt: line 1 merges `b` and `a`, but vocab.json has no token `ba`
            merges.txt: line 1 merges `x` and `b`, but vocab.json has no token `x`
            vocab.json: begins with a byte order mark (EF BB BF); save it as UTF-8 without one
            vocab.json: has no vocabulary
            vocab.json: invalid value: integer `-1`, expected u64 at line 1 column 8
            vocab.json: has a token id that does not fit in 32 bits
            vocab.json: invalid type: sequence, expected an object of tokens and their ids at line 1 column 0
            merges.txt: is a Git LFS pointer, not the file itself; run `git lfs pull`"#]]
        .assert_eq(&found.join("\n"));
    }
}
