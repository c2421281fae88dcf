#!/bin/sh
# Builds the documentation as a book (target/book/index.html) and the API documentation of all
# crates.
set -eu
cd "$(dirname "$0")/../.."
python3 scripts/docs/build.py links
cargo run --quiet --locked --package inheritune-cli --example reference target/reference
python3 scripts/docs/build.py source target/reference
mdbook=mdbook
if ! "$mdbook" --version >/dev/null 2>&1; then
  version=0.4.52
  mdbook=$PWD/.deps/mdbook/bin/mdbook
  [ -x "$mdbook" ] || {
    echo "docs: compiling mdbook $version (a few minutes, once)"
    cargo install --quiet --locked --version "$version" --no-default-features --features search --root .deps/mdbook mdbook
  }
fi
cp docs/book.toml target/book.toml
"$mdbook" build target
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps
echo "docs: target/book/index.html, target/doc/inheritune_domain/index.html"
