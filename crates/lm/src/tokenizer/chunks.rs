//! Tests whether a text can be cut at a position, by encoding the text around it.

use super::Tokenizer;

/// How to encode the second part of a cut text so that the ids equal those of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Encode it unchanged.
    Keep,
    /// Encode it without its leading space: the tokenizer adds one before every text.
    DropSpace,
}

impl Tokenizer {
    /// Returns how `left` and `right` can be encoded separately with the same ids as both together;
    /// `None` if they cannot.
    pub fn join_at(&self, left: &str, right: &str) -> Option<Join> {
        let whole = self.encode(&[left, right].concat()).ok()?;
        let start = self.encode(left).ok()?;
        let end = whole.strip_prefix(start.as_slice())?;
        let is_end = |text: &str| self.encode(text).is_ok_and(|ids| ids == end);
        if is_end(right) {
            return Some(Join::Keep);
        }
        right.strip_prefix(' ').filter(|without| is_end(without)).map(|_| Join::DropSpace)
    }
}
