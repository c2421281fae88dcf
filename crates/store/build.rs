//! Rebuilds the crate when migrations change, because `sqlx::migrate!` does not notice new files.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
