//! The body of a `CreateRun` call.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inheritune_fuzz::specs::check_run_request(bytes));
