//! The body of a `SubmitJob` call.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inheritune_fuzz::specs::check_job_request(bytes));
