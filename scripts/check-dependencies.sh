#!/bin/sh
# Licenses, sources and bans of all dependencies by deny.toml; advisories too, where their database can be had.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
"$cargo" deny --version >/dev/null 2>&1 || {
  echo "check: no cargo-deny, dependencies are not checked; install it with: cargo install cargo-deny --locked" >&2
  exit 0
}
"$cargo" deny --offline --locked check --hide-inclusion-graph bans licenses sources
# The database of advisories comes from the network; one that was fetched before will do.
"$cargo" deny --locked fetch db >/dev/null 2>&1 ||
  echo "check: the advisories cannot be fetched; an older database is used, where there is one" >&2
if [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then
  "$cargo" deny --locked check --disable-fetch --hide-inclusion-graph advisories
else
  echo "check: no database of advisories; they are not checked" >&2
fi
