//! Tokenizes requests into the tokens that a model reads and the tokens that it is asked about, as
//! lm-evaluation-harness 0.4.13 does (`TemplateLM._encode_pair`, `HFLM.tok_encode`,
//! `HFLM._loglikelihood_tokens`).

use std::collections::HashMap;

use inheritune_lm::LmError;
use inheritune_lm::tokenizer::{Prefix, Tokenizer};

use crate::metrics::is_python_space;
use crate::windows;

/// Maximum number of entries in an [`EncodingCache`].
const MAX_CACHED: usize = 1 << 16;

/// The tokens that a model reads, and the tokens that it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    /// The tokens to read. Target i follows the input at index `input.len() - targets.len() + i`.
    pub input: Vec<u32>,
    /// The tokens asked about, which follow the last inputs. Not empty, and at most as many as the
    /// inputs.
    pub targets: Vec<u32>,
}

/// A request as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The tokens before the continuation.
    pub context: Vec<u32>,
    /// The tokens asked about; not empty.
    pub continuation: Vec<u32>,
}

/// Why a request cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    /// No token is left to ask about.
    #[error("the continuation {continuation:?} has no token: it is empty, or the tokenizer merges it with its context")]
    NoTarget {
        /// The continuation.
        continuation: String,
    },
    /// The continuation is longer than the model's longest sequence.
    #[error("the continuation has {tokens} tokens, but the model reads at most {limit}")]
    TooLong {
        /// Number of tokens in the continuation.
        tokens: usize,
        /// The model's longest sequence.
        limit: usize,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] LmError),
}

/// Tokenizes text for one model.
#[derive(Debug, Clone)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    prefix: Prefix,
    add_bos_token: Option<bool>,
    max_length: usize,
    /// The tokens that the tokenizer adds before and after a text by default.
    around: (Vec<u32>, Vec<u32>),
    can_cut: bool,
}

/// The tokens of pieces of text that occur repeatedly.
pub type EncodingCache = HashMap<String, Vec<u32>>;

impl<'a> Encoder<'a> {
    /// Creates an encoder for a model that reads at most `max_length` tokens. `add_bos_token` says
    /// whether the tokenizer's special tokens are added; `None` means the tokenizer's default.
    ///
    /// # Errors
    /// The tokenizer has neither a BOS nor an EOS token.
    pub fn new(tokenizer: &'a Tokenizer, max_length: usize, add_bos_token: Option<bool>) -> Result<Self, LmError> {
        let prefix = tokenizer.prefix().cloned().ok_or_else(|| {
            LmError::Tokenizer(
                "the tokenizer has neither a BOS nor an EOS token to predict the first token of a text from; set \
                 eos_token in tokenizer_config.json"
                    .to_owned(),
            )
        })?;
        let (plain, added) = (tokenizer.encode("a")?, tokenizer.encode_with_added("a")?);
        let start = added.windows(plain.len().max(1)).position(|part| part == plain).unwrap_or(0);
        let around = (added[..start].to_vec(), added[(start + plain.len()).min(added.len())..].to_vec());
        Ok(Self { tokenizer, prefix, add_bos_token, max_length, around, can_cut: tokenizer.can_cut_at_line_feeds() })
    }

    /// Returns the context and each continuation as tokens. A continuation's tokens are those that
    /// follow the context's tokens when both are encoded together.
    ///
    /// # Errors
    /// [`EncodingError::NoTarget`]; errors of the tokenizer.
    pub fn pairs(
        &self,
        context: &str,
        continuations: &[&str],
        cache: &mut EncodingCache,
    ) -> Result<Vec<Pair>, EncodingError> {
        let no_target = |continuation: &str| EncodingError::NoTarget { continuation: continuation.to_owned() };
        if context.is_empty() {
            let pair = |continuation: &&str| {
                let tokens = self.plain(continuation, cache)?;
                match tokens.split_first() {
                    None => Err(no_target(continuation)),
                    Some((first, [])) if *first == self.prefix.id => Err(no_target(continuation)),
                    Some((first, rest)) if *first == self.prefix.id => {
                        Ok(Pair { context: vec![*first], continuation: rest.to_vec() })
                    }
                    Some(_) => Ok(Pair { context: vec![self.prefix.id], continuation: tokens }),
                }
            };
            return continuations.iter().map(pair).collect();
        }
        let kept = context.trim_end_matches(is_python_space);
        let spaces = &context[kept.len()..];
        let before = self.encode(kept, cache)?;
        let pair = |continuation: &&str| {
            let whole = self.encode(&format!("{kept}{spaces}{continuation}"), cache)?;
            match whole.get(before.len()..) {
                Some(tokens) if !tokens.is_empty() => {
                    Ok(Pair { context: before.clone(), continuation: tokens.to_vec() })
                }
                Some(_) | None => Err(no_target(continuation)),
            }
        };
        continuations.iter().map(pair).collect()
    }

    /// Returns the sequence that the model reads for a pair, without its start if it is too long.
    ///
    /// # Errors
    /// [`EncodingError::TooLong`].
    pub fn sequence(&self, pair: &Pair) -> Result<Sequence, EncodingError> {
        let Pair { context, continuation } = pair;
        if continuation.len() > self.max_length {
            return Err(EncodingError::TooLong { tokens: continuation.len(), limit: self.max_length });
        }
        let mut input: Vec<u32> = context.iter().chain(continuation).copied().collect();
        input.pop();
        input.drain(..input.len().saturating_sub(self.max_length));
        Ok(Sequence { input, targets: continuation.clone() })
    }

