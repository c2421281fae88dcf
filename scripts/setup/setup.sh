#!/bin/sh
# Sets up everything that building, testing and the demo need besides the Rust toolchain. Fast if it
# has run before.
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "setup: $1" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
have cargo || fail "no Rust toolchain; install one with rustup (Rust 1.94 or newer)"
missing=
have c++ || missing="$missing g++"
have python3 || missing="$missing python3"
{ have python3 && python3 -m pip --version >/dev/null 2>&1; } || missing="$missing python3-pip"
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "setup: installing$missing"
    # shellcheck disable=SC2086
    { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >/dev/null || fail "could not install$missing"
  else
    fail "missing packages; run: sudo apt-get install -y$missing"
  fi
fi
sh scripts/setup/setup-libtorch.sh "${LIBTORCH:-$PWD/.deps/libtorch}"
sh scripts/setup/setup-postgres.sh "$PWD/.deps/postgres"
