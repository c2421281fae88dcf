//! The roles that `deploy/postgres/roles.sh` creates, each logged in with its password: what it may
//! do and what it may not.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::job::{Directive, FailureClass, MetricPoint, Progress};
use inheritune_domain::spec::{JobKind, RunSpec};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_store::Store;
use inheritune_store::jobs::LeaseKey;
use inheritune_store::notify::Topic;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::{LEASE, claim, new_job, outcome, run_spec, submit_and_claim, try_claim};
use tokio::sync::{Mutex, OnceCell};

/// Roles are shared by all databases of a server, so these tests run one at a time.
static ROLES: Mutex<()> = Mutex::const_new(());
static PASSWORDS_WANTED: OnceCell<()> = OnceCell::const_new();

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns a password with special characters that need quoting.
fn password(role: &str) -> String {
    format!("{role}'s \"canary\" $1\\")
}

/// Returns `url` for another role, with its password.
fn as_role(url: &str, role: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_username(&format!("inheritune_{role}")).unwrap();
    url.set_password(Some(&password(role))).unwrap();
    url.into()
}

async fn store_as(url: &str, role: &str) -> Store {
    support::connect(&as_role(url, role), ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() })
        .await
}

/// Makes the server require passwords and log every statement.
async fn want_passwords(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let file: String =
        sqlx::query_scalar("SELECT current_setting('hba_file')").fetch_one(&mut connection).await.unwrap();
    let old = std::fs::read_to_string(&file).unwrap();
    let rule = "local all inheritune_migrator,inheritune_service,inheritune_dashboard scram-sha-256\n";
    std::fs::write(&file, format!("{rule}{old}")).unwrap();
    sqlx::query("ALTER SYSTEM SET log_statement = 'all'").execute(&mut connection).await.unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&mut connection).await.unwrap();
}

