#!/bin/sh
# Builds the base images of the cluster from Debian packages, for machines without a container
# registry.
# usage: images.sh [IMAGE...]      base postgres garage prometheus; rust only if it is listed
#
# The images have their own names (inheritune-debian, inheritune-postgres, ...); images.yml in this
# folder uses them in docker-compose.yml. An existing image is kept; remove it with
# `docker image rm` to build it again.
#
# DEBIAN_SOURCES  apt's list of sources (that of this machine)
# GARAGE          the binary of the S3 server (by default, scripts/setup/setup-garage.sh builds it once
#                 from crates.io, which takes about 15 minutes)
set -eu
cd "$(dirname "$0")/../.."
docker=${DOCKER:-docker}
# On Docker Engine 20.10, BuildKit may need a download.
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
  [ -n "$sources" ] || fail "no apt sources found; set DEBIAN_SOURCES=FILE"
  command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing; run: sudo apt-get install -y mmdebstrap"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$part/base.tar" "$sources"
  "$docker" import -c 'CMD ["bash"]' "$part/base.tar" inheritune-debian:bookworm >/dev/null
}

build() { # IMAGE CONTEXT
  "$docker" build --network host -f "deploy/debian/$1.Dockerfile" -t "inheritune-$1:debian" "$2" > "$part/log" 2>&1 || {
    cat "$part/log" >&2
    fail "cannot build inheritune-$1:debian"
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
  # Use hard links if possible: the toolchain has 1.3 GB.
  toolchain=$(rustc --print sysroot)
  cp -al "$toolchain" "$part/rust/toolchain" 2>/dev/null || cp -a "$toolchain" "$part/rust/toolchain"
  rm -rf "$part/rust/toolchain/share"
  # Let the builder trust the same certificates as this machine: crates and wheels may come through
  # a proxy with its own certificate.
  cp /etc/ssl/certs/ca-certificates.crt "$part/rust/"
  build rust "$part/rust"
}

ensure() { # IMAGE FUNCTION
  have "$1" && { echo "images: $1 exists"; return; }
  echo "images: building $1"
  "$2"
}

ensure inheritune-debian:bookworm base
for image in ${*:-postgres garage prometheus}; do
  case $image in
    base) ;;
    postgres | garage | prometheus | rust) ensure "inheritune-$image:debian" "$image" ;;
    *) fail "unknown image \`$image\`; expected base, postgres, garage, prometheus or rust" ;;
  esac
done
