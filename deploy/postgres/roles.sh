#!/bin/sh
# Creates the roles of an Inheritune database. Must run as a superuser of Postgres before the first
# migration. It can run again at any time to change passwords, or to take over a database that
# another role has migrated.
#
#   inheritune_owner      owns the database and everything in it; cannot log in
#   inheritune_migrator   migrates the schema; acts as the owner
#   inheritune_service    reads and writes rows; for the scheduler and all workers
#   inheritune_dashboard  reads the views of schema ops; queries are limited to 5 seconds by default
#                         and to 15 seconds in any case
#
# Files with the passwords: INHERITUNE_{MIGRATOR,SERVICE,DASHBOARD}_PASSWORD_FILE, or else
# /run/secrets/*_password. The database: POSTGRES_DB or PGDATABASE; the superuser: POSTGRES_USER or
# PGUSER; the server: PGHOST and PGPORT. The script can be placed in /docker-entrypoint-initdb.d.
# pg_hba.conf decides who may connect from where.
set -eu

database=${POSTGRES_DB:-${PGDATABASE:-inheritune}}
superuser=${POSTGRES_USER:-${PGUSER:-postgres}}
INHERITUNE_MIGRATOR_PASSWORD_FILE=${INHERITUNE_MIGRATOR_PASSWORD_FILE:-/run/secrets/migrator_password}
INHERITUNE_SERVICE_PASSWORD_FILE=${INHERITUNE_SERVICE_PASSWORD_FILE:-/run/secrets/service_password}
INHERITUNE_DASHBOARD_PASSWORD_FILE=${INHERITUNE_DASHBOARD_PASSWORD_FILE:-/run/secrets/dashboard_password}
export INHERITUNE_MIGRATOR_PASSWORD_FILE INHERITUNE_SERVICE_PASSWORD_FILE INHERITUNE_DASHBOARD_PASSWORD_FILE
for file in "$INHERITUNE_MIGRATOR_PASSWORD_FILE" "$INHERITUNE_SERVICE_PASSWORD_FILE" \
  "$INHERITUNE_DASHBOARD_PASSWORD_FILE"; do
  [ -s "$file" ] && [ -r "$file" ] || { echo "roles: no password in $file" >&2; exit 1; }
done

# psql reads the files itself, so passwords are neither in process arguments nor in the server's
# log.
psql -X -q -v ON_ERROR_STOP=1 -U "$superuser" -d "$database" -o /dev/null <<'SQL'
\set migrator_password `cat "$INHERITUNE_MIGRATOR_PASSWORD_FILE"`
\set service_password `cat "$INHERITUNE_SERVICE_PASSWORD_FILE"`
\set dashboard_password `cat "$INHERITUNE_DASHBOARD_PASSWORD_FILE"`
SET client_min_messages = warning;
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_duration_sample = -1;
SET log_transaction_sample_rate = 0;
SET log_min_error_statement = 'panic';
SET pg_stat_statements.track_utility = off;
BEGIN;
SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['inheritune_owner', 'inheritune_migrator', 'inheritune_service', 'inheritune_dashboard']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE inheritune_owner NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
ALTER ROLE inheritune_migrator LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'migrator_password';
ALTER ROLE inheritune_service LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'service_password';
ALTER ROLE inheritune_dashboard LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 20 PASSWORD :'dashboard_password';
GRANT inheritune_owner TO inheritune_migrator;
-- end_dashboard_queries() runs as the owner, which must see the dashboards' sessions and may end
-- them.
GRANT inheritune_dashboard TO inheritune_owner;
ALTER ROLE inheritune_migrator SET role = 'inheritune_owner';
ALTER ROLE inheritune_dashboard SET statement_timeout = '5s';
ALTER ROLE inheritune_dashboard SET default_transaction_read_only = on;
ALTER ROLE inheritune_dashboard SET idle_in_transaction_session_timeout = '10s';
-- The three settings above are defaults that a session may change. Only a superuser may change this
-- one.
ALTER ROLE inheritune_dashboard SET temp_file_limit = '1GB';

SELECT format('ALTER DATABASE %I OWNER TO inheritune_owner', current_database()),
       format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()),
       format('GRANT CONNECT ON DATABASE %I TO inheritune_migrator, inheritune_service, inheritune_dashboard', current_database())
\gexec
-- Like migration 0010, which is not permitted to do this when it runs as the owner: locks, large
-- objects, notifications, WAL, transaction ids.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure),
       CASE WHEN proname !~ '^lo' THEN
           format('GRANT EXECUTE ON FUNCTION %s TO inheritune_owner, inheritune_service', oid::regprocedure)
       END
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
  AND (proname ~ '^(lo_|pg_advisory_|pg_try_advisory_)'
       OR proname IN ('loread', 'lowrite', 'pg_notify', 'pg_logical_emit_message', 'pg_export_snapshot',
                      'pg_current_xact_id', 'txid_current'))
\gexec
ALTER SCHEMA public OWNER TO inheritune_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- Take over a database that another role has migrated. Sequences that belong to a column follow
-- their table.
SELECT format('ALTER SCHEMA %I OWNER TO inheritune_owner', nspname) FROM pg_namespace WHERE nspname = 'ops'
\gexec
SELECT format('ALTER %s %s OWNER TO inheritune_owner',
              CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass)
FROM pg_class c
WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'ops'))
  AND relkind IN ('r', 'p', 'v', 'S')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i', 'e'))
\gexec
SELECT format('ALTER ROUTINE %s OWNER TO inheritune_owner', p.oid::regprocedure)
FROM pg_proc p
WHERE p.pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'ops'))
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
\gexec
SET ROLE inheritune_owner;
SELECT 'SELECT public.grant_roles()' WHERE to_regprocedure('public.grant_roles()') IS NOT NULL
\gexec
RESET ROLE;
COMMIT;
SQL
echo "roles: made in database $database"
