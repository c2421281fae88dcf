-- What anybody who may connect can do to a server without any right to a table: take the migrations' lock, write large objects
-- and WAL, use up transaction ids. And a limit of time that a dashboard's session cannot lift.

-- Functions of the server are a superuser's to revoke; where another role migrates, deploy/postgres/roles.sh does the same.
DO $$
DECLARE
    function regprocedure;
    grantee name;
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RAISE NOTICE 'functions of the server were not revoked from PUBLIC: the migrating role is no superuser; see deploy/postgres/roles.sh';
        RETURN;
    END IF;
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
          AND (proname ~ '^(lo_|pg_advisory_|pg_try_advisory_)'
               OR proname IN ('loread', 'lowrite', 'pg_notify', 'pg_logical_emit_message', 'pg_export_snapshot',
                              'pg_current_xact_id', 'txid_current'))
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
        CONTINUE WHEN function::text ~ '^lo';
        FOR grantee IN
            SELECT rolname FROM pg_roles
            WHERE NOT rolsuper AND rolname !~ '^pg_'
              AND (rolname IN ('inheritune_owner', 'inheritune_service') OR has_table_privilege(oid, 'public.jobs', 'INSERT'))
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', function, grantee);
        END LOOP;
    END LOOP;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    IF EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'inheritune_dashboard'
          AND NOT EXISTS (SELECT FROM unnest(rolconfig) AS setting WHERE setting LIKE 'temp_file_limit=%'))
    THEN
        ALTER ROLE inheritune_dashboard SET temp_file_limit = '1GB';
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation OR internal_error THEN
        NULL; -- "tuple concurrently updated": a migration of another database changed the role at the same moment
END
$$;

CREATE FUNCTION end_dashboard_queries(longer_than interval) RETURNS integer
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog
AS $$
    SELECT count(*)::integer
    FROM (SELECT pg_terminate_backend(pid) AS ended
          FROM pg_stat_activity
          WHERE usename = 'inheritune_dashboard' AND datname = current_database()
            AND xact_start < clock_timestamp() - longer_than) AS of_dashboards
    WHERE ended
$$;
COMMENT ON FUNCTION end_dashboard_queries IS 'Ends sessions of inheritune_dashboard whose transaction has gone on for longer, whatever statement_timeout they have set; says how many. Its owner needs the rights of that role.';
REVOKE EXECUTE ON FUNCTION end_dashboard_queries FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_service') THEN
        GRANT EXECUTE ON FUNCTION end_dashboard_queries TO inheritune_service;
    END IF;
END
$$;
