//! `vocab.json` and `merges.txt`, separated by a NUL byte.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::vocabulary_pair::check(file));
