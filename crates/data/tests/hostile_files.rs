//! Runs the checks of the fuzz targets on their seeds, and on many mutated copies of them.

#![allow(clippy::unwrap_used)]

mod readers;

use std::path::Path;

/// Mutated copies per seed.
const COPIES: u64 = 300;

/// Returns a deterministic pseudo-random number generator.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn check_seeds(name: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(name);
    let mut read = 0;
    for entry in std::fs::read_dir(seeds).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        check(&seed);
        read += 1;
        for copy in 0..COPIES {
            let mut next = numbers(copy + 1);
            let mut bytes = seed.clone();
            for _ in 0..=next() % 3 {
                let at = next() as usize % (bytes.len() + 1);
                match next() % 4 {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, next() as u8),
                    _ if at < bytes.len() => bytes[at] = next() as u8,
                    _ => {}
                }
            }
            check(&bytes);
        }
    }
    assert!(read > 0);
}

#[test]
fn rows_of_json_break_nothing() {
    check_seeds("corpus_rows", readers::corpus_rows::check);
}

#[test]
fn rows_of_parquet_break_nothing() {
    check_seeds("parquet_rows", readers::parquet_rows::check);
}
