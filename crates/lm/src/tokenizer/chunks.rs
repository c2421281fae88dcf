//! Whether a text may be cut at a place: tried on the text around it.

use super::Tokenizer;

/// How the two parts of a text that is cut have the ids of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// As they are.
    Keep,
    /// Without the space that the second begins with: the tokenizer puts one before every text.
    DropSpace,
}

impl Tokenizer {
    /// Whether `left` and `right`, encoded each for itself, have the ids of both together; `None` where they have not.
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
