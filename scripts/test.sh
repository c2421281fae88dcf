#!/bin/sh
# The tests that CI runs. Tests that need a program of another package find it in target/debug.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup-python.sh "$PWD/.deps/python" ||
  echo "setup: no Python gRPC packages; the test of the example client will be skipped" >&2
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
cargo build --locked --workspace --bins
cargo test --locked --workspace --lib --bins --tests --no-fail-fast
