//! What the targets in `bin/` share with `cargo test`: see `readers/mod.rs` of each crate's tests.

#[path = "../../crates/checkpoint/tests/readers/mod.rs"]
pub mod readers;

#[path = "../../crates/data/tests/readers/mod.rs"]
pub mod data_readers;
#[path = "../../crates/cli/tests/readers/mod.rs"]
pub mod specs;
