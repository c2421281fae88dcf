#!/bin/sh
# Measurements against named peers, on a throw-away server. Every line is a ratio of medians of interleaved runs.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH
peers="mergekit==0.1.5"
if [ "$(cat .deps/bench/packages 2>/dev/null)" != "$peers" ]; then
  echo "bench: fetching mergekit (several GB with its PyTorch, once)"
  rm -rf .deps/bench
  python3 -m venv .deps/bench
  PIP_ROOT_USER_ACTION=ignore .deps/bench/bin/python -m pip install -q $peers
  echo "$peers" > .deps/bench/packages
fi
exec python3 scripts/bench.py --mergekit-python .deps/bench/bin/python "$@"
