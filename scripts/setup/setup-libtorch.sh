#!/bin/sh
# Assembles a CPU libtorch 2.11.0 for tch 0.24 from Python wheels.
# usage: setup-libtorch.sh DEST    -> DEST/{lib,include,build-version}
#
# PyTorch's wheel contains libtorch and its headers. Its libtorch_cpu.so needs two small CUDA
# libraries even on a machine without a GPU; no other part of CUDA is installed.
set -eu
version=2.11.0
# Versions and digests; torch's version is the one above.
requirements=$(cd "$(dirname "$0")" && pwd)/requirements/libtorch.txt
dest=${1:?usage: $0 DEST}
[ "$(cat "$dest/build-version" 2>/dev/null)" = "$version" ] && exit 0
case "$(uname -s)-$(uname -m)" in
Linux-x86_64) ;;
*) echo "setup: this script installs libtorch for Linux x86_64 only; elsewhere install libtorch $version and set LIBTORCH to its folder" >&2; exit 1 ;;
esac
echo "setup: fetching libtorch $version (about 530 MB, once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
mkdir "$part/wheels" "$part/out" "$part/out/lib"
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
  -d "$part/wheels" --require-hashes -r "$requirements"
python3 - "$part/wheels" "$part/out" <<'EOF'
import glob, os, shutil, sys, zipfile

wheels, out = sys.argv[1:]
libraries = {"torch/lib/libc10.so", "torch/lib/libtorch_cpu.so", "torch/lib/libgomp.so.1"}
cuda_libraries = {"libcupti.so.13", "libcudart.so.13"}
for wheel in glob.glob(wheels + "/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name, base = entry.filename, os.path.basename(entry.filename)
            if name in libraries or base in cuda_libraries:
                target = f"{out}/lib/{base}"
            elif name.startswith("torch/include/") and not name.endswith("/"):
                target = f"{out}/{name[len('torch/'):]}"
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(entry) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
EOF
# torch-sys passes -ltorch. The real libtorch.so needs libtorch_cuda and defines nothing that we
# use.
echo 'INPUT(-ltorch_cpu)' > "$part/out/lib/libtorch.so"
echo "$version" > "$part/out/build-version"
rm -rf "$dest"
mv "$part/out" "$dest"
