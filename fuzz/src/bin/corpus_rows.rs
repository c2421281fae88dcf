//! Rows of a corpus: JSON lines, arrays, and files detected as such.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::data_readers::corpus_rows::check(file));
