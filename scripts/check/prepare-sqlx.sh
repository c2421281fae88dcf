#!/bin/sh
# Regenerates .sqlx, the offline cache of the checked queries: starts a temporary Postgres, applies
# the migrations and runs `cargo check`.
set -eu
cd "$(dirname "$0")/../.."
for bin in "${INHERITUNE_PG_BIN:-}" "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin \
  /opt/homebrew/opt/postgresql@*/bin "$PWD/.deps/postgres/pginstall/bin"; do
  [ -n "$bin" ] && [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && [ -x "$bin/psql" ] && break
  bin=
done
[ -n "$bin" ] || { echo "sqlx: no Postgres server found; run: make setup" >&2; exit 1; }
dir=$(mktemp -d /tmp/inheritune-sqlx.XXXXXX)
as=
if [ "$(id -u)" = 0 ]; then # Postgres refuses to run as root
  chown 65534:65534 "$dir"
  as="setpriv --reuid=65534 --regid=65534 --clear-groups"
  # shellcheck disable=SC2086
  (cd "$dir" && $as "$bin/postgres" --version >/dev/null 2>&1) || {
    chown 0:0 "$dir"
    as="unshare --user --map-user=1000 --map-group=1000"
  }
fi
server=
clean() {
  trap - EXIT
  [ -z "$server" ] || { kill -INT "$server" 2>/dev/null && wait "$server"; } || true
  rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' INT TERM
# shellcheck disable=SC2086
(cd "$dir" && $as "$bin/initdb" -D data -U inheritune -E UTF8 --no-locale -A trust --no-sync --no-instructions) >"$dir.log" 2>&1 ||
  { cat "$dir.log" >&2; rm -f "$dir.log"; exit 1; }
# shellcheck disable=SC2086
(cd "$dir" && exec $as "$bin/postgres" -D data -k "$dir" -p 5432 -c listen_addresses= -c fsync=off) >>"$dir.log" 2>&1 &
server=$!
export PGHOST="$dir" PGPORT=5432 PGUSER=inheritune PGDATABASE=postgres
tries=0
until "$bin/psql" -qc 'SELECT 1' >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ "$tries" -le 150 ] && kill -0 "$server" 2>/dev/null || { cat "$dir.log" >&2; rm -f "$dir.log"; exit 1; }
  sleep 0.2
done
rm -f "$dir.log"
for migration in migrations/*.sql views/jobs.sql views/*.sql; do
  "$bin/psql" -q -1 -v ON_ERROR_STOP=1 -f "$migration"
done
mkdir -p .sqlx
rm -f .sqlx/query-*.json
find crates/store -name '*.rs' -exec touch {} +
SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$PWD/.sqlx" DATABASE_URL="postgres://inheritune@localhost:5432/postgres?host=$dir" \
  ${CARGO:-cargo} check -q -p inheritune-store --tests
echo "sqlx: $(find .sqlx -name 'query-*.json' | wc -l) queries in .sqlx"
