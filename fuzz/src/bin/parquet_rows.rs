//! Parquet files of a corpus or a benchmark.
#![no_main]

use std::sync::Once;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    // libFuzzer's hook ends the process on every panic, and the readers catch those of the parquet library. One that
    // nobody catches still ends it.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    inheritune_fuzz::data_readers::parquet_rows::check(file);
});
