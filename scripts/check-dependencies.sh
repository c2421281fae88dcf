#!/bin/sh
# Licenses, sources and bans of all dependencies by deny.toml; advisories too, where their database can be had.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
"$cargo" deny --version >/dev/null 2>&1 || {
  echo "check: no cargo-deny, dependencies are not checked; install it with: cargo install cargo-deny --locked" >&2
  exit 0
}
# It reads the manifests of all crates, also of those that only other platforms link.
"$cargo" fetch --locked >/dev/null 2>&1 || true
"$cargo" metadata --offline --locked --all-features --format-version 1 >/dev/null 2>&1 || {
  echo "check: some crates are not here and cannot be fetched; dependencies are not checked" >&2
  exit 0
}
"$cargo" deny --offline --locked check --hide-inclusion-graph bans licenses sources
# The database of advisories comes from the network; one that was fetched before will do.
"$cargo" deny --locked fetch db >/dev/null 2>&1 ||
  echo "check: the advisories cannot be fetched; an older database is used, where there is one" >&2
if ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
  "$cargo" deny --offline --locked check --hide-inclusion-graph advisories
else
  echo "check: no database of advisories; they are not checked" >&2
fi
