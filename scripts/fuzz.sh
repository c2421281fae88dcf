#!/bin/sh
# Lets libFuzzer look for files that break what fuzz/src/bin reads: each target for FUZZ_SECONDS, or the one FUZZ_TARGET.
# What it learns is kept in target/fuzz/corpus; a file that breaks something is in target/fuzz/found, and belongs into
# fuzz/seeds/TARGET/found-NAME with the repair, where `cargo test` reads it from then on.
set -eu
cd "$(dirname "$0")/.."
(cd fuzz && cargo build --release --locked)
host=$(rustc -vV | sed -n 's/^host: //p')
for target in ${FUZZ_TARGET:-safetensors_header shard_index pickle torch_archive decoder_config corpus_rows parquet_rows}; do
  case $target in
    pickle | torch_archive) dictionary=torch ;;
    *) dictionary=json ;;
  esac
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/found/$target"
  echo "fuzz: $target for ${FUZZ_SECONDS:-60} seconds" >&2
  "target/fuzz/$host/release/$target" "target/fuzz/corpus/$target" "fuzz/seeds/$target" \
    -dict="fuzz/dictionaries/$dictionary.dict" -artifact_prefix="target/fuzz/found/$target/" \
    -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0
done
