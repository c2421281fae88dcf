#!/bin/sh
# Tests the cluster of docker-compose.yml end to end, on this machine's docker and without a
# registry: base images from Debian packages, our own images from the local build, a run with two
# trainers and two evaluators, faults, roles, TLS. Leaves only images behind.
#
# CLUSTER_PROFILE  dev or release (dev)
# CLUSTER_DEMO=1   also run the demo's recipe (about 15 minutes in release)
# DOCKER, COMPOSE  commands to use (docker; `docker compose`, otherwise docker-compose)
set -eu
cd "$(dirname "$0")/../.."
profile=${CLUSTER_PROFILE:-dev}
docker=${DOCKER:-docker}
"$docker" info >/dev/null 2>&1 || { echo "test-cluster: docker does not respond; check that it is running and that you may use it" >&2; exit 1; }
PATH="$PWD/.deps/postgres/pginstall/bin:$PATH"
export PATH

sh deploy/debian/images.sh
"${CARGO:-cargo}" build --locked --workspace --bins --profile "$profile"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' INT TERM
sh scripts/cluster/stage-images.sh "$profile" "$stage/context"
build() { # IMAGE OPTIONS...
  image=$1
  shift
  echo "test-cluster: building $image"
  # The classic builder, which every engine has; it prints a deprecation warning each time.
  DOCKER_BUILDKIT=0 "$docker" build -t "$image" "$@" > "$stage/log" 2>&1 || { cat "$stage/log" >&2; exit 1; }
}
debian="--build-arg DEBIAN_IMAGE=inheritune-debian:bookworm --build-arg S3_IMAGE=inheritune-garage:debian"
# shellcheck disable=SC2086
build inheritune-base:latest $debian -f deploy/Dockerfile --target base .
# shellcheck disable=SC2086
build inheritune-s3:prebuilt $debian -f deploy/Dockerfile --target s3 .
build inheritune:prebuilt -f deploy/prebuilt.Dockerfile --target runtime-prebuilt "$stage/context"
build inheritune-torch:prebuilt -f deploy/prebuilt.Dockerfile --target runtime-torch-prebuilt "$stage/context"
rm -rf "$stage/context"
[ "$profile" = dev ] && profile=debug
python3 scripts/cluster/test_cluster.py --programs "target/$profile" ${CLUSTER_DEMO:+--demo} "$@"
