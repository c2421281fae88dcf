//! `tokenizer.json`, before Hugging Face's library reads it.

use inheritune_checkpoint::tokenizer_json::{MAX_GROWTH, TokenizerJson};

use super::{Heap, refused};

/// A value of a part takes about a hundred bytes. There are at most 65,536.
const HEAP: Heap = Heap { fixed: 128 << 10, per_byte: 160, most: 256 << 20 };

pub fn check(json: &[u8]) {
    match HEAP.hold(json, TokenizerJson::parse) {
        Ok(read) => {
            assert!(read.entries <= u64::from(u32::MAX));
            assert!((1..=MAX_GROWTH * MAX_GROWTH).contains(&read.growth));
            // Do not parse it as a `Value`: there may be numbers beyond the range of floats in
            // parts that are not read.
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok());
        }
        Err(error) => refused(&error),
    }
}
