#!/bin/sh
# Builds Garage, the S3-compatible server for benchmarks and for clusters without a registry. It is
# a separate program and never linked.
# usage: setup-garage.sh DEST    -> DEST/bin/garage
set -eu
version=2.5.0
dest=${1:?usage: $0 DEST}
[ "$(cat "$dest/version" 2>/dev/null)" = "$version" ] && exit 0
echo "setup: building Garage $version (about 15 minutes, once)"
rm -rf "$dest"
# Garage's own speed is not measured, so prefer a fast build.
CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_TARGET_DIR="$dest/target" cargo install -q garage \
  --version "$version" --locked --no-default-features --features bundled-libs,lmdb --root "$dest"
rm -rf "$dest/target"
echo "$version" > "$dest/version"
