#!/bin/bash
# Creates a database cluster at the first start, like the entrypoint of Docker Hub's `postgres`, and
# then runs the server. Supports POSTGRES_USER, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE,
# POSTGRES_DB, and *.sh and *.sql files in /docker-entrypoint-initdb.d.
set -euo pipefail

first_start() {
  local user=${POSTGRES_USER:-postgres} password=${POSTGRES_PASSWORD:-} file
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    password=$(cat "$POSTGRES_PASSWORD_FILE")
  fi
  [ -n "$password" ] || { echo "POSTGRES_PASSWORD_FILE is not set or is empty" >&2; exit 1; }
  # Remove an incomplete cluster, which the next start would take for a complete one.
  trap 'find "$PGDATA" -mindepth 1 -delete' EXIT
  initdb --username="$user" --pwfile=<(echo "$password") --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256 \
    --no-instructions
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  # Only the scripts may connect yet.
  pg_ctl -w start -o "-c listen_addresses=''"
  export POSTGRES_USER=$user POSTGRES_DB=${POSTGRES_DB:-$user}
  [ "$POSTGRES_DB" = postgres ] || createdb --username="$user" "$POSTGRES_DB"
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sh) echo "running $file"; bash "$file" ;;
      *.sql) echo "running $file"; psql -v ON_ERROR_STOP=1 -q -U "$user" -d "$POSTGRES_DB" -f "$file" ;;
    esac
  done
  pg_ctl -w -m fast stop
  trap - EXIT
}

if [ "$1" = postgres ]; then
  [ -s "$PGDATA/PG_VERSION" ] || first_start
  set -- "$@" -c 'listen_addresses=*'
fi
exec "$@"
