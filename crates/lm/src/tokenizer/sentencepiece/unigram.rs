//! The unigram language model (`EncodeOptimized` of `unigram_model.cc`): the segmentation of a text
//! into pieces whose scores have the highest sum. Sums are f32 and computed from left to right, as
//! in the library, because ties depend on it.

use inheritune_checkpoint::sentencepiece_model::{Piece, PieceKind};

use super::normalizer::char_length;
use super::trie::Trie;
use super::{Rest, UNKNOWN};

/// Penalty for a character that no piece covers, relative to the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;
/// Sums restart at this value, so that long texts do not lose precision.
const MAX_SUM: f32 = 100_000.0;

/// The pieces that text can become.
#[derive(Debug, Clone)]
pub(super) struct Unigram {
    pieces: Trie,
    /// Indexed by id.
    scores: Vec<Score>,
    unknown_score: f32,
}

#[derive(Debug, Clone, Copy)]
enum Score {
    Fixed(f32),
    /// Increases with the length, so that the longest piece wins over all of its parts.
    UserDefined,
}

/// The best segmentation up to a position.
#[derive(Debug, Clone, Copy)]
struct Best {
    sum: f32,
    /// Start of its last piece.
    start: u32,
    /// Its last piece, or [`UNKNOWN`].
    id: u32,
}

/// No segmentation found yet.
const NO_WAY: Best = Best { sum: 0.0, start: u32::MAX, id: UNKNOWN };

impl Unigram {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let in_text = |piece: &Piece| matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined);
        let keys = pieces.iter().zip(0..).filter(|(piece, _)| in_text(piece));
        let worst = pieces.iter().filter(|piece| piece.kind == PieceKind::Normal).map(|piece| piece.score);
        let score = |piece: &Piece| match piece.kind {
            PieceKind::UserDefined => Score::UserDefined,
            PieceKind::Normal | PieceKind::Unknown | PieceKind::Control | PieceKind::Byte(_) | PieceKind::Unused => {
                Score::Fixed(piece.score)
            }
        };
        Self {
            pieces: Trie::new(keys.map(|(piece, id)| (piece.text.as_bytes(), id)).collect()),
            scores: pieces.iter().map(score).collect(),
            unknown_score: worst.fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
        }
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &[u8], rest: &Rest, ids: &mut Vec<u32>) {
        let best = self.best_ways(text);
        let mut pieces = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let way = best[end];
            pieces.push((way.start as usize..end, way.id));
            end = way.start as usize;
        }
        for (span, id) in pieces.into_iter().rev() {
            match id {
                UNKNOWN => rest.push_unknown(&text[span], ids),
                id => ids.push(id),
            }
        }
    }

    /// The best segmentation up to each position in `text`. A character is at least unknown, so
    /// every character boundary is reachable.
    fn best_ways(&self, text: &[u8]) -> Vec<Best> {
        let mut best = vec![NO_WAY; text.len() + 1];
        let mut furthest = 0;
        let mut start = 0;
        while start < text.len() {
            let mut before = best[start].sum;
            if before.abs() > MAX_SUM {
                let ways = best[start..=furthest].iter_mut();
                ways.filter(|way| way.start != NO_WAY.start).for_each(|way| way.sum -= before);
                before = 0.0;
            }
            let character = char_length(&text[start..]);
            let mut is_covered = false;
            let mut reach = |length: usize, score: f32, id: u32| {
                let end = start + length;
                furthest = furthest.max(end);
                let sum = score + before;
                if best[end].start == NO_WAY.start || sum > best[end].sum {
                    best[end] = Best { sum, start: start as u32, id };
                }
            };
            for (length, id) in self.pieces.prefixes(&text[start..]) {
                let score = match self.scores[id as usize] {
                    Score::Fixed(score) => score,
                    Score::UserDefined => (0.1 * (length as f64 - 1.0)) as f32,
                };
                reach(length, score, id);
                is_covered |= length == character;
            }
            if !is_covered {
                reach(character, self.unknown_score, UNKNOWN);
            }
            start += character;
        }
        best
    }
}
