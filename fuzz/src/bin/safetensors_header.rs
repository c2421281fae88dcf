//! The start of a safetensors file: length and JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::safetensors_header::check(file));
