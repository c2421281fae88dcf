#!/bin/sh
# The cluster of docker-compose.yml, end to end, on this machine's docker and without a registry: base images from Debian packages,
# our own from what was built here, a run with two trainers and two evaluators, faults, roles, TLS. Leaves images behind, nothing else.
#
# CLUSTER_PROFILE  dev or release (dev)
# CLUSTER_DEMO=1   the demo's recipe, too: with release in some 15 minutes
# DOCKER, COMPOSE  what to call (docker; `docker compose`, else docker-compose)
set -eu
cd "$(dirname "$0")/../.."
profile=${CLUSTER_PROFILE:-dev}
docker=${DOCKER:-docker}
"$docker" info >/dev/null 2>&1 || { echo "test-cluster: docker does not answer; is it running, and may you use it?" >&2; exit 1; }
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
  echo "test-cluster: making $image"
  # The builder that every engine has; it says each time that it is old.
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
