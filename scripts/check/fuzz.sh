#!/bin/sh
# Lets libFuzzer look for files that break what fuzz/src/bin reads: every target, or the one FUZZ_TARGET, for
# FUZZ_SECONDS (60) or until FUZZ_RUNS inputs were read.
# What it learns is kept in target/fuzz/corpus; an input that breaks something is in target/fuzz/found, and belongs in
# fuzz/seeds/TARGET/found-NAME with the repair, where `cargo test` reads it from then on.
set -eu
cd "$(dirname "$0")/../.."
(cd fuzz && cargo build --release --locked)
host=$(rustc -vV | sed -n 's/^host: //p')
if [ -n "${FUZZ_RUNS:-}" ]; then limit=-runs=$FUZZ_RUNS; else limit=-max_total_time=${FUZZ_SECONDS:-60}; fi
for source in fuzz/src/bin/*.rs; do
  target=$(basename "$source" .rs)
  [ "${FUZZ_TARGET:-$target}" = "$target" ] || continue
  case $target in
    pickle | torch_archive) dictionary=-dict=fuzz/dictionaries/torch.dict ;;
    tokenizer_json | sentencepiece | vocabulary_pair) dictionary=-dict=fuzz/dictionaries/tokenizers.dict ;;
    recipe | *_request | sentencepiece* | parquet*) dictionary= ;;
    *) dictionary=-dict=fuzz/dictionaries/json.dict ;;
  esac
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/found/$target"
  echo "fuzz: $target, $limit" >&2
  # shellcheck disable=SC2086
  "target/fuzz/$host/release/$target" "target/fuzz/corpus/$target" "fuzz/seeds/$target" $dictionary "$limit" \
    -artifact_prefix="target/fuzz/found/$target/" -timeout=60 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0
done