/// Runs the script on the database at the superuser's `url`, without the password of one role if
/// requested.
async fn run_script(url: &str, without: Option<&str>) -> Output {
    PASSWORDS_WANTED.get_or_init(|| want_passwords(url)).await;
    let mut connection = PgConnection::connect(url).await.unwrap();
    let bin: String = sqlx::query_scalar("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let parsed = url::Url::parse(url).unwrap();
    let host = parsed.query_pairs().find(|(name, _)| name == "host").unwrap().1.into_owned();
    let dir = tempfile::tempdir().unwrap();
    let mut script = Command::new("sh");
    script
        .arg(root().join("deploy/postgres/roles.sh"))
        .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
        .env("PGHOST", host)
        .env("PGPORT", parsed.port().unwrap().to_string())
        .env("POSTGRES_USER", parsed.username())
        .env("PGPASSWORD", parsed.password().unwrap())
        .env("POSTGRES_DB", parsed.path().trim_start_matches('/'));
    for role in ["migrator", "service", "dashboard"] {
        let file = dir.path().join(role);
        if without != Some(role) {
            std::fs::write(&file, format!("{}\n", password(role))).unwrap();
        }
        script.env(format!("INHERITUNE_{}_PASSWORD_FILE", role.to_uppercase()), file);
    }
    script.output().unwrap()
}

async fn make_roles(url: &str) {
    let output = run_script(url, None).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn refused(connection: &mut PgConnection, statement: &str) {
    let result = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await;
    let error = result.expect_err(statement).to_string();
    let words =
        ["permission denied", "must be owner", "read-only transaction", "must be superuser", "cannot update view"];
    assert!(words.iter().any(|word| error.contains(word)), "{statement}: {error}");
}

async fn names(connection: &mut PgConnection, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(connection).await.unwrap()
}

const TABLES: &str =
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1";
const SEQUENCES: &str =
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S' ORDER BY 1";
const VIEWS: &str =
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'ops'::regnamespace AND relkind = 'v' ORDER BY 1";

/// Does everything that services do with the database.
async fn live(store: &Store) {
    store.ping().await.unwrap();
    store.check_schema().await.unwrap();
    let mut waiting = store.listen().await.unwrap();
    let lease = submit_and_claim(store, JobKind::Slice).await;
    waiting.changed(Topic::Jobs, Duration::from_secs(20)).await;
    let progress = Progress { done: 5, total: 10, unit: "bytes".into(), ..Progress::default() };
    store.heartbeat(lease.key, Some(&progress), LEASE).await.unwrap();
    publish(store, lease.key).await;
    store.complete_job(lease.key, &outcome(JobKind::Slice, 0.0)).await.unwrap();

    let lease = submit_and_claim(store, JobKind::Train).await;
    let point = MetricPoint { step: 1, tokens_seen: 256, name: "train_loss".into(), value: 4.0 };
    store.add_metrics(lease.key, &[point]).await.unwrap();
    store.request_job(lease.key.job, Directive::Pause).await.unwrap();
    store.release_job(lease.key, "paused").await.unwrap();
    store.request_job(lease.key.job, Directive::Cancel).await.unwrap();

    let lease = submit_and_claim(store, JobKind::Evaluate).await;
    store.fail_job(lease.key, FailureClass::Permanent, "no").await.unwrap();
    let lease = submit_and_claim(store, JobKind::Tokenize).await;
    support::let_lease_run_out(store, &lease).await;
    assert_eq!(store.expire_leases().await.unwrap(), 1);
    let lease = claim(store).await;
    store.complete_job(lease.key, &outcome(JobKind::Tokenize, 0.0)).await.unwrap();
    run(store, &run_spec("roles")).await;
    assert!(!store.model_scores(None).await.unwrap().is_empty());
    // A waiting job and a claimed one.
    store.submit_job(&new_job(JobKind::Train), None).await.unwrap();
    submit_and_hold(store).await;
}

async fn submit_and_hold(store: &Store) {
    store.submit_job(&new_job(JobKind::Slice), None).await.unwrap();
    store.claim_jobs(support::worker(), &[JobKind::Slice], 1, LEASE).await.unwrap().pop().unwrap();
}

async fn publish(store: &Store, lease: LeaseKey) {
    let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease);
    writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    let artifact = writer.publish(None, json!({})).await.unwrap();
    assert_eq!(store.artifact(artifact.id).await.unwrap(), artifact);
    store.sweep_orphans(Duration::ZERO).await.unwrap();
}

/// Drives a whole run and completes its jobs immediately.
async fn run(store: &Store, spec: &RunSpec) {
    let run = store.create_run(spec, Some(uuid::Uuid::new_v4())).await.unwrap().id;
    let mut losses = [3.0, 2.9].into_iter();
    while store.drive_one_run().await.unwrap().is_some() {
        let Some(lease) = try_claim(store).await else { break };
        let kind = lease.spec.kind();
        let loss = if kind == JobKind::Evaluate { losses.next().unwrap_or(2.8) } else { 0.0 };
        store.complete_job(lease.key, &outcome(kind, loss)).await.unwrap();
    }
    assert!(store.run(run).await.unwrap().finished_at.is_some());
}

async fn service_makes_no_schema(url: &str) {
    let mut service = PgConnection::connect(&as_role(url, "service")).await.unwrap();
    for statement in [
        "CREATE TABLE mine ()",
        "CREATE TABLE ops.mine ()",
        "CREATE SCHEMA mine",
        "CREATE VIEW mine AS SELECT 1",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE INDEX ON jobs (label)",
        "ALTER TABLE jobs ADD COLUMN mine integer",
        "ALTER TABLE jobs OWNER TO inheritune_service",
        "DROP TABLE job_attempts",
        "DROP VIEW ops.jobs CASCADE",
        "DROP SEQUENCE lease_tokens",
        "DROP FUNCTION job_status CASCADE",
        "TRUNCATE jobs CASCADE",
        "SELECT setval('lease_tokens', 1)",
        "DELETE FROM _sqlx_migrations",
        "INSERT INTO _sqlx_migrations DEFAULT VALUES",
        "SET ROLE inheritune_owner",
        "CREATE ROLE mine",
        "ALTER ROLE inheritune_dashboard SET statement_timeout = 0",
    ] {
        refused(&mut service, statement).await;
    }
}

async fn dashboard_reads_views_alone(url: &str) {
    let mut superuser = PgConnection::connect(url).await.unwrap();
    let mut dashboard = PgConnection::connect(&as_role(url, "dashboard")).await.unwrap();
    let views = names(&mut superuser, VIEWS).await;
    assert!(views.len() >= 10, "{views:?}");
    for view in views {
        let query = AssertSqlSafe(format!("SELECT * FROM ops.{view}"));
        sqlx::query(query).fetch_all(&mut dashboard).await.unwrap_or_else(|e| panic!("ops.{view}: {e}"));
    }
    for table in names(&mut superuser, TABLES).await {
        refused(&mut dashboard, &format!("SELECT FROM public.{table}")).await;
    }
    for sequence in names(&mut superuser, SEQUENCES).await {
        refused(&mut dashboard, &format!("SELECT FROM public.{sequence}")).await;
        refused(&mut dashboard, &format!("SET default_transaction_read_only = off; SELECT nextval('{sequence}')"))
            .await;
    }
    // A session may change its read-only default, so writes must be denied without it too.
    for session in ["on", "off"] {
        for write in [
            "DELETE FROM jobs",
            "UPDATE ops.artifacts SET kind = 'scores'",
            "INSERT INTO run_notes (run_id, text) SELECT run_id, 'x' FROM ops.runs",
            "CREATE TABLE mine ()",
            "CREATE TABLE ops.mine ()",
            "CREATE TEMPORARY TABLE mine ()",
            "TRUNCATE jobs CASCADE",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT grant_roles()",
        ] {
            refused(&mut dashboard, &format!("SET default_transaction_read_only = {session}; {write}")).await;
        }
    }
    let mut dashboard = PgConnection::connect(&as_role(url, "dashboard")).await.unwrap();
    for (name, value) in [
        ("statement_timeout", "5s"),
        ("default_transaction_read_only", "on"),
        ("idle_in_transaction_session_timeout", "10s"),
    ] {
        let query = AssertSqlSafe(format!("SELECT current_setting('{name}')"));
        assert_eq!(sqlx::query_scalar::<_, String>(query).fetch_one(&mut dashboard).await.unwrap(), value, "{name}");
    }
    functions_of_the_server_are_closed(&mut dashboard).await;
    let connections: i32 =
        sqlx::query_scalar("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'inheritune_dashboard'")
            .fetch_one(&mut superuser)
            .await
            .unwrap();
    assert_eq!(connections, 20);
}

/// Checks functions that need no privilege on a table. Each of these once worked in a dashboard's
/// session.
async fn functions_of_the_server_are_closed(dashboard: &mut PgConnection) {
    for call in [
        "pg_advisory_lock(7)",
        "pg_advisory_lock(7, 7)",
        "pg_advisory_lock_shared(7)",
        "pg_advisory_xact_lock(7)",
        "pg_advisory_xact_lock_shared(7, 7)",
        "pg_try_advisory_lock(7)",
        "pg_try_advisory_lock_shared(7)",
        "pg_try_advisory_xact_lock(7)",
        "pg_try_advisory_xact_lock_shared(7)",
        "lo_create(0)",
        "lo_creat(-1)",
        "lo_from_bytea(0, 'x')",
        "lo_put(1, 0, 'x')",
        "lo_open(1, 131072)",
        "lo_import('/etc/passwd')",
        "lo_unlink(1)",
        "lowrite(0, 'x')",
        "pg_notify('inheritune_jobs', '')",
        "pg_logical_emit_message(false, 'a', 'b')",
        "pg_logical_emit_message(true, 'a', 'b'::bytea)",
        "pg_export_snapshot()",
        "pg_current_xact_id()",
        "txid_current()",
        "end_dashboard_queries('0')",
        "set_config('temp_file_limit', '-1', false)",
    ] {
        for session in ["on", "off"] {
            refused(dashboard, &format!("SET default_transaction_read_only = {session}; SELECT {call}")).await;
        }
    }
    for statement in ["SET temp_file_limit = -1", "ALTER ROLE inheritune_dashboard CONNECTION LIMIT -1"] {
        refused(dashboard, statement).await;
    }
}

/// A dashboard's session may disable its own `statement_timeout`, so its queries must end without
/// it too.
async fn long_queries_of_dashboards_end(url: &str) {
    let service = store_as(url, "service").await;
    let query = |statement: &'static str| {
        let url = as_role(url, "dashboard");
        tokio::spawn(async move {
            let mut dashboard = PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut dashboard).await.map(|_| ()).map_err(|e| e.to_string())
        })
    };
    let long = [
        query("SET statement_timeout = 0; SELECT pg_sleep(60)"),
        query("SET statement_timeout = 0; SELECT count(*) FROM generate_series(1, 100000000000) n"),
        query("SET statement_timeout = 0; BEGIN; SELECT 1; SELECT pg_sleep(0.1); SELECT pg_sleep(60); COMMIT"),
    ];
    let short = query("SELECT count(*) FROM ops.jobs");
    short.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // Long statements of the service itself are not affected.
    assert_eq!(service.end_dashboard_queries(Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(service.end_dashboard_queries(Duration::from_secs(1)).await.unwrap(), 3);
    for long in long {
        let error = long.await.unwrap().unwrap_err();
        assert!(error.contains("terminating connection due to administrator command"), "{error}");
    }
}

/// Does what a migration of a later version would do.
async fn a_later_migration(url: &str) {
    let mut migrator = PgConnection::connect(&as_role(url, "migrator")).await.unwrap();
    let later = "CREATE TABLE later (n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT now());
                 CREATE SEQUENCE later_numbers;
                 CREATE VIEW ops.later AS SELECT n FROM later;
                 ALTER TABLE jobs ADD COLUMN later integer";
    sqlx::raw_sql(later).execute(&mut migrator).await.unwrap();
    let mut service = PgConnection::connect(&as_role(url, "service")).await.unwrap();
    for statement in [
        "INSERT INTO later DEFAULT VALUES",
        "SELECT nextval('later_numbers')",
        "UPDATE later SET at = now()",
        "SELECT FROM ops.later",
    ] {
        sqlx::raw_sql(statement).execute(&mut service).await.unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    refused(&mut service, "DROP TABLE later").await;
    let mut dashboard = PgConnection::connect(&as_role(url, "dashboard")).await.unwrap();
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.later").fetch_one(&mut dashboard).await.unwrap();
    assert_eq!(seen, 1);
    refused(&mut dashboard, "SELECT FROM later").await;
}

async fn owners(url: &str) -> Vec<String> {
    let mut superuser = PgConnection::connect(url).await.unwrap();
    names(
        &mut superuser,
        "SELECT DISTINCT owner::regrole::text FROM (
            SELECT relowner AS owner FROM pg_class
            WHERE relnamespace IN ('public'::regnamespace, 'ops'::regnamespace) AND relkind IN ('r', 'v', 'S')
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname IN ('public', 'ops')
            UNION ALL SELECT datdba FROM pg_database WHERE datname = current_database()) AS o",
    )
    .await
}

#[tokio::test]
async fn s6_each_role_does_its_work_and_no_more() {
    let _one = ROLES.lock().await;
    let url = support::database().await;
    make_roles(&url).await;
    // Running the script again changes nothing.
    make_roles(&url).await;
    let migrator = store_as(&url, "migrator").await;
    migrator.migrate().await.unwrap();
    migrator.migrate().await.unwrap();
    assert_eq!(owners(&url).await, ["inheritune_owner"]);
    live(&store_as(&url, "service").await).await;
    service_makes_no_schema(&url).await;
    dashboard_reads_views_alone(&url).await;
    long_queries_of_dashboards_end(&url).await;
    a_later_migration(&url).await;
}

/// Without the script, as in a private database, the migrations revoke access to these functions.
#[tokio::test]
async fn s6_functions_of_the_server_are_closed_by_the_migrations_too() {
    let _one = ROLES.lock().await;
    let url = support::database().await;
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    let superuser = support::connect(&url, objects).await;
    superuser.migrate().await.unwrap();
    let mut dashboard = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("SET ROLE inheritune_dashboard").execute(&mut dashboard).await.unwrap();
    functions_of_the_server_are_closed(&mut dashboard).await;
    refused(&mut dashboard, "SET default_transaction_read_only = off; CREATE TEMPORARY TABLE mine ()").await;
    assert_eq!(superuser.end_dashboard_queries(Duration::from_secs(1)).await.unwrap(), 0);
}

/// Another session holds the migrations' lock, or a lock on a table that they change.
#[tokio::test]
async fn s6_a_migration_names_who_holds_what_it_needs() {
    let url = support::database().await;
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    support::connect(&url, objects.clone()).await.migrate().await.unwrap();
    let patient = format!("{url}&options=-c%20lock_timeout%3D1500");
    let mut holder = PgConnection::connect(&format!("{url}&application_name=forgotten")).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let migrator = support::connect(&patient, objects.clone()).await;
    let must_name = |error: String| {
        for part in [format!("process {pid} of Postgres"), "application `forgotten`".to_owned()] {
            assert!(error.contains(&part), "{error}");
        }
    };
    // A lock on a table that migrations read and write.
    sqlx::raw_sql("BEGIN; LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
    must_name(migrator.migrate().await.unwrap_err().to_string());
    // The migrations' own lock, which a migration that waits for the table holds.
    let waiting = tokio::spawn(async move { migrator.migrate().await });
    let mut superuser = PgConnection::connect(&url).await.unwrap();
    let advisory = "SELECT classid::bigint << 32 | objid::bigint FROM pg_locks JOIN pg_database d ON d.oid = database
                    WHERE locktype = 'advisory' AND granted AND d.datname = current_database()";
    let key: i64 = loop {
        match sqlx::query_scalar(advisory).fetch_optional(&mut superuser).await.unwrap() {
            Some(key) => break key,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    must_name(waiting.await.unwrap().unwrap_err().to_string());
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(key).execute(&mut holder).await.unwrap();
    must_name(support::connect(&patient, objects.clone()).await.migrate().await.unwrap_err().to_string());
    sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut holder).await.unwrap();
    // A dashboard's transaction that reads a view which a new version writes.
    sqlx::query("UPDATE schema_views SET digest = 'older'").execute(&mut holder).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM ops.models").execute(&mut holder).await.unwrap();
    let migrator = support::connect(&patient, objects).await;
    must_name(migrator.migrate().await.unwrap_err().to_string());
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    migrator.migrate().await.unwrap();
}

#[tokio::test]
async fn a_database_that_a_superuser_has_migrated_is_handed_over() {
    let _one = ROLES.lock().await;
    let url = support::database().await;
    let superuser = support::connect(&url, ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() });
    let superuser = superuser.await;
    superuser.migrate().await.unwrap();
    run(&superuser, &run_spec("before")).await;
    make_roles(&url).await;
    assert_eq!(owners(&url).await, ["inheritune_owner"]);
    store_as(&url, "migrator").await.migrate().await.unwrap();
    live(&store_as(&url, "service").await).await;
    service_makes_no_schema(&url).await;
    dashboard_reads_views_alone(&url).await;
    a_later_migration(&url).await;
}

#[tokio::test]
async fn passwords_are_wanted_and_are_in_no_log() {
    let _one = ROLES.lock().await;
    let url = support::database().await;
    let output = run_script(&url, Some("dashboard")).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no password in"), "{output:?}");
    make_roles(&url).await;
    for role in ["migrator", "service", "dashboard"] {
        PgConnection::connect(&as_role(&url, role)).await.unwrap().close().await.unwrap();
        let wrong = as_role(&url, role).replace("canary", "carnary");
        let error = PgConnection::connect(&wrong).await.unwrap_err().to_string();
        assert!(error.contains("password authentication failed"), "{error}");
    }
    let mut superuser = PgConnection::connect(&url).await.unwrap();
    let cluster: String =
        sqlx::query_scalar("SELECT current_setting('data_directory')").fetch_one(&mut superuser).await.unwrap();
    let log = std::fs::read_to_string(Path::new(&cluster).with_file_name("server.log")).unwrap();
    assert!(log.contains("statement: ") && !log.contains("canary"), "a password is in the log, or there is no log");
}

#[tokio::test]
async fn a_schema_that_is_too_old_is_refused_and_a_newer_one_is_not() {
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    let store = support::connect(&support::database().await, objects).await;
    let refused = async || store.check_schema().await.unwrap_err().to_string();
    assert!(refused().await.contains("is at migration 0, but this program needs "), "{}", refused().await);
    store.migrate().await.unwrap();
    store.check_schema().await.unwrap();
    let change = async |sql: &'static str| sqlx::query(sql).execute(store.pool()).await.unwrap();
    change("UPDATE _sqlx_migrations SET version = 999 WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .await;
    store.check_schema().await.unwrap();
    change("DELETE FROM _sqlx_migrations WHERE version > 5").await;
    let told = refused().await;
    assert!(told.contains("at migration 5,") && told.ends_with("run `inheritune-scheduler migrate`"), "{told}");
}
