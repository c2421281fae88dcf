#!/bin/sh
# Tests that are too long for CI.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
cargo build --locked --release --workspace --bins
cargo test --locked --release --workspace --tests -- --ignored --nocapture
