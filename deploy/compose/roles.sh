#!/bin/bash
# The database's roles, made once at Postgres' first start. Who may do what in the schema is the migrations' business.
#
#   inheritune_owner      owns the database and all in it; nobody logs in as it
#   inheritune_migrator   changes the schema, as the owner
#   inheritune_service    reads and writes rows: scheduler and workers
#   inheritune_dashboard  reads the schema ops, and nothing else
set -euo pipefail
secret() { cat "/run/secrets/$1"; }
psql -v ON_ERROR_STOP=1 -q -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v database="$POSTGRES_DB" \
  -v migrator="$(secret migrator_password)" -v service="$(secret service_password)" \
  -v dashboard="$(secret dashboard_password)" <<'SQL'
CREATE ROLE inheritune_owner NOLOGIN;
CREATE ROLE inheritune_migrator LOGIN PASSWORD :'migrator' IN ROLE inheritune_owner;
CREATE ROLE inheritune_service LOGIN PASSWORD :'service';
CREATE ROLE inheritune_dashboard LOGIN PASSWORD :'dashboard' CONNECTION LIMIT 20;
ALTER ROLE inheritune_migrator SET role = 'inheritune_owner';
ALTER ROLE inheritune_dashboard SET statement_timeout = '5s';
ALTER ROLE inheritune_dashboard SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE inheritune_dashboard SET default_transaction_read_only = on;
ALTER DATABASE :"database" OWNER TO inheritune_owner;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO inheritune_migrator, inheritune_service, inheritune_dashboard;
-- Of whatever the migrations make.
ALTER DEFAULT PRIVILEGES FOR ROLE inheritune_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO inheritune_service;
ALTER DEFAULT PRIVILEGES FOR ROLE inheritune_owner GRANT USAGE ON SEQUENCES TO inheritune_service;
SQL
