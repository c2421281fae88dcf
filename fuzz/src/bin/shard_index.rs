//! An index of shards: JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::shard_index::check(file));
