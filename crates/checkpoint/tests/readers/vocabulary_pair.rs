//! `vocab.json` and `merges.txt`, separated by a NUL byte.

use inheritune_checkpoint::vocabulary_pair::VocabularyPair;

use super::{Heap, refused};

/// Every token is stored in a hash set.
const HEAP: Heap = Heap { fixed: 128 << 10, per_byte: 64, most: 512 << 20 };

pub fn check(files: &[u8]) {
    let end = files.iter().position(|byte| *byte == 0).unwrap_or(files.len());
    let (vocab, merges) = (&files[..end], files.get(end + 1..).unwrap_or_default());
    match HEAP.hold(files, |_| VocabularyPair::parse(vocab, merges)) {
        Ok(pair) => {
            assert!((1..=u64::from(u32::MAX)).contains(&pair.entries));
            assert_eq!(VocabularyPair::of_vocabulary(vocab), Ok(pair));
        }
        Err(error) => refused(&error),
    }
}
