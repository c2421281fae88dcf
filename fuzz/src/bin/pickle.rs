//! The pickle of a checkpoint, without its archive.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::readers::pickle::check(file));
