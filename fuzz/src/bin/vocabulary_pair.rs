//! `vocab.json` and `merges.txt`, with a NUL between them.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::vocabulary_pair::check(file));
