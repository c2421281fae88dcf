#!/bin/sh
# Runs the tests that CI runs. A test that needs a program of another package finds it in
# target/debug, where cargo puts the programs of every package that has tests.
set -eu
cd "$(dirname "$0")/../.."
sh scripts/setup/setup-python.sh "$PWD/.deps/python" ||
  echo "setup: no Python gRPC packages; the test of the example client will be skipped" >&2
if [ -z "${INHERITUNE_TRANSFORMERS_PYTHON:-}" ]; then
  if sh scripts/setup/setup-transformers.sh "$PWD/.deps/transformers"; then
    export INHERITUNE_TRANSFORMERS_PYTHON="$PWD/.deps/transformers/python/bin/python"
    export INHERITUNE_TRANSFORMERS_457="$PWD/.deps/transformers/transformers-4"
  else
    echo "setup: no transformers; the test that loads every export with it will be skipped" >&2
  fi
fi
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
cargo test --locked --workspace --lib --bins --tests --no-fail-fast
