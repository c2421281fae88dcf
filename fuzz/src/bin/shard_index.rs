//! A shard index in JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::shard_index::check(file));
