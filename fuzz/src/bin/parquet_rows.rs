//! Parquet files of a corpus or a benchmark.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| inheritune_fuzz::data_readers::parquet_rows::check(file));
