//! Converts a text to the bytes in which pieces are searched (`normalizer.cc`).

use inheritune_checkpoint::sentencepiece_model::NormalizerRules;

use super::SPACE;
use super::charsmap::Charsmap;
use super::trie::Trie;

/// Longest text after normalisation: positions are 32 bits wide, as in the library.
const MAX_BYTES: usize = i32::MAX as usize;
/// The library considers at most this many user-defined pieces per position in a text
/// (`kResultSize`).
const MAX_USER_DEFINED: usize = 64;
/// Maximum growth factor of a text: in all of NFKC, one character grows to at most eleven times its
/// bytes, and spaces grow too.
const MAX_GROWTH: usize = 16;
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Whether a space is added before or after a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    AsTheModelSays,
    None,
}

/// Normalises texts.
#[derive(Debug, Clone)]
pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    treat_whitespace_as_suffix: bool,
    /// The representation of a space.
    space: &'static [u8],
}

impl Normalizer {
    /// Creates a normalizer with these `rules`.
    pub(super) fn new(rules: &NormalizerRules) -> Result<Self, String> {
        let charsmap = match rules.precompiled_charsmap.as_slice() {
            [] => None,
            bytes => Some(Charsmap::parse(bytes)?),
        };
        Ok(Self {
            charsmap,
            add_dummy_prefix: rules.add_dummy_prefix,
            remove_extra_whitespaces: rules.remove_extra_whitespaces,
            treat_whitespace_as_suffix: rules.treat_whitespace_as_suffix,
            space: if rules.escape_whitespaces { SPACE.as_bytes() } else { b" " },
        })
    }

    /// Returns the normalised text. `user_defined` pieces are unchanged.
    pub(super) fn normalize(&self, text: &str, user_defined: Option<&Trie>, prefix: Prefix) -> Result<Vec<u8>, String> {
        let add_dummy_prefix = self.add_dummy_prefix && prefix == Prefix::AsTheModelSays;
        let mut input = text.as_bytes();
        if self.remove_extra_whitespaces {
            while let (b" ", length @ 1..) = self.next(input, user_defined) {
                input = &input[length..];
            }
        }
        if input.is_empty() {
            return Ok(Vec::new());
        }
        let mut output = Vec::with_capacity(input.len() + input.len() / 2);
        if add_dummy_prefix && !self.treat_whitespace_as_suffix {
            output.extend_from_slice(self.space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !input.is_empty() {
            let (mut piece, length) = self.next(input, user_defined);
            input = &input[length..];
            while after_space && let Some(rest) = piece.strip_prefix(b" ") {
                piece = rest;
            }
            for &byte in piece {
                if byte == b' ' {
                    output.extend_from_slice(self.space);
                } else {
                    output.push(byte);
                }
            }
            if output.len() / MAX_GROWTH > text.len() {
                return Err(format!(
                    "normalizer_spec.precompiled_charsmap makes a text more than {MAX_GROWTH} times as long"
                ));
            }
            if output.len() > MAX_BYTES {
                return Err(format!("a text is longer than {MAX_BYTES} bytes after normalisation"));
            }
            if let Some(last) = piece.last() {
                after_space = self.remove_extra_whitespaces && *last == b' ';
            }
        }
        if self.remove_extra_whitespaces {
            while output.ends_with(self.space) {
                output.truncate(output.len() - self.space.len());
            }
        }
        if add_dummy_prefix && self.treat_whitespace_as_suffix {
            output.extend_from_slice(self.space);
        }
        Ok(output)
    }

    /// The normalised start of `input`, and how many bytes of `input` it covers. Only an empty
    /// input gives an empty result.
    fn next<'a>(&'a self, input: &'a [u8], user_defined: Option<&Trie>) -> (&'a [u8], usize) {
        if let Some(trie) = user_defined
            && let Some(length) = longest_user_defined(trie, input)
        {
            return (&input[..length], length);
        }
        if let Some((length, replacement)) = self.charsmap.as_ref().and_then(|map| map.longest(input)) {
            return (replacement, length);
        }
        let length = char_length(input);
        if std::str::from_utf8(&input[..length]).is_ok() { (&input[..length], length) } else { (REPLACEMENT, 1) }
    }
}

/// Length of the longest user-defined piece that `input` begins with.
pub(super) fn longest_user_defined(trie: &Trie, input: &[u8]) -> Option<usize> {
    trie.prefixes(input).take(MAX_USER_DEFINED).last().map(|(length, _)| length)
}

/// Length in bytes of the character that `input` begins with, according to its first byte
/// (`OneCharLen`).
pub(super) fn char_length(input: &[u8]) -> usize {
    let length = match input.first() {
        None => 0,
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        Some(_) => 1,
    };
    length.min(input.len())
}
