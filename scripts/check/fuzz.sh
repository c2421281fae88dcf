#!/bin/sh
# Runs the fuzz targets in fuzz/src/bin with libFuzzer: all of them, or only FUZZ_TARGET, for
# FUZZ_SECONDS (60) or FUZZ_RUNS inputs. The corpus is kept in target/fuzz/corpus. An input that
# breaks something is written to target/fuzz/found. Add it as fuzz/seeds/TARGET/found-NAME with the
# fix, so that `cargo test` reads it.
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
