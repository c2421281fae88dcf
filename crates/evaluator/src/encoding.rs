//! From requests to the tokens that a model reads and those it is asked about, as lm-evaluation-harness 0.4.13 has it
//! (`TemplateLM._encode_pair`, `HFLM.tok_encode`, `HFLM._loglikelihood_tokens`).

use std::collections::HashMap;

use inheritune_lm::LmError;
use inheritune_lm::tokenizer::{Prefix, Tokenizer};

use crate::metrics::is_python_space;
use crate::windows;

/// Most pieces of text whose tokens are remembered.
const MAX_REMEMBERED: usize = 1 << 16;

/// Tokens that a model reads, and those that it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    /// What is read. The last of it is asked about: after input `input.len() - targets.len() + i` comes target i.
    pub input: Vec<u32>,
    /// What should come after each of the last inputs; not empty, and not more than the inputs.
    pub targets: Vec<u32>,
}

/// A request as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What comes before.
    pub context: Vec<u32>,
    /// What is asked about; not empty.
    pub continuation: Vec<u32>,
}

/// Why a request cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    /// Nothing is left to be asked about.
    #[error(
        "the continuation {continuation:?} has no token of its own: the tokenizer joins it with its context, or it is empty"
    )]
    NoTarget {
        /// The continuation.
        continuation: String,
    },
    /// More is asked about than the model reads.
    #[error("the continuation has {tokens} tokens, and the model reads {limit} at most")]
    TooLong {
        /// Tokens of the continuation.
        tokens: usize,
        /// The model's longest sequence.
        limit: usize,
    },
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] LmError),
}

/// Turns text into tokens for one model.
#[derive(Debug, Clone)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    prefix: Prefix,
    add_bos_token: Option<bool>,
    max_length: usize,
    /// What the tokenizer puts before and after a text by itself.
    around: (Vec<u32>, Vec<u32>),
    can_cut: bool,
}

/// Tokens of pieces of text that come again and again.
pub type Memory = HashMap<String, Vec<u32>>;

impl<'a> Encoder<'a> {
    /// For a model that reads `max_length` tokens. `add_bos_token` says whether the tokenizer's own special tokens are
    /// added; without it, whatever the tokenizer does by itself.
    ///
    /// # Errors
    /// The tokenizer has neither a BOS nor an EOS token.
    pub fn new(tokenizer: &'a Tokenizer, max_length: usize, add_bos_token: Option<bool>) -> Result<Self, LmError> {
        let prefix = tokenizer.prefix().cloned().ok_or_else(|| {
            LmError::Tokenizer(
                "there is neither a BOS nor an EOS token for a text to be predicted from; name one as eos_token in \
                 tokenizer_config.json"
                    .to_owned(),
            )
        })?;
        let (plain, added) = (tokenizer.encode("a")?, tokenizer.encode_with_added("a")?);
        let start = added.windows(plain.len().max(1)).position(|part| part == plain).unwrap_or(0);
        let around = (added[..start].to_vec(), added[(start + plain.len()).min(added.len())..].to_vec());
        Ok(Self { tokenizer, prefix, add_bos_token, max_length, around, can_cut: tokenizer.can_cut_at_line_feeds() })
    }

