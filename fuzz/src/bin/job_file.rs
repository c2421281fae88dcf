//! A job file, in TOML and in JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inheritune_fuzz::specs::check_job_file(bytes));
