//! SentencePiece: exactly the ids of google/sentencepiece 0.2.3 (`SentencePieceProcessor.encode`
//! and `decode`).
//!
//! Hugging Face's converted tokenizers are not exact: they derive a merge order from the scores,
//! ignore `normalizer_spec`'s rules for spaces, or do not support unused and user-defined pieces.
//! This module therefore follows the library's own steps, file by file: [`normalizer`] with
//! [`charsmap`], then [`bpe`] or [`unigram`], then text that no piece covers. As in the library,
//! pieces such as `</s>` are not recognised in text.

mod bpe;
mod charsmap;
mod normalizer;
mod trie;
mod unigram;

use std::ops::Range;

use inheritune_checkpoint::sentencepiece_model::{Algorithm, Piece, PieceKind, SentencePieceModel, UnknownText};
use tokenizers::AddedToken;

use self::bpe::{Bpe, Words};
use self::normalizer::{Normalizer, Prefix};
use self::trie::Trie;
use self::unigram::Unigram;

/// The representation of a space in pieces.
const SPACE: &str = "\u{2581}";
/// Placeholder id of a run of text that no piece covers, until it is replaced by the unknown piece.
/// The number of pieces is always smaller.
const UNKNOWN: u32 = u32::MAX;

/// A model that is ready to encode.
#[derive(Debug, Clone)]
pub(super) struct SentencePiece {
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    encoder: Encoder,
    rest: Rest,
    pieces: Vec<Piece>,
    unknown_surface: String,
    /// The origin of the spaces at the start of a decoded text.
    spaces: LeadingSpaces,
    beside: Beside,
    /// The texts of `beside`, with their indexes in it.
    found: Trie,
}

/// Added tokens, which are recognised in text. Their ids follow those of the pieces. A token
/// without text has an id but is never recognised.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) tokens: Vec<AddedToken>,
    /// Whether text after such a token is treated as a separate text, with a space added before it
    /// (transformers' `legacy`). Otherwise only the start of a text gets a space, if it has none.
    pub(super) is_legacy: bool,
}

#[derive(Debug, Clone)]
enum Encoder {
    Bpe(Bpe),
    Unigram(Unigram),
}

/// What both encoders need besides the learned pieces.
#[derive(Debug, Clone)]
struct Rest {
    user_defined: Option<Trie>,
    unknown: UnknownText,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeadingSpaces {
    /// They belong to the text.
    Kept,
    /// The first one was added.
    FirstAdded,
    /// The text's own spaces were dropped.
    AllDropped,
}

/// Memory and results that are reused from one text to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch(Words);

impl SentencePiece {
    /// Prepares a parsed model. An error starts with the field's name.
    pub(super) fn new(model: &SentencePieceModel, beside: Beside) -> Result<Self, String> {
        let pieces = model.pieces();
        let encoder = match model.algorithm() {
            Algorithm::Bpe => Encoder::Bpe(Bpe::new(pieces)),
            Algorithm::Unigram => Encoder::Unigram(Unigram::new(pieces)),
        };
        let user_defined = |(piece, _): &(&Piece, u32)| piece.kind == PieceKind::UserDefined;
        let user_defined: Vec<(&[u8], u32)> =
            pieces.iter().zip(0..).filter(user_defined).map(|(piece, id)| (piece.text.as_bytes(), id)).collect();
        let rules = model.normalizer();
        let normalizer =
            Normalizer::new(rules).map_err(|error| format!("normalizer_spec.precompiled_charsmap {error}"))?;
        let denormalizer = model.denormalizer().map(Normalizer::new).transpose();
        let spaces = match (rules.remove_extra_whitespaces, rules.add_dummy_prefix) {
            (true, _) => LeadingSpaces::AllDropped,
            (false, true) => LeadingSpaces::FirstAdded,
            (false, false) => LeadingSpaces::Kept,
        };
        Ok(Self {
            normalizer,
            denormalizer: denormalizer.map_err(|error| format!("denormalizer_spec.precompiled_charsmap {error}"))?,
            encoder,
            rest: Rest {
                user_defined: (!user_defined.is_empty()).then(|| Trie::new(user_defined)),
                unknown: model.unknown().clone(),
            },
            pieces: pieces.to_vec(),
            unknown_surface: model.unknown_surface().to_owned(),
            spaces,
            found: Trie::new(beside.contents().collect()),
            beside,
        })
    }

    /// The ids of `text`.
    pub(super) fn encode(&self, text: &str, scratch: &mut Scratch) -> Result<Vec<u32>, String> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        let (mut rest, mut at_start) = (text, true);
        loop {
            let found = self.next_beside(text, text.len() - rest.len());
            let end = found.as_ref().map_or(text.len(), |(range, _)| range.start);
            let before = &text[text.len() - rest.len()..end];
            if !before.is_empty() || text.is_empty() {
                self.encode_stretch(before, at_start, (scratch, &mut ids))?;
            }
            let Some((range, token)) = found else { return Ok(ids) };
            ids.push(self.pieces.len() as u32 + token);
            (rest, at_start) = (&text[range.end..], false);
        }
    }

