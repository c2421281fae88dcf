#!/bin/sh
# Collects the contents of the images from a build: programs without debug information, and
# libtorch's libraries.
# usage: stage-images.sh PROFILE DEST    -> DEST/{bin,torch/bin,torch/lib}
set -eu
cd "$(dirname "$0")/../.."
profile=${1:?usage: $0 PROFILE DEST}
dest=${2:?usage: $0 PROFILE DEST}
[ "$profile" = dev ] && profile=debug
libtorch=${LIBTORCH:-.deps/libtorch}
rm -rf "$dest"
mkdir -p "$dest/bin" "$dest/torch/bin" "$dest/torch/lib"
program() { # NAME FOLDER
  [ -x "target/$profile/$1" ] || { echo "stage: target/$profile/$1 is not built" >&2; exit 1; }
  strip --strip-debug -o "$dest/$2/$1" "target/$profile/$1"
}
program inheritune bin
program inheritune-scheduler bin
program inheritune-slicer bin
program inheritune-trainer torch/bin
program inheritune-evaluator torch/bin
for library in "$libtorch"/lib/*.so "$libtorch"/lib/*.so.*; do
  # libtorch.so is a linker script.
  case $library in */libtorch.so) ;; *) ln "$library" "$dest/torch/lib/" 2>/dev/null || cp "$library" "$dest/torch/lib/" ;; esac
done
