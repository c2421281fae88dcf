#!/bin/sh
# Pins the images of docker-compose.yml: writes the current digests of their tags to `.env`, so that
# later changes of the tags have no effect. Needs docker and access to a registry. Run it again to
# update the digests.
# usage: pin-images.sh        ENV_FILE sets another file than .env, DOCKER another docker command
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "pin: $1" >&2; exit 1; }
env_file=${ENV_FILE:-.env}
docker=${DOCKER:-docker}
[ -s "$env_file" ] || fail "no $env_file; run first: sh deploy/compose/init.sh"
case $(sed -n 's/^CLUSTER_IMAGES=//p' "$env_file") in
  debian) fail "$env_file uses images of deploy/debian/images.sh; local images have no digests in a registry" ;;
esac
umask 077
cp "$env_file" "$env_file.pins"
trap 'rm -f "$env_file.pins"' EXIT
trap 'exit 1' INT TERM
# The names and tags are the defaults in docker-compose.yml.
sed -n 's/.*\${\([A-Z0-9_]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' docker-compose.yml | grep -v '^INHERITUNE_\|^CLUSTER_' | sort -u |
  while read -r name image; do
    "$docker" pull -q "$image" >/dev/null || fail "cannot pull $image"
    digest=$("$docker" image inspect --format '{{index .RepoDigests 0}}' "$image") || fail "$image has no digest"
    case $digest in *@sha256:*) ;; *) fail "$image has no digest: $digest" ;; esac
    sed "/^$name=/d" "$env_file.pins" > "$env_file.pins.new"
    echo "$name=$image@${digest#*@}" >> "$env_file.pins.new"
    mv -f "$env_file.pins.new" "$env_file.pins"
    echo "pin: $name=$image@${digest#*@}"
  done
mv -f "$env_file.pins" "$env_file"
trap - EXIT