    /// Context and continuations as tokens, each of which is what follows the context's tokens in both together.
    ///
    /// # Errors
    /// [`EncodingError::NoTarget`]; the tokenizer's.
    pub fn pairs(
        &self,
        context: &str,
        continuations: &[&str],
        memory: &mut Memory,
    ) -> Result<Vec<Pair>, EncodingError> {
        let no_target = |continuation: &str| EncodingError::NoTarget { continuation: continuation.to_owned() };
        if context.is_empty() {
            let pair = |continuation: &&str| {
                let tokens = self.plain(continuation, memory)?;
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
        let before = self.encode(kept, memory)?;
        let pair = |continuation: &&str| {
            let whole = self.encode(&format!("{kept}{spaces}{continuation}"), memory)?;
            match whole.get(before.len()..) {
                Some(tokens) if !tokens.is_empty() => {
                    Ok(Pair { context: before.clone(), continuation: tokens.to_vec() })
                }
                Some(_) | None => Err(no_target(continuation)),
            }
        };
        continuations.iter().map(pair).collect()
    }

    /// What the model reads for a pair: its end, where it is too long.
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

    /// The rolling windows of a whole text.
    ///
    /// # Errors
    /// [`EncodingError::NoTarget`] for a text without a token; the tokenizer's.
    pub fn windows(&self, text: &str, memory: &mut Memory) -> Result<Vec<Sequence>, EncodingError> {
        let tokens: Vec<i64> = self.encode(text, memory)?.into_iter().map(i64::from).collect();
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

    /// `tok_encode`: with the tokenizer's own special tokens, unless the text begins with one.
    fn encode(&self, text: &str, memory: &mut Memory) -> Result<Vec<u32>, LmError> {
        let is_added = self.add_bos_token.unwrap_or(true) && !text.starts_with(&self.prefix.text);
        if is_added && !self.can_cut {
            return self.tokenizer.encode_with_added(text);
        }
        let tokens = self.plain(text, memory)?;
        if !is_added {
            return Ok(tokens);
        }
        let (before, after) = &self.around;
        Ok(before.iter().chain(&tokens).chain(after).copied().collect())
    }

    /// Without special tokens. Where a text may be cut, pieces that were seen before are not encoded again.
    fn plain(&self, text: &str, memory: &mut Memory) -> Result<Vec<u32>, LmError> {
        if !self.can_cut {
            return self.tokenizer.encode(text);
        }
        let mut tokens = Vec::new();
        for piece in pieces(text) {
            match memory.get(piece) {
                Some(known) => tokens.extend_from_slice(known),
                None => {
                    let encoded = self.tokenizer.encode(piece)?;
                    tokens.extend_from_slice(&encoded);
                    if memory.len() < MAX_REMEMBERED {
                        memory.insert(piece.to_owned(), encoded);
                    }
                }
            }
        }
        Ok(tokens)
    }
}

/// A text cut where [`Tokenizer::can_cut_at_line_feeds`] allows it.
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
    fn blanks_go_to_the_continuation() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let memory = &mut Memory::new();
        let [Pair { context, continuation }] = &encoder.pairs("the cat \n", &[" sat"], memory).unwrap()[..] else {
            panic!()
        };
        assert_eq!(tokenizer.decode(context).unwrap(), "the cat");
        assert_eq!(tokenizer.decode(continuation).unwrap(), " \n sat");
    }

    #[test]
    fn a_text_without_context_begins_with_the_prefix() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let end = tokenizer.end_of_text_id().unwrap();
        let memory = &mut Memory::new();
        assert_eq!(encoder.pairs("", &["the"], memory).unwrap()[0].context, [end]);
        // It is there already: it is not scored.
        let Pair { context, continuation } = &encoder.pairs("", &["<|endoftext|>the"], memory).unwrap()[0];
        assert_eq!((context.as_slice(), tokenizer.decode(continuation).unwrap().as_str()), (&[end][..], "the"));
        for empty in ["", "<|endoftext|>"] {
            assert!(matches!(encoder.pairs("", &[empty], memory), Err(EncodingError::NoTarget { .. })), "{empty}");
        }
        assert!(encoder.pairs("the", &[""], memory).is_err());
    }

    fn pair(context: &[u32], continuation: &[u32]) -> Pair {
        Pair { context: context.to_vec(), continuation: continuation.to_vec() }
    }

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 4, None).unwrap();
        let sequence = encoder.sequence(&pair(&[1, 2, 3, 4, 5], &[6, 7])).unwrap();
        assert_eq!(sequence, Sequence { input: vec![3, 4, 5, 6], targets: vec![6, 7] });
        let sequence = encoder.sequence(&pair(&[1], &[2, 3, 4, 5])).unwrap();
        assert_eq!(sequence, Sequence { input: vec![1, 2, 3, 4], targets: vec![2, 3, 4, 5] });
        let error = encoder.sequence(&pair(&[1], &[2, 3, 4, 5, 6])).unwrap_err().to_string();
        assert_eq!(error, "the continuation has 5 tokens, and the model reads 4 at most");
    }

    #[test]
    fn remembered_pieces_give_the_same_tokens() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 8, None).unwrap();
        let memory = &mut Memory::new();
        for text in ["the cat\nsat on\nthe mat", "the cat\nsat on\n\nthe\n mat\n", "sat on\nsat on\nthe cat"] {
            assert_eq!(encoder.encode(text, memory).unwrap(), tokenizer.encode(text).unwrap(), "{text:?}");
        }
        assert!(memory.contains_key("the cat\n"));
    }
}
