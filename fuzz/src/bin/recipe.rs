//! A recipe file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inheritune_fuzz::specs::check_recipe(bytes));
