#!/bin/sh
# Installs the two versions of transformers in which exports must load, and PyTorch to run them.
# usage: setup-transformers.sh DEST    -> DEST/python/bin/python has transformers 5; with DEST/transformers-4 in front of
#                                         PYTHONPATH it has transformers 4
#
# PyTorch's CUDA wheel takes about 5 GB, of which 3.5 GB are kept. If you have an index of its CPU
# wheels, name it in INHERITUNE_TORCH_INDEX; 1 GB is then enough.
set -eu
dest=${1:?usage: $0 DEST}
torch="torch==2.11.0"
five="transformers==5.24.0 numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2 tiktoken==0.14.0 jinja2==3.1.6"
four="transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 safetensors==0.8.0 numpy==2.4.6"
packages="$torch $five / $four"
[ "$(cat "$dest/packages" 2>/dev/null)" = "$packages" ] && exit 0
echo "setup: fetching PyTorch and two versions of transformers (about 5 GB, once)"
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
# A virtual environment cannot be moved, so create it in place.
rm -rf "$dest"
mkdir "$dest"
PIP_ROOT_USER_ACTION=ignore
export PIP_ROOT_USER_ACTION
python3 -m venv "$dest/python"
pip="$dest/python/bin/python -m pip install -q --no-cache-dir --only-binary=:all:"
# shellcheck disable=SC2086
$pip ${INHERITUNE_TORCH_INDEX:+--index-url "$INHERITUNE_TORCH_INDEX"} $torch
# shellcheck disable=SC2086
$pip $five
# shellcheck disable=SC2086
$pip --target "$part" $four
# Remove what only a GPU, or a compiler for it, loads.
packages_dir=$("$dest/python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$packages_dir/triton" "$packages_dir/torch/include" "$packages_dir/torch/lib/libtorch_cuda_linalg.so"
[ ! -d "$packages_dir/nvidia" ] || find "$packages_dir/nvidia" -type f \
  \( -name 'libcudnn_*' -o -name 'libnvrtc.alt.*' -o -name 'libcusolverMg.*' -o -name 'libnvperf_*' -o -name '*.a' -o -name '*.bc' \) -delete
chmod -R a+rX "$part"
mv "$part" "$dest/transformers-4"
echo "$packages" > "$dest/packages"
