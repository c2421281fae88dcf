//! `tokenizer.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::tokenizer_json::check(file));
