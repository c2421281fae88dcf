//! Cuts a long document into pieces whose token ids, concatenated, are those of the whole document.
//!
//! A document is cut where a word ends: before a single space, after a single line feed, or before
//! a punctuation mark that follows a letter or digit. GPT-2's pattern never joins text across such
//! a place, and neither does a vocabulary whose pieces begin with their space. With a given
//! tokenizer, each place is verified: the surrounding text must have the same ids in two parts as
//! in one. The second part keeps its leading space, or loses it if the tokenizer adds one itself.
//! Text with no such place within [`MAX_UNCUT_BYTES`] is cut anyway, and the cut is counted.

use inheritune_lm::tokenizer::{Join, Tokenizer};

use super::Piece;

/// Target size of a piece. One thread encodes a piece at once and needs about 160 bytes of memory
/// per byte of text.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Maximum size of a piece: longer text is cut even where there is no valid place.
pub const MAX_UNCUT_BYTES: usize = 512 * 1024;
/// Size of the text on each side that is used to verify a place.
const CONTEXT_BYTES: usize = 512;
/// Number of consecutive places tried per piece; after that, places are tried [`STRIDE_BYTES`]
/// apart.
const CLOSE_TRIES: usize = 64;
const STRIDE_BYTES: usize = 4096;

/// What determines where a document may be cut.
#[derive(Debug, Clone, Copy)]
pub enum Cutting<'a> {
    /// GPT-2's pattern, which is used to train byte-level tokenizers.
    Gpt2,
    /// This tokenizer.
    By(&'a Tokenizer),
}

/// Cuts documents that arrive in parts.
pub struct Cutter<'a> {
    cutting: Cutting<'a>,
    buffer: String,
    /// Offset in the buffer of the next place to try.
    searched: usize,
    tries: usize,
    forced: u64,
}

impl<'a> Cutter<'a> {
    /// Returns a cutter with an empty buffer.
    pub fn new(cutting: Cutting<'a>) -> Self {
        Self { cutting, buffer: String::new(), searched: PIECE_BYTES, tries: 0, forced: 0 }
    }

    /// The number of cuts so far that had to be made where there is no valid place.
    pub fn forced(&self) -> u64 {
        self.forced
    }

    /// Adds `text` and returns the pieces that are complete. When the document ends, returns all
    /// that remain.
    pub fn push(&mut self, text: &str, ends_document: bool) -> Vec<Piece> {
        self.buffer.push_str(text);
        let mut pieces = Vec::new();
        while let Some((end, join)) = self.next_cut(ends_document) {
            let skipped = match join {
                Join::Keep => end,
                Join::DropSpace => end + 1,
            };
            let rest = self.buffer.split_off(skipped);
            let mut piece = std::mem::replace(&mut self.buffer, rest);
            piece.truncate(end);
            pieces.push(Piece::Text { text: piece, ends_document: false, held_out: false });
            (self.searched, self.tries) = (PIECE_BYTES, 0);
        }
        if ends_document {
            let text = std::mem::take(&mut self.buffer);
            (self.searched, self.tries) = (PIECE_BYTES, 0);
            pieces.push(Piece::Text { text, ends_document: true, held_out: false });
        }
        pieces
    }

    /// The first place where the buffer is cut, if it can be determined yet.
    fn next_cut(&mut self, ends_document: bool) -> Option<(usize, Join)> {
        // To verify a place, the text after it must be known, unless the document ends.
        let known = if ends_document { self.buffer.len() } else { self.buffer.len().saturating_sub(CONTEXT_BYTES) };
        let most = self.buffer.floor_char_boundary(MAX_UNCUT_BYTES);
        loop {
            // The next place to try may lie beyond the text so far, so it is not clamped.
            let at = self.buffer.ceil_char_boundary(self.searched);
            if at >= known.min(most) {
                break;
            }
            let mut step = 1;
            if is_place(&self.buffer, at) {
                if let Some(join) = self.try_place(at) {
                    return Some((at, join));
                }
                self.tries += 1;
                if self.tries > CLOSE_TRIES {
                    step = STRIDE_BYTES;
                }
            }
            self.searched = at + step;
        }
        if known > most {
            self.forced += 1;
            return Some((most, Join::Keep));
        }
        None
    }

