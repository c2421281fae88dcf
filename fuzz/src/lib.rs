//! What the targets in `bin/` share with `cargo test`: see `crates/domain/tests/readers/mod.rs`.

#[path = "../../crates/domain/tests/readers/mod.rs"]
pub mod readers;

#[path = "../../crates/data/tests/readers/mod.rs"]
pub mod data_readers;
