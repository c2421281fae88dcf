//! Limits how much of a corpus a tokenizer is trained on, because training keeps every distinct
//! word in memory at many times its length.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// Maximum amount of text; word frequencies settle long before that.
const MAX_BYTES: usize = 1024 * 1024 * 1024;
/// Maximum total cost of distinct words. A byte of a short word costs 1, a byte of a long word
/// costs 3. Per unit of cost, training keeps about 120 bytes for short words and nearly 150 for
/// long ones.
const MAX_COST: usize = 7 * 1024 * 1024;
/// Maximum length of a short word in bytes.
const SHORT_WORD: usize = 16;
/// Maximum length of a word in bytes. Longer words teach the tokenizer only their own pieces, so
/// they are dropped.
const MAX_WORD_LEN: usize = 4096;

/// The text taken so far.
#[derive(Debug, Default)]
pub(super) struct TrainingText {
    bytes: usize,
    cost: usize,
    words: HashSet<u64>,
    hasher: BuildHasherDefault<DefaultHasher>,
}

impl TrainingText {
    /// Number of bytes taken so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether enough text has been taken.
    pub(super) fn is_reached(&self) -> bool {
        self.bytes >= MAX_BYTES || self.cost >= MAX_COST
    }

    /// Counts `text` and returns the part of it to train on.
    pub(super) fn take(&mut self, text: String) -> String {
        self.bytes += text.len();
        let mut is_long = false;
        for word in text.split_whitespace() {
            is_long |= word.len() > MAX_WORD_LEN;
            if word.len() <= MAX_WORD_LEN && self.words.insert(self.hasher.hash_one(word)) {
                self.cost += if word.len() <= SHORT_WORD { word.len() } else { 3 * word.len() };
            }
        }
        if !is_long {
            return text;
        }
        let kept = text.split_inclusive(char::is_whitespace).filter(|word| word.len() <= MAX_WORD_LEN);
        kept.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d6_different_words_and_not_their_number_are_bounded() {
        let mut text = TrainingText::default();
        for _ in 0..100 {
            assert_eq!(text.take("the same words again".to_owned()), "the same words again");
        }
        assert_eq!((text.bytes(), text.cost, text.is_reached()), (2000, 17, false));
        let long = format!("a {} b", "x".repeat(MAX_WORD_LEN + 1));
        assert_eq!(text.take(long), "a b");
        let mut number = 0;
        while !text.is_reached() {
            number += 1;
            text.take((0..1000).map(|i| format!("word{number}x{i} ")).collect());
        }
        assert!(text.bytes() < 20 << 20, "{}", text.bytes());
    }
}