    fn try_place(&self, at: usize) -> Option<Join> {
        match self.cutting {
            Cutting::Gpt2 => Some(Join::Keep),
            Cutting::By(tokenizer) => {
                let start = self.buffer.ceil_char_boundary(at.saturating_sub(CONTEXT_BYTES));
                let end = self.buffer.floor_char_boundary(at + CONTEXT_BYTES);
                tokenizer.join_at(&self.buffer[start..at], &self.buffer[at..end])
            }
        }
    }
}

/// Whether a word may end at `at`, a character boundary inside of `text`.
fn is_place(text: &str, at: usize) -> bool {
    let (mut before, mut after) = (text[..at].chars().rev(), text[at..].chars());
    let (Some(last), Some(first)) = (before.next(), after.next()) else { return false };
    let is_dense = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    match (last, first) {
        (last, ' ') => !last.is_whitespace() && is_dense(after.next()),
        ('\n', first) => !first.is_whitespace() && is_dense(before.next()),
        (last, first) => is_letter(last) && is_mark(first),
    }
}

/// Whether every tokenizer's Unicode tables classify `c` as a letter or digit.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | 'ぁ'..='ん' | 'а'..='я')
}

/// Whether no tokenizer's Unicode tables classify `c` as a letter, digit or white space.
fn is_mark(c: char) -> bool {
    c.is_ascii_punctuation() || matches!(c, '、' | '。' | '，' | '！' | '？' | '：' | '；' | '「' | '」' | '…')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(document: &str, part: usize) -> (Vec<String>, u64) {
        let mut cutter = Cutter::new(Cutting::Gpt2);
        let (mut texts, mut rest) = (Vec::new(), document);
        loop {
            let (part, after) = rest.split_at(rest.floor_char_boundary(part));
            for piece in cutter.push(part, after.is_empty()) {
                match piece {
                    Piece::Text { text, .. } => texts.push(text),
                    Piece::Tokens { .. } => panic!("{piece:?}"),
                }
            }
            rest = after;
            if rest.is_empty() {
                return (texts, cutter.forced());
            }
        }
    }

    #[test]
    fn d6_a_cut_stands_where_a_word_ends() {
        for (text, at, expected) in [
            ("ab cd", 2, true),
            ("ab cd", 3, false),
            ("ab  cd", 2, false),
            ("ab  cd", 3, false),
            ("ab\ncd", 3, true),
            ("ab\n\ncd", 3, false),
            ("ab\n\ncd", 4, false),
            ("ab \ncd", 4, false),
            ("ab\r\ncd", 4, false),
            ("ab\n cd", 3, false),
            ("ab, cd", 2, true),
            ("ab, cd", 3, true),
            ("don't", 3, true),
            ("don't", 4, false),
            ("a\u{a0}b", 1, false),
            ("漢字。漢", 6, true),
            ("漢字。漢", 9, false),
        ] {
            assert_eq!(is_place(text, at), expected, "{text:?} at {at}");
        }
    }

    #[test]
    fn d6_pieces_do_not_depend_on_the_parts() {
        let lines: String = (0..40_000).map(|i| format!("line {i} of many, with wörds\n")).collect();
        let one_line = lines.replace('\n', " ");
        let dense = "x".repeat(2_000_000);
        for (document, forced) in [(&lines, false), (&one_line, false), (&dense, true)] {
            let (whole, cuts) = pieces(document, usize::MAX / 2);
            assert_eq!(whole.concat(), *document);
            assert!(whole.len() > 3 && (cuts > 0) == forced, "{} pieces, {cuts} forced", whole.len());
            assert!(whole.iter().all(|piece| piece.len() <= MAX_UNCUT_BYTES));
            for part in [1000, 256 * 1024] {
                assert_eq!(pieces(document, part), (whole.clone(), cuts), "parts of {part}");
            }
        }
        assert_eq!(pieces("", 10), (vec![String::new()], 0));
    }
}
