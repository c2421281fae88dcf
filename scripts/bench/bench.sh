#!/bin/sh
# Measures against named peers, on a temporary server. Every line is a ratio of medians of
# alternating runs.
set -eu
cd "$(dirname "$0")/../.."
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
harness="lm_eval[hf]==0.4.13 torch==2.11.0"
if [ "$(cat .deps/lm-eval/packages 2>/dev/null)" != "$harness" ]; then
  echo "bench: fetching lm-evaluation-harness (several GB with its PyTorch, once)"
  rm -rf .deps/lm-eval
  python3 -m venv .deps/lm-eval
  # shellcheck disable=SC2086
  PIP_ROOT_USER_ACTION=ignore .deps/lm-eval/bin/python -m pip install -q $harness
  echo "$harness" > .deps/lm-eval/packages
fi
sh scripts/setup/setup-garage.sh "$PWD/.deps/garage"
# The job queue's peer is a separate workspace.
cargo build --release --locked --manifest-path bench/rival-queue/Cargo.toml --target-dir .deps/rival-queue
cargo build --release --locked -p inheritune-store --example download_upload
cargo build --release --locked -p inheritune-lm --example steps
cargo build --release --locked -p inheritune-runtime --example bench_queue -p inheritune-scheduler --example bench_watch
exec python3 scripts/bench/bench.py --rival-queue .deps/rival-queue/release/rival-queue --mergekit-python .deps/bench/bin/python --garage .deps/garage/bin/garage \
  --lm-eval-python .deps/lm-eval/bin/python --steps target/release/examples/steps "$@"
