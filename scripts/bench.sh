#!/bin/sh
# Measurements against named peers, on a throw-away server. Every line is a ratio of medians of interleaved runs.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
exec python3 scripts/bench.py "$@"
