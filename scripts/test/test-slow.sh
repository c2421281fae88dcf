#!/bin/sh
# Tests that are too long for CI, with what `make test` built.
set -eu
cd "$(dirname "$0")/../.."
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
cargo build --locked --workspace --bins
cargo test --locked --workspace --lib --bins --tests -- --ignored --nocapture
