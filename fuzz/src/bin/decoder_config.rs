//! A `config.json` or `lit_config.json`, and a checkpoint that matches it.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::decoder_config::check(file));
