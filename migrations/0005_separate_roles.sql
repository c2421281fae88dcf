-- Roles with as few rights as their work needs: the owner changes the schema, services write rows, dashboards read ops.
-- deploy/postgres/roles.sh makes them with logins and passwords.

-- Roles belong to the whole server: see the end of 0002. What an administrator has set is left as it is.
DO $$
DECLARE
    wanted record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_service') THEN
        CREATE ROLE inheritune_service NOLOGIN;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard' AND rolconnlimit = -1) THEN
            ALTER ROLE inheritune_dashboard CONNECTION LIMIT 20;
        END IF;
        FOR wanted IN
            SELECT v.name, v.value
            FROM (VALUES ('statement_timeout', '5s'),
                         ('default_transaction_read_only', 'on'),
                         ('idle_in_transaction_session_timeout', '10s')) AS v (name, value)
            WHERE NOT EXISTS (
                SELECT FROM pg_roles r CROSS JOIN LATERAL unnest(r.rolconfig) AS setting
                WHERE r.rolname = 'inheritune_dashboard' AND setting LIKE v.name || '=%')
        LOOP
            EXECUTE format('ALTER ROLE inheritune_dashboard SET %I = %L', wanted.name, wanted.value);
        END LOOP;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'roles were not made or changed: the migrating role lacks CREATEROLE; see deploy/postgres/roles.sh';
    WHEN duplicate_object OR unique_violation OR internal_error THEN
        NULL; -- "tuple concurrently updated": a migration of another database did the same at the same moment
END
$$;

CREATE FUNCTION grant_roles() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_service') THEN
        GRANT USAGE ON SCHEMA public, ops TO inheritune_service;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO inheritune_service;
        GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO inheritune_service;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO inheritune_service;
        GRANT SELECT ON ALL TABLES IN SCHEMA ops TO inheritune_service;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO inheritune_service;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO inheritune_service;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO inheritune_service;
        ALTER DEFAULT PRIVILEGES IN SCHEMA ops GRANT SELECT ON TABLES TO inheritune_service;
        IF to_regclass('public._sqlx_migrations') IS NOT NULL THEN
            -- The list of migrations that have run is the migrator's.
            REVOKE INSERT, UPDATE, DELETE ON public._sqlx_migrations FROM inheritune_service;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        GRANT USAGE ON SCHEMA ops TO inheritune_dashboard;
        GRANT SELECT ON ALL TABLES IN SCHEMA ops TO inheritune_dashboard;
        ALTER DEFAULT PRIVILEGES IN SCHEMA ops GRANT SELECT ON TABLES TO inheritune_dashboard;
    END IF;
END
$$;
COMMENT ON FUNCTION grant_roles IS 'Gives inheritune_service and inheritune_dashboard their rights, on what later migrations of the calling role make as well. For the owner; again when a role is made after the migrations.';
REVOKE EXECUTE ON FUNCTION grant_roles FROM PUBLIC;

DO $$ BEGIN PERFORM grant_roles(); END $$;

-- Before Postgres 15 everybody might make tables here.
DO $$
BEGIN
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'CREATE on schema public was not revoked from PUBLIC: the migrating role does not own the schema';
END
$$;
