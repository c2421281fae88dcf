#!/bin/sh
# Checks the spelling of code and documentation, and the links of the documentation.
set -eu
cd "$(dirname "$0")/../.."
if ! typos --version >/dev/null 2>&1; then
  sh scripts/setup/setup-wheel.sh typos 1.52.0 418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6 typos "$PWD/.deps/typos"
  PATH="$PWD/.deps/typos:$PATH"
  export PATH
fi
typos
python3 scripts/docs/build.py links
