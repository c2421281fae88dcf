//! Byte-pair encoding as SentencePiece implements it (`bpe_model.cc`). Characters become symbols.
//! The two neighbours whose piece has the highest score are merged, leftmost first on a tie, until
//! no two neighbours form a piece.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use inheritune_checkpoint::sentencepiece_model::{Piece, PieceKind};

use super::normalizer::{char_length, longest_user_defined};
use super::trie::Trie;
use super::{Rest, SPACE};

/// Maximum recursion depth when an unused piece is split into its parts (`kMaxBpeResegmentDepth`).
const MAX_RESEGMENT_DEPTH: usize = 100;
/// Maximum number of cached words, and the length of the longest one.
const MAX_WORDS: usize = 1 << 16;
const MAX_WORD_BYTES: usize = 64;
const NONE: u32 = u32::MAX;

/// The pieces that text can become.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    pieces: HashMap<Box<[u8]>, Entry>,
    longest_piece: usize,
    /// Whether no piece spans the space between two words, so that words can be encoded one by one.
    by_words: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u32,
    /// Increases with the score.
    rank: u32,
    unused: bool,
}

/// A cache of encoded words, and buffers for encoding.
#[derive(Debug, Default)]
pub(super) struct Words {
    ids: HashMap<Box<[u8]>, Box<[u32]>>,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Join>,
}

/// A part of the text; empty once it is merged into the previous symbol.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    length: u32,
    previous: u32,
    next: u32,
    /// Whether it is a user-defined piece, which is never merged.
    frozen: bool,
}

/// Two neighbours that form a piece.
#[derive(Debug, PartialEq, Eq)]
struct Join {
    rank: u32,
    left: u32,
    right: u32,
    length: u32,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// How unused pieces were formed: the length of the left part, by piece.
type Splits<'a> = HashMap<&'a [u8], u32>;

impl Bpe {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let in_text =
            |piece: &Piece| matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
        // How an unused piece is split depends on where else in the text it was formed.
        let of_one_word =
            |piece: &Piece| piece.kind != PieceKind::Unused && !piece.text.trim_start_matches(SPACE).contains(SPACE);
        let by_words = pieces.iter().filter(|piece| in_text(piece)).all(of_one_word);
        let entries = pieces.iter().zip(0..).filter(|(piece, _)| in_text(piece)).map(|(piece, id)| {
            let entry = Entry { id, rank: rank(piece.score), unused: piece.kind == PieceKind::Unused };
            (piece.text.as_bytes().into(), entry)
        });
        let pieces: HashMap<Box<[u8]>, Entry> = entries.collect();
        Self { longest_piece: pieces.keys().map(|text| text.len()).max().unwrap_or(0), pieces, by_words }
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &[u8], rest: &Rest, words: &mut Words, ids: &mut Vec<u32>) {
        if !self.by_words || std::str::from_utf8(text).is_err() {
            self.encode_whole(text, rest, words, ids);
            return;
        }
        let mut remaining = text;
        while !remaining.is_empty() {
            let (word, after) = remaining.split_at(word_length(remaining));
            remaining = after;
            if let Some(known) = words.ids.get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let before = ids.len();
            self.encode_whole(word, rest, words, ids);
            if word.len() <= MAX_WORD_BYTES && words.ids.len() < MAX_WORDS {
                words.ids.insert(word.into(), ids[before..].into());
            }
        }
    }

    fn encode_whole(&self, text: &[u8], rest: &Rest, words: &mut Words, ids: &mut Vec<u32>) {
        let Words { symbols, agenda, .. } = words;
        split(text, rest.user_defined.as_ref(), symbols);
        let mut splits = Splits::new();
        for right in 1..symbols.len() as u32 {
            agenda.extend(self.join(text, symbols, (right - 1, right), &mut splits));
        }
        while let Some(join) = agenda.pop() {
            let (left, right) = (symbols[join.left as usize], symbols[join.right as usize]);
            if left.length == 0 || right.length == 0 || left.length + right.length != join.length {
                continue;
            }
            symbols[join.left as usize].length = join.length;
            symbols[join.left as usize].next = right.next;
            symbols[join.right as usize].length = 0;
            if right.next != NONE {
                symbols[right.next as usize].previous = join.left;
            }
            agenda.extend(self.join(text, symbols, (left.previous, join.left), &mut splits));
            agenda.extend(self.join(text, symbols, (join.left, right.next), &mut splits));
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at as usize) {
            let piece = &text[symbol.start as usize..(symbol.start + symbol.length) as usize];
            self.finish(piece, rest, (&splits, 0), ids);
            at = symbol.next;
        }
    }

    /// Returns the merge of two neighbours, if they form a piece.
    fn join<'a>(
        &self,
        text: &'a [u8],
        symbols: &[Symbol],
        (left, right): (u32, u32),
        splits: &mut Splits<'a>,
    ) -> Option<Join> {
        let (a, b) = (symbols.get(left as usize)?, symbols.get(right as usize)?);
        let length = a.length + b.length;
        if a.frozen || b.frozen || length as usize > self.longest_piece {
            return None;
        }
        let piece = &text[a.start as usize..(a.start + length) as usize];
        let entry = self.pieces.get(piece)?;
        if entry.unused {
            splits.insert(piece, a.length);
        }
        Some(Join { rank: entry.rank, left, right, length })
    }

    /// Appends the ids of a symbol that cannot be merged any further.
    fn finish(&self, piece: &[u8], rest: &Rest, (splits, depth): (&Splits<'_>, usize), ids: &mut Vec<u32>) {
        let entry = self.pieces.get(piece);
        if let Some(entry) = entry
            && (!entry.unused || depth > MAX_RESEGMENT_DEPTH)
        {
            ids.push(entry.id);
        } else if entry.is_some()
            && let Some(left) = splits.get(piece)
        {
            let (left, right) = piece.split_at(*left as usize);
            self.finish(left, rest, (splits, depth + 1), ids);
            self.finish(right, rest, (splits, depth + 1), ids);
        } else {
            rest.push_unknown(piece, ids);
        }
    }
}

/// Splits `text` into characters and user-defined pieces.
fn split(text: &[u8], user_defined: Option<&Trie>, symbols: &mut Vec<Symbol>) {
    symbols.clear();
    let mut start = 0;
    while start < text.len() {
        let here = &text[start..];
        let longest = user_defined.and_then(|trie| longest_user_defined(trie, here));
        let length = longest.unwrap_or_else(|| char_length(here));
        let index = symbols.len() as u32;
        symbols.push(Symbol {
            start: start as u32,
            length: length as u32,
            previous: index.wrapping_sub(1),
            next: if start + length < text.len() { index + 1 } else { NONE },
            frozen: longest.is_some(),
        });
        start += length;
    }
}

/// Number of bytes up to the first space that follows something other than a space.
fn word_length(text: &[u8]) -> usize {
    let space = SPACE.as_bytes();
    let mut at = 0;
    while text[at..].starts_with(space) {
        at += space.len();
    }
    let lead = |byte: &u8| *byte == space[0];
    while let Some(next) = text[at..].iter().position(lead) {
        at += next;
        if text[at..].starts_with(space) {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// An integer that increases with `score`.
fn rank(score: f32) -> u32 {
    let bits = score.to_bits();
    if score.is_sign_negative() { !bits } else { bits | 1 << 31 }
}
