#!/bin/sh
# Makes the images that the cluster is built from where there is no container registry: from Debian packages alone.
# usage: images.sh [IMAGE...]      base postgres garage prometheus; rust only where it is named
#
# Their names are their own (inheritune-debian, inheritune-postgres, ...); images.yml beside this file puts them into
# docker-compose.yml. An image that is there already is kept: `docker image rm` has it made anew.
#
# DEBIAN_SOURCES  apt's list of sources (the machine's own)
# GARAGE          the S3 server's binary (built from crates.io by scripts/setup/setup-garage.sh, once, in some 15 minutes)
set -eu
cd "$(dirname "$0")/../.."
docker=${DOCKER:-docker}
# Docker Engine 20.10 may have no BuildKit that needs no download.
DOCKER_BUILDKIT=0
export DOCKER_BUILDKIT
fail() { echo "images: $1" >&2; exit 1; }
have() { "$docker" image inspect "$1" >/dev/null 2>&1; }
"$docker" info >/dev/null 2>&1 || fail "docker does not answer; is it running, and may you use it?"
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM

base() {
  sources=${DEBIAN_SOURCES:-}
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -n "$sources" ] || [ ! -s "$file" ] || sources=$file
  done
  [ -n "$sources" ] || fail "no sources of apt found; name a file: DEBIAN_SOURCES=FILE"
  command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing; run: sudo apt-get install -y mmdebstrap"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$part/base.tar" "$sources"
  "$docker" import -c 'CMD ["bash"]' "$part/base.tar" inheritune-debian:bookworm >/dev/null
}

build() { # IMAGE CONTEXT
  "$docker" build --network host -f "deploy/debian/$1.Dockerfile" -t "inheritune-$1:debian" "$2" > "$part/log" 2>&1 || {
    cat "$part/log" >&2
    fail "inheritune-$1:debian could not be made"
  }
}

postgres() { build postgres deploy/debian; }

prometheus() { build prometheus deploy/debian; }

garage() {
  [ -n "${GARAGE:-}" ] || sh scripts/setup/setup-garage.sh "$PWD/.deps/garage"
  mkdir "$part/garage"
  cp "${GARAGE:-.deps/garage/bin/garage}" "$part/garage/garage"
  build garage "$part/garage"
}

rust() {
  mkdir -p "$part/rust"
  # Hard links where that works: the toolchain has 1.3 GB.
  toolchain=$(rustc --print sysroot)
  cp -al "$toolchain" "$part/rust/toolchain" 2>/dev/null || cp -a "$toolchain" "$part/rust/toolchain"
  rm -rf "$part/rust/toolchain/share"
  # Who this machine trusts, its builder may: crates and wheels may come by way of a proxy with a certificate of its own.
  cp /etc/ssl/certs/ca-certificates.crt "$part/rust/"
  build rust "$part/rust"
}

ensure() { # IMAGE FUNCTION
  have "$1" && { echo "images: $1 is there"; return; }
  echo "images: making $1"
  "$2"
}

ensure inheritune-debian:bookworm base
for image in ${*:-postgres garage prometheus}; do
  case $image in
    base) ;;
    postgres | garage | prometheus | rust) ensure "inheritune-$image:debian" "$image" ;;
    *) fail "no image \`$image\`: base, postgres, garage, prometheus or rust" ;;
  esac
done
