#!/bin/sh
# Creates the files that docker-compose.yml needs and that do not belong in git: secrets, the
# services' configuration, and `.env`, which refers to them.
# usage: init.sh [--tls] [--debian]
#
# Run it again after changing `.env` or deploy/compose. Existing secrets are kept.
#
#   --tls      use TLS and a bearer token for gRPC from now on; runs `inheritune certs init`
#   --debian   use the images of deploy/debian/images.sh from now on, instead of those of Docker Hub
#
# These settings come from the environment, or else from `.env`, or else have the values shown:
#   CLUSTER_DIR      folder for secrets and configuration (.cluster)
#   CLUSTER_DATA     folder with the corpora and models that jobs may read (demo)
#   CLUSTER_THREADS  threads per training or evaluation (all cores)
#   SERVICE_MEMORY=2g TRAINER_MEMORY=32g EVALUATOR_MEMORY=32g POSTGRES_MEMORY=2g S3_MEMORY=2g
#                    memory limits, in the syntax of docker
#   SCHEDULER_PORT=7600 POSTGRES_PORT=7605 S3_PORT=7606 GRAFANA_PORT=7607 PROMETHEUS_PORT=7608
#   ENV_FILE         file to use instead of .env; pass it to docker-compose with --env-file
#   INHERITUNE       the command-line client, for --tls (target/release/inheritune)
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "init: $1" >&2; exit 1; }
env_file=${ENV_FILE:-.env}
mark="# Made by deploy/compose/init.sh. Change values here, then run it again."
[ ! -e "$env_file" ] || [ "$(head -n 1 "$env_file")" = "$mark" ] ||
  fail "$env_file was not created by init.sh; move it away, or use another file: ENV_FILE=FILE"
tls=
for argument in "$@"; do
  case $argument in
    --tls) tls=yes ;;
    --debian) CLUSTER_IMAGES=debian ;;
    *) fail "unknown option $argument; expected --tls or --debian" ;;
  esac
done
umask 077
echo "$mark" > "$env_file.part"

setting() { # NAME DEFAULT
  eval "value=\${$1:-}"
  [ -n "$value" ] || value=$(sed -n "s/^$1=//p" "$env_file" 2>/dev/null) || true
  [ -n "$value" ] || value=$2
  case $value in *[!A-Za-z0-9/._:@+-]*) fail "$1=$value: only letters, digits and / . _ : @ + - are allowed" ;; esac
  eval "$1=\$value"
  [ -z "$value" ] || echo "$1=$value" >> "$env_file.part"
}
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/${1#./}" ;; esac; }

setting CLUSTER_DIR .cluster
setting CLUSTER_DATA demo
setting CLUSTER_THREADS ""
setting CLUSTER_IMAGES ""
for limit in SERVICE_MEMORY=2g TRAINER_MEMORY=32g EVALUATOR_MEMORY=32g POSTGRES_MEMORY=2g S3_MEMORY=2g; do
  setting "${limit%=*}" "${limit#*=}"
done
setting SCHEDULER_PORT 7600
setting POSTGRES_PORT 7605
setting S3_PORT 7606
setting GRAFANA_PORT 7607
setting PROMETHEUS_PORT 7608
dir=$(absolute "$CLUSTER_DIR")
data=$(absolute "$CLUSTER_DATA")
mkdir -p "$dir"
[ -d "$data" ] || (umask 022 && mkdir -p "$data")
# Keep other settings of the user in `.env`, such as images.
settings=$(sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p' "$env_file.part")
[ ! -e "$env_file" ] || while IFS= read -r line; do
  case $line in "$mark" | COMPOSE_FILE=*) continue ;; esac
  for name in $settings; do case $line in "$name="*) continue 2 ;; esac done
  printf '%s\n' "$line"
done < "$env_file" >> "$env_file.part"
sed -e "s|^CLUSTER_DIR=.*|CLUSTER_DIR=$dir|" -e "s|^CLUSTER_DATA=.*|CLUSTER_DATA=$data|" "$env_file.part" > "$env_file.new"
rm "$env_file.part"

# The folder keeps out other users of this machine. Its files must be readable by the users of the
# containers, which have other ids.
chmod 700 "$dir"
write() { # FILE, from standard input
  cat > "$dir/$1.part"
  chmod 444 "$dir/$1.part"
  mv -f "$dir/$1.part" "$dir/$1"
}
random() { od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'; }
secret() { # FILE BYTES
  [ -s "$dir/$1" ] || random "$2" | write "$1"
}
for role in postgres migrator service dashboard grafana; do secret "${role}_password" 24; done
secret bearer_token 32
for role in migrator service; do
  echo "postgres://inheritune_$role:$(cat "$dir/${role}_password")@postgres:5432/inheritune" | write "${role}_database_url"
done
# An older version kept the same lines in this file.
if [ -s "$dir/s3-client.env" ] && [ ! -s "$dir/s3_credentials" ]; then
  write s3_credentials < "$dir/s3-client.env"
  rm -f "$dir/s3-client.env"
fi
if [ ! -s "$dir/s3-server.env" ] || [ ! -s "$dir/s3_credentials" ]; then
  key=GK$(random 12) secret=$(random 32)
  printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$key" "$secret" | write s3_credentials
  printf '%s\n' "GARAGE_DEFAULT_BUCKET=inheritune" "GARAGE_DEFAULT_ACCESS_KEY=$key" "GARAGE_DEFAULT_SECRET_KEY=$secret" \
    "GARAGE_RPC_SECRET=$(random 32)" "GARAGE_ADMIN_TOKEN=$(random 32)" | write s3-server.env
fi

if [ -n "$tls" ] && [ ! -s "$dir/tls/server.key" ]; then
  client=${INHERITUNE:-target/release/inheritune}
  [ -x "$client" ] || fail "--tls needs $client; run: make build, or set INHERITUNE=FILE"
  "$client" certs init "$dir/tls" --host localhost --host 127.0.0.1 --host scheduler --host slicer --host trainer \
    --host evaluator
  chmod 444 "$dir"/tls/server.*
fi

# Creates one file per service from the templates in this folder.
render() {
  sed -e "s|file:///data/|file://$data/|" -e "s|http://127.0.0.1:7606|http://127.0.0.1:$S3_PORT|" "$1" |
    if [ -n "$CLUSTER_THREADS" ]; then sed -e "s|^# threads = .*|threads = $CLUSTER_THREADS|"; else cat; fi |
    if [ -s "$dir/tls/server.key" ]; then
      sed -e 's|^# \(certificate_file = \)|\1|' -e 's|^# \(key_file = \)|\1|' \
        -e 's|^# \(bearer_token_file = \)|\1|' -e 's|^callers = |# &|'
    else cat; fi
}
for service in scheduler slicer trainer evaluator; do
  render "deploy/compose/$service.toml" | write "$service.toml"
done

files=docker-compose.yml
[ "$CLUSTER_IMAGES" != debian ] || files=$files:deploy/debian/images.yml
[ ! -s "$dir/tls/server.key" ] || files=$files:deploy/compose/tls.yml
echo "COMPOSE_FILE=$files" >> "$env_file.new"
mv -f "$env_file.new" "$env_file"
echo "init: wrote secrets and configuration to $dir, and settings to $env_file; jobs may read $data"
