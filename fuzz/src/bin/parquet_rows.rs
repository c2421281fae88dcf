//! Parquet files of a corpus or a benchmark.
#![no_main]

use std::sync::Once;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    // libFuzzer's hook aborts on every panic, but the readers catch panics of the parquet library.
    // A panic that is not caught still ends the process.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    inheritune_fuzz::data_readers::parquet_rows::check(file);
});
