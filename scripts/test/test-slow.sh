#!/bin/sh
# Runs the tests that are too long for CI, with the build of `make test`.
set -eu
cd "$(dirname "$0")/../.."
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
cargo build --locked --workspace --bins
cargo test --locked --workspace --lib --bins --tests -- --ignored --nocapture
