//! The start of a safetensors file: the length and the JSON header.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::safetensors_header::check(file));
