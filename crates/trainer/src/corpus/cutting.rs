//! Where a long document is cut, so that its pieces have together the ids of the whole.
//!
//! A cut stands where words end: before a single space, after a single line feed, or before a mark that follows a letter or
//! a digit. GPT-2's pattern never joins text across such a place, and neither does a vocabulary whose pieces begin with
//! their space. For a tokenizer that is given, each place is tried: the text around it must have the same ids in two parts
//! as in one, with the space before the second part or, where the tokenizer puts one there itself, without it. A stretch of
//! [`MAX_UNCUT_BYTES`] without such a place is cut all the same, and counted.

use inheritune_lm::tokenizer::{Join, Tokenizer};

use super::Piece;

/// Of a piece: what one thread encodes at once, at some 160 bytes of memory for each.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Longest stretch without a place to cut it that stays whole.
pub const MAX_UNCUT_BYTES: usize = 512 * 1024;
/// Text on either side by which a place is tried.
const CONTEXT_BYTES: usize = 512;
/// Places of one piece that are tried one after the other; from then on they lie [`STRIDE_BYTES`] apart.
const CLOSE_TRIES: usize = 64;
const STRIDE_BYTES: usize = 4096;

/// What decides where a document may be cut.
#[derive(Debug, Clone, Copy)]
pub enum Cutting<'a> {
    /// GPT-2's pattern, by which byte-level tokenizers are trained here.
    Gpt2,
    /// This tokenizer.
    By(&'a Tokenizer),
}

/// Cuts documents that come in parts.
pub struct Cutter<'a> {
    cutting: Cutting<'a>,
    buffer: String,
    /// From where on the buffer was not looked at.
    searched: usize,
    tries: usize,
    forced: u64,
}

impl<'a> Cutter<'a> {
    /// One that has seen nothing.
    pub fn new(cutting: Cutting<'a>) -> Self {
        Self { cutting, buffer: String::new(), searched: PIECE_BYTES, tries: 0, forced: 0 }
    }

    /// Places without a boundary where a text had to be cut so far.
    pub fn forced(&self) -> u64 {
        self.forced
    }

    /// The pieces that are known once `text` has come, all of the document's when it ends.
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

    /// The first place at which the buffer is cut, if it is known yet.
    fn next_cut(&mut self, ends_document: bool) -> Option<(usize, Join)> {
        // Every place but the document's end needs the text behind it.
        let known = if ends_document { self.buffer.len() } else { self.buffer.len().saturating_sub(CONTEXT_BYTES) };
        let most = self.buffer.floor_char_boundary(MAX_UNCUT_BYTES);
        loop {
            // The next place to look at may lie behind what has come so far: it is kept as it is.
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

/// Whether a word may end at `at`, which is inside of `text` and between two characters.
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

/// A letter or digit in everybody's tables.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | 'ぁ'..='ん' | 'а'..='я')
}

/// No letter, digit or white space in anybody's tables.
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
