//! Properties that hold for arbitrary bytes, with one function per kind of untrusted file.
//!
//! `cargo test` runs them on `fuzz/seeds` and on mutated copies of the seeds (`hostile_files.rs`).
//! `make fuzz` lets libFuzzer search for bytes that break them. Every function panics if a property
//! is violated: a reader that panics, that accepts an invalid file, that returns a message that is
//! too long, or that uses too much memory.

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

/// Maximum length of a message about a file, whatever the file contains.
const MAX_MESSAGE_BYTES: usize = 2048;

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The name of the fuzz target and of its seeds' folder.
    pub name: &'static str,
    /// Reads arbitrary bytes and checks the result.
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

/// The maximum heap memory for reading a file of n bytes, in bytes: `fixed + n * per_byte`, and
/// never more than `most`. This includes both the old and the new buffer of a growing vector.
/// `fixed` leaves room for the test harness.
#[derive(Debug, Clone, Copy)]
struct Heap {
    fixed: usize,
    per_byte: usize,
    most: usize,
}

impl Heap {
    /// Returns the result of `read`, and checks its memory use. Nothing else may run at the same
    /// time.
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

/// Checks that a message is short and printable, whatever the file contains.
fn refused(error: &impl Display) {
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE_BYTES, "a message of {} bytes", message.len());
    assert!(!message.contains(char::is_control), "a message with control characters: {message:?}");
}
