#!/bin/sh
# Runs a recipe on a standalone server: an embedded Postgres, a local folder, every service in one
# process.
# usage: demo.sh RECIPE.toml      You may interrupt and restart it at any time: finished work is kept.
#
# DEMO_DIR    folder for data, log and address file      (demo)
# DEMO_TEXT   a text, JSONL, .gz or .zst file to use instead of the King James Bible
# REPORT_DIR  folder for the report                      (report)
set -eu
cd "$(dirname "$0")/../.."
recipe=${1:?usage: $0 RECIPE.toml}
dir=${DEMO_DIR:-demo}
report=${REPORT_DIR:-report}
name=$(basename "$recipe" .toml)
mkdir -p "$dir"
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH

corpus=$dir/corpus.jsonl
if [ -n "${DEMO_TEXT:-}" ]; then
  corpus=$DEMO_TEXT
  [ -r "$corpus" ] || { echo "demo: DEMO_TEXT=$corpus cannot be read" >&2; exit 2; }
elif [ ! -s "$corpus" ]; then
  echo "demo: fetching the corpus"
  sh scripts/demo/fetch-demo-corpus.sh "$corpus"
fi

# A killed demo leaves its server running, which still holds the folder: let it save and stop.
runs() { [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' < "/proc/$1/cmdline" | grep -q "$2"; }
shell= left=
[ ! -r "$dir/running" ] || read -r shell left < "$dir/running"
if [ -n "$left" ] && runs "$left" "inheritune-standalone --data-dir $dir/data "; then
  runs "$shell" demo.sh && { echo "demo: process $shell already runs a demo in $dir; use another folder with DEMO_DIR=other" >&2; exit 1; }
  echo "demo: stopping the server that a killed demo left running"
  kill -TERM "$left" 2>/dev/null || true
  waited=0
  while runs "$left" inheritune-standalone; do
    waited=$((waited + 1))
    [ "$waited" -le 200 ] || { echo "demo: process $left does not stop" >&2; exit 1; }
    sleep 0.2
  done
fi

rm -f "$dir/address"
target/release/inheritune-standalone --data-dir "$dir/data" --listen 127.0.0.1:0 --address-file "$dir/address" \
  --allow-uri . --allow-uri "$dir" --allow-uri "$(dirname "$corpus")" \
  > "$dir/standalone.log" 2>&1 &
server=$!
echo "$$ $server" > "$dir/running"
stop() {
  trap - EXIT INT TERM
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  rm -f "$dir/running" "$dir/address"
}
trap stop EXIT
trap 'echo; echo "demo: stopping; run the same command again to continue"; stop; exit 130' INT TERM
waited=0
until [ -s "$dir/address" ]; do
  kill -0 "$server" 2>/dev/null || { echo "demo: the server did not start:" >&2; tail -n 5 "$dir/standalone.log" >&2; exit 1; }
  waited=$((waited + 1))
  [ "$waited" -le 300 ] || { echo "demo: the server did not start in 60 s; see $dir/standalone.log" >&2; exit 1; }
  sleep 0.2
done
INHERITUNE_SERVER=$(cat "$dir/address")
export INHERITUNE_SERVER

echo "demo: server at $INHERITUNE_SERVER, log in $dir/standalone.log"
target/release/inheritune run create "$recipe" --corpus "$corpus" --request-id-from-recipe --watch \
  --report "$report" --export "$dir/models/$name" --force || {
  code=$?
  kill -0 "$server" 2>/dev/null || echo "demo: the server is gone; run the same command again to continue" >&2
  exit "$code"
}
