#!/bin/sh
# Installs the Python packages for the test of the example client into a folder of the project.
# usage: setup-python.sh DEST    -> a folder for PYTHONPATH
set -eu
dest=${1:?usage: $0 DEST}
requirements=$(cd "$(dirname "$0")" && pwd)/requirements/python.txt
cmp -s "$requirements" "$dest/packages" && exit 0
echo "setup: fetching the Python gRPC packages (once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
PIP_ROOT_USER_ACTION=ignore python3 -m pip install -q --only-binary=:all: --target "$part" --require-hashes -r "$requirements"
cp "$requirements" "$part/packages"
rm -rf "$dest"
chmod -R a+rX "$part"
mv "$part" "$dest"
