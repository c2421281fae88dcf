//! Checks that the targets in `bin/` share with `cargo test`. See `readers/mod.rs` in the tests of
//! each crate.

#[path = "../../crates/checkpoint/tests/readers/mod.rs"]
pub mod readers;

#[path = "../../crates/data/tests/readers/mod.rs"]
pub mod data_readers;
#[path = "../../crates/cli/tests/readers/mod.rs"]
pub mod specs;
