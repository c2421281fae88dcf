//! SentencePiece: the ids of google/sentencepiece 0.2.3 (`SentencePieceProcessor.encode` and `decode`), exactly.
//!
//! Hugging Face's converted tokenizers are not exact: they merge by an order made up from the scores, drop what
//! `normalizer_spec` says of spaces, or know no unused and user-defined pieces. So the library's own steps are followed
//! here, file by file: [`normalizer`] with [`charsmap`], then [`bpe`] or [`unigram`], then what no piece holds. As in
//! the library, pieces such as `</s>` are not looked for in text.

mod bpe;
mod charsmap;
mod normalizer;
mod trie;
mod unigram;

use inheritune_domain::checkpoint::sentencepiece_model::{
    Algorithm, Piece, PieceKind, SentencePieceModel, UnknownText,
};

use self::bpe::{Bpe, Words};
use self::normalizer::Normalizer;
use self::trie::Trie;
use self::unigram::Unigram;

/// What a space is in pieces.
const SPACE: &str = "\u{2581}";
/// No id: a run of text that no piece holds, until it becomes the unknown piece. There are fewer pieces than this.
const UNKNOWN: u32 = u32::MAX;

/// A model, ready to encode.
#[derive(Debug, Clone)]
pub(super) struct SentencePiece {
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    encoder: Encoder,
    rest: Rest,
    pieces: Vec<Piece>,
    unknown_surface: String,
    /// How the spaces at the start of a decoded text came about.
    spaces: LeadingSpaces,
}

#[derive(Debug, Clone)]
enum Encoder {
    Bpe(Bpe),
    Unigram(Unigram),
}

/// What both encoders need besides pieces that training found.
#[derive(Debug, Clone)]
struct Rest {
    user_defined: Option<Trie>,
    unknown: UnknownText,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeadingSpaces {
    /// They are the text's own.
    Kept,
    /// The first was put there.
    FirstAdded,
    /// The text's own were dropped.
    AllDropped,
}

/// What is worth keeping from one text to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch(Words);

impl SentencePiece {
    /// Of a model that was read; an error starts with the field.
    pub(super) fn new(model: &SentencePieceModel) -> Result<Self, String> {
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
        })
    }

    /// The ids of `text`.
    pub(super) fn encode(&self, text: &str, scratch: &mut Scratch) -> Result<Vec<u32>, String> {
        let normalized = self.normalizer.normalize(text, self.rest.user_defined.as_ref())?;
        let mut ids = Vec::with_capacity(normalized.len() / 4);
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.encode(&normalized, &self.rest, &mut scratch.0, &mut ids),
            Encoder::Unigram(unigram) => unigram.encode(&normalized, &self.rest, &mut ids),
        }
        if let UnknownText::Piece(unknown) = self.rest.unknown {
            ids.dedup_by(|next, id| *next == UNKNOWN && *id == UNKNOWN);
            ids.iter_mut().filter(|id| **id == UNKNOWN).for_each(|id| *id = unknown);
        }
        Ok(ids)
    }

    /// The text of `ids` (`DecodeOptimized`): control pieces have none, bytes that are no character are U+FFFD.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let (mut text, mut bytes) = (String::new(), Vec::new());
        let mut at_start = true;
        for id in ids {
            let piece = self.pieces.get(*id as usize).ok_or_else(|| format!("there is no piece {id}"))?;
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
            Some(denormalizer) => Ok(String::from_utf8_lossy(&denormalizer.normalize(&text, None)?).into_owned()),
            None => Ok(text),
        }
    }
}

impl Rest {
    /// Appends the ids of text that no piece holds.
    fn push_unknown(&self, text: &[u8], ids: &mut Vec<u32>) {
        match &self.unknown {
            UnknownText::Bytes(of_byte) => ids.extend(text.iter().map(|byte| of_byte[usize::from(*byte)])),
            UnknownText::Piece(_) => ids.push(UNKNOWN),
        }
    }
}

/// Appends `bytes`, and empties them; each byte that is part of no character is U+FFFD.
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