    /// Returns the rolling windows of a whole text.
    ///
    /// # Errors
    /// [`EncodingError::NoTarget`] for a text without tokens; errors of the tokenizer.
    pub fn windows(&self, text: &str, cache: &mut EncodingCache) -> Result<Vec<Sequence>, EncodingError> {
        let tokens: Vec<i64> = self.encode(text, cache)?.into_iter().map(i64::from).collect();
        if tokens.is_empty() {
            return Err(EncodingError::NoTarget { continuation: text.to_owned() });
        }
        let ids = |ids: &[i64]| ids.iter().map(|id| *id as u32).collect();
        let windows = windows::rolling(0, &tokens, i64::from(self.prefix.id), self.max_length);
        let sequence = |window: windows::Window| Sequence {
            input: ids(&window.input),
            targets: ids(&window.targets[window.targets.len() - window.scored..]),
        };
        Ok(windows.into_iter().map(sequence).collect())
    }

    /// `tok_encode`: encodes a text with the tokenizer's special tokens, unless it starts with the
    /// prefix token.
    fn encode(&self, text: &str, cache: &mut EncodingCache) -> Result<Vec<u32>, LmError> {
        let is_added = self.add_bos_token.unwrap_or(true) && !text.starts_with(&self.prefix.text);
        if is_added && !self.can_cut {
            return self.tokenizer.encode_with_added(text);
        }
        let tokens = self.plain(text, cache)?;
        if !is_added {
            return Ok(tokens);
        }
        let (before, after) = &self.around;
        Ok(before.iter().chain(&tokens).chain(after).copied().collect())
    }

    /// Encodes a text without special tokens. If the text may be cut, cached pieces are not encoded
    /// again.
    fn plain(&self, text: &str, cache: &mut EncodingCache) -> Result<Vec<u32>, LmError> {
        if !self.can_cut {
            return self.tokenizer.encode(text);
        }
        let mut tokens = Vec::new();
        for piece in pieces(text) {
            match cache.get(piece) {
                Some(known) => tokens.extend_from_slice(known),
                None => {
                    let encoded = self.tokenizer.encode(piece)?;
                    tokens.extend_from_slice(&encoded);
                    if cache.len() < MAX_CACHED {
                        cache.insert(piece.to_owned(), encoded);
                    }
                }
            }
        }
        Ok(tokens)
    }
}

/// Cuts a text wherever [`Tokenizer::can_cut_at_line_feeds`] allows it.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let is_solid = |c: Option<char>| c.is_some_and(|c| !is_python_space(c));
    let cuts = text
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .filter(move |&cut| is_solid(text[..cut - 1].chars().next_back()) && is_solid(text[cut..].chars().next()));
    let mut start = 0;
    cuts.chain([text.len()]).map(move |end| {
        let piece = &text[start..end];
        start = end;
        piece
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_end_after_single_line_feeds() {
        let cut = |text: &'static str| pieces(text).collect::<Vec<_>>();
        assert_eq!(cut("a\nb\n\nc\n d\ne"), ["a\n", "b\n\nc\n d\n", "e"]);
        assert_eq!(cut("\na\n"), ["\na\n"]);
        assert_eq!(cut(""), [""]);
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::train_byte_bpe(["the cat sat on the mat\nthe dog sat too. "; 20].iter(), 300).unwrap()
    }

    #[test]
    fn trailing_spaces_of_the_context_move_to_the_continuation() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let cache = &mut EncodingCache::new();
        let [Pair { context, continuation }] = &encoder.pairs("the cat \n", &[" sat"], cache).unwrap()[..] else {
            panic!()
        };
        assert_eq!(tokenizer.decode(context).unwrap(), "the cat");
        assert_eq!(tokenizer.decode(continuation).unwrap(), " \n sat");
    }

    #[test]
    fn a_text_without_context_starts_with_the_prefix() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let end = tokenizer.end_of_text_id().unwrap();
        let cache = &mut EncodingCache::new();
        assert_eq!(encoder.pairs("", &["the"], cache).unwrap()[0].context, [end]);
        // The text already starts with it, so it is not scored.
        let Pair { context, continuation } = &encoder.pairs("", &["<|endoftext|>the"], cache).unwrap()[0];
        assert_eq!((context.as_slice(), tokenizer.decode(continuation).unwrap().as_str()), (&[end][..], "the"));
        for empty in ["", "<|endoftext|>"] {
            assert!(matches!(encoder.pairs("", &[empty], cache), Err(EncodingError::NoTarget { .. })), "{empty}");
        }
        assert!(encoder.pairs("the", &[""], cache).is_err());
    }

    fn pair(context: &[u32], continuation: &[u32]) -> Pair {
        Pair { context: context.to_vec(), continuation: continuation.to_vec() }
    }

    #[test]
    fn a_sequence_that_is_too_long_loses_its_start() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 4, None).unwrap();
        let sequence = encoder.sequence(&pair(&[1, 2, 3, 4, 5], &[6, 7])).unwrap();
        assert_eq!(sequence, Sequence { input: vec![3, 4, 5, 6], targets: vec![6, 7] });
        let sequence = encoder.sequence(&pair(&[1], &[2, 3, 4, 5])).unwrap();
        assert_eq!(sequence, Sequence { input: vec![1, 2, 3, 4], targets: vec![2, 3, 4, 5] });
        let error = encoder.sequence(&pair(&[1], &[2, 3, 4, 5, 6])).unwrap_err().to_string();
        assert_eq!(error, "the continuation has 5 tokens, but the model reads at most 4");
    }

    #[test]
    fn cached_pieces_give_the_same_tokens() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let cache = &mut EncodingCache::new();
        for text in ["the cat\nsat on\nthe mat", "the cat\nsat on\n\nthe\n mat\n", "sat on\nsat on\nthe cat"] {
            assert_eq!(encoder.encode(text, cache).unwrap(), tokenizer.encode(text).unwrap(), "{text:?}");
        }
        assert!(cache.contains_key("the cat\n"));
    }
}
