//! What must hold for any bytes whatsoever, one function for each kind of file that nobody here wrote.
//!
//! `cargo test` runs them over `fuzz/seeds` and over changed copies of those (`hostile_files.rs`); `make fuzz` lets
//! libFuzzer look for bytes that break them. Every function panics on what must not be: a reader that panics, that
//! accepts what it should not, that says too much, or that takes more memory than it may.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

pub mod safetensors_header;
pub mod shard_index;
pub mod pickle;
pub mod torch_archive;
pub mod decoder_config;
pub mod tokenizer_json;
pub mod sentencepiece;
pub mod vocabulary_pair;

use std::fmt::Display;

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Longest message about a file, whatever is in it.
const MAX_MESSAGE_BYTES: usize = 2048;

/// One kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The fuzz target, the folder of its seeds.
    pub name: &'static str,
    /// Reads any bytes, and holds what comes of it against what must be so.
    pub check: fn(&[u8]),
}

pub const READERS: [Reader; 8] = [
    Reader { name: "safetensors_header", check: safetensors_header::check },
    Reader { name: "shard_index", check: shard_index::check },
    Reader { name: "pickle", check: pickle::check },
    Reader { name: "torch_archive", check: torch_archive::check },
    Reader { name: "decoder_config", check: decoder_config::check },
    Reader { name: "tokenizer_json", check: tokenizer_json::check },
    Reader { name: "sentencepiece", check: sentencepiece::check },
    Reader { name: "vocabulary_pair", check: vocabulary_pair::check },
];

/// The most memory that reading a file of n bytes may take, in bytes: `fixed + n * per_byte`, and never more than
/// `most`. What a vector needs while it grows, old and new, is counted; `fixed` leaves room for the test harness.
#[derive(Debug, Clone, Copy)]
struct Heap {
    fixed: usize,
    per_byte: usize,
    most: usize,
}

impl Heap {
    /// What `read` makes of `file`. Nothing else may run meanwhile.
    fn hold<'a, T>(self, file: &'a [u8], read: impl FnOnce(&'a [u8]) -> T) -> T {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let made = read(file);
        let took = HEAP.peak_usage().saturating_sub(before);
        let allowed = (self.fixed + file.len() * self.per_byte).min(self.most);
        assert!(took <= allowed, "{took} bytes of memory for a file of {}; {allowed} are allowed", file.len());
        made
    }
}

/// A message for a person: neither long nor unprintable, whatever the file holds.
fn refused(error: &impl Display) {
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE_BYTES, "a message of {} bytes", message.len());
    assert!(!message.contains(char::is_control), "a message with control characters: {message:?}");
}