    /// Appends the ids of a range between added tokens.
    fn encode_stretch(
        &self,
        text: &str,
        at_start: bool,
        (scratch, ids): (&mut Scratch, &mut Vec<u32>),
    ) -> Result<(), String> {
        let has_space = text.starts_with(' ') || text.starts_with(SPACE);
        let prefix =
            if self.beside.is_legacy || (at_start && !has_space) { Prefix::AsTheModelSays } else { Prefix::None };
        let normalized = self.normalizer.normalize(text, self.rest.user_defined.as_ref(), prefix)?;
        let before = ids.len();
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.encode(&normalized, &self.rest, &mut scratch.0, ids),
            Encoder::Unigram(unigram) => unigram.encode(&normalized, &self.rest, ids),
        }
        if let UnknownText::Piece(unknown) = self.rest.unknown {
            let mut stretch = ids.split_off(before);
            stretch.dedup_by(|next, id| *next == UNKNOWN && *id == UNKNOWN);
            ids.extend(stretch.into_iter().map(|id| if id == UNKNOWN { unknown } else { id }));
        }
        Ok(())
    }

    /// The next added token from `start` on: its range, including the white space that it absorbs,
    /// and its index.
    fn next_beside(&self, text: &str, start: usize) -> Option<(Range<usize>, u32)> {
        if self.beside.tokens.is_empty() {
            return None;
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        for (offset, _) in text[start..].char_indices() {
            let from = start + offset;
            let Some((length, at)) = self.found.prefixes(&text.as_bytes()[from..]).last() else { continue };
            let (token, end) = (&self.beside.tokens[at as usize], from + length);
            let (before, after) = (&text[..from], &text[end..]);
            if token.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                continue;
            }
            let first = if token.lstrip { text[start..from].trim_end().len() + start } else { from };
            let last = if token.rstrip { text.len() - after.trim_start().len() } else { end };
            return Some((first..last, at));
        }
        None
    }

    /// The text of `ids` (`DecodeOptimized`). Control pieces have no text; bytes that do not form a
    /// character become U+FFFD.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let (mut text, mut bytes) = (String::new(), Vec::new());
        let mut at_start = true;
        for id in ids {
            if let Some(token) = (*id as usize).checked_sub(self.pieces.len()).and_then(|at| self.beside.tokens.get(at))
            {
                push_bytes(&mut text, &mut bytes);
                text.push_str(&token.content);
                at_start = false;
                continue;
            }
            let piece = self.pieces.get(*id as usize).ok_or_else(|| format!("unknown piece id {id}"))?;
            if let PieceKind::Byte(byte) = piece.kind {
                bytes.push(byte);
                continue;
            }
            push_bytes(&mut text, &mut bytes);
            at_start &= text.is_empty();
            let mut shown = piece.text.as_str();
            let mut prefix_seen = false;
            if at_start
                && self.spaces != LeadingSpaces::Kept
                && piece.kind != PieceKind::Control
                && let Some(rest) = shown.strip_prefix(SPACE)
            {
                shown = rest;
                prefix_seen = self.spaces == LeadingSpaces::FirstAdded;
            }
            match piece.kind {
                PieceKind::Control => continue,
                PieceKind::Unknown => text.push_str(&self.unknown_surface),
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused | PieceKind::Byte(_) => {
                    text.push_str(&shown.replace(SPACE, " "));
                }
            }
            at_start &= !prefix_seen && text.is_empty();
        }
        push_bytes(&mut text, &mut bytes);
        match &self.denormalizer {
            Some(denormalizer) => {
                Ok(String::from_utf8_lossy(&denormalizer.normalize(&text, None, Prefix::AsTheModelSays)?).into_owned())
            }
            None => Ok(text),
        }
    }
}

impl Beside {
    /// Texts and their indexes in the list.
    fn contents(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let contents = self.tokens.iter().map(|token| token.content.as_bytes()).zip(0..);
        contents.filter(|(content, _)| !content.is_empty())
    }
}

impl Rest {
    /// Appends the ids of text that no piece covers.
    fn push_unknown(&self, text: &[u8], ids: &mut Vec<u32>) {
        match &self.unknown {
            UnknownText::Bytes(of_byte) => ids.extend(text.iter().map(|byte| of_byte[usize::from(*byte)])),
            UnknownText::Piece(_) => ids.push(UNKNOWN),
        }
    }
}

/// Appends `bytes` and clears them. Each byte that is not part of a character becomes U+FFFD.
fn push_bytes(text: &mut String, bytes: &mut Vec<u8>) {
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(valid) => valid,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default(),
        };
        text.push_str(valid);
        rest = &rest[valid.len()..];
        if let Some((_, after)) = rest.split_first() {
            text.push(char::REPLACEMENT_CHARACTER);
            rest = after;
        }
    }
    bytes.clear();
}
