//! The schema `ops` is a public contract: views and columns may only be added.
#![allow(clippy::unwrap_used)]

mod support;

use expect_test::expect_file;
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::job::{FailureClass, MetricPoint, Progress};
use inheritune_domain::spec::JobKind;
use inheritune_store::Store;
use inheritune_store::evaluation_units::NewUnit;
use sqlx::{AssertSqlSafe, Row as _};
use support::{LEASE, claim, new_job, outcome, run_spec, store, submit_and_claim};

/// Returns every column of every view: `(view, column, type, comment)`.
async fn columns(store: &Store) -> Vec<(String, String, String, Option<String>)> {
    let query = "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum)
                 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                 WHERE c.relnamespace = 'ops'::regnamespace AND a.attnum > 0
                 ORDER BY c.relname, a.attnum";
    let rows = sqlx::query(query).fetch_all(store.pool()).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

async fn relations(store: &Store, schema: &str) -> Vec<String> {
    let query =
        "SELECT relname::text FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'v') ORDER BY 1";
    sqlx::query_scalar(AssertSqlSafe(query.replace("$1", &format!("'{schema}'"))))
        .fetch_all(store.pool())
        .await
        .unwrap()
}

/// Fills every table, with jobs in many states.
async fn fill(store: &Store) {
    let traced = store.in_trace(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    let run = traced.create_run(&run_spec("ops"), None).await.unwrap().id;
    let mut losses = [3.0, 2.9].into_iter();
    while store.drive_one_run().await.unwrap().is_some() {
        let Some(lease) = support::try_claim(store).await else { break };
        let kind = lease.spec.kind();
        if kind == JobKind::Train {
            let progress = Progress { done: 5, total: 0, unit: "tokens".into(), ..Progress::default() };
            store.heartbeat(lease.key, Some(&progress), LEASE).await.unwrap();
            let point = MetricPoint { step: 1, tokens_seen: 256, name: "train_loss".into(), value: 4.0 };
            store.add_metrics(lease.key, &[point]).await.unwrap();
        }
        let loss = if kind == JobKind::Evaluate { losses.next().unwrap_or(2.8) } else { 0.0 };
        store.complete_job(lease.key, &outcome(kind, loss)).await.unwrap();
    }
    assert!(store.run(run).await.unwrap().finished_at.is_some());
    // A run in progress with a claimed job.
    store.create_run(&run_spec("ops"), None).await.unwrap();
    store.drive_one_run().await.unwrap();
    let lease = claim(store).await;
    let progress = Progress {
        done: u64::MAX,
        total: 10,
        unit: "bytes".into(),
        per_second: 1.5,
        estimated_remaining_seconds: Some(2.0),
        message: "reading".into(),
    };
    store.heartbeat(lease.key, Some(&progress), LEASE).await.unwrap();
    // Jobs outside of a run: failed and waiting ones.
    let lease = submit_and_claim(store, JobKind::Slice).await;
    store.fail_job(lease.key, FailureClass::Permanent, "no").await.unwrap();
    let lease = submit_and_claim(store, JobKind::Evaluate).await;
    let unit = NewUnit { task: "piqa".to_owned(), items: 0..10, digest: Sha256Digest::of(b"asked") };
    store.register_units(lease.key, &[unit]).await.unwrap();
    store.fail_job(lease.key, FailureClass::Permanent, "no").await.unwrap();
    store.submit_job(&new_job(JobKind::Train), None).await.unwrap();
    sqlx::query(
        "INSERT INTO artifacts (id, kind, location, size_bytes, file_count, metadata)
         VALUES (gen_random_uuid(), 'checkpoint', 'file:///model', 1, 1, '{}')",
    )
    .execute(store.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn the_contract_is_kept() {
    let columns = columns(&store().await).await;
    let lines: Vec<String> =
        columns.iter().map(|(view, column, kind, _)| format!("{view}.{column} {kind}\n")).collect();
    expect_file!["ops_views.txt"].assert_eq(&lines.concat());
}

#[tokio::test]
async fn every_view_and_column_is_explained() {
    let store = store().await;
    for (view, column, _, comment) in columns(&store).await {
        assert!(
            comment.is_some_and(|comment| comment.ends_with('.')),
            "ops.{view}.{column} has no comment, or the comment has no full stop"
        );
    }
    for (schema, kind) in [("ops", "view"), ("public", "table")] {
        for name in relations(&store, schema).await.iter().filter(|name| *name != "_sqlx_migrations") {
            let query = format!("SELECT obj_description('{schema}.{name}'::regclass)");
            let comment: Option<String> =
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(store.pool()).await.unwrap();
            assert!(comment.is_some(), "{kind} {schema}.{name} has no comment");
        }
    }
}

#[tokio::test]
async fn every_view_can_be_read_and_has_rows() {
    let store = store().await;
    for view in relations(&store, "ops").await {
        sqlx::query(AssertSqlSafe(format!("SELECT * FROM ops.{view}"))).fetch_all(store.pool()).await.unwrap();
    }
    fill(&store).await;
    for view in relations(&store, "ops").await {
        let rows =
            sqlx::query(AssertSqlSafe(format!("SELECT * FROM ops.{view}"))).fetch_all(store.pool()).await.unwrap();
        assert!(!rows.is_empty(), "ops.{view} is empty");
    }
    let text = |query: &'static str| sqlx::query_scalar::<_, Option<String>>(query).fetch_one(store.pool());
    let running = text(
        "SELECT concat_ws(' ', status, kind, progress_done, progress_percentage, message, estimated_remaining_seconds)
         FROM ops.jobs WHERE status = 'RUNNING'",
    );
    assert_eq!(running.await.unwrap().unwrap(), "RUNNING tokenize 18446744073709551615 100 reading 2");
    let unknown =
        text("SELECT progress_percentage::text FROM ops.jobs WHERE kind = 'train' AND status = 'SUCCEEDED' LIMIT 1");
    assert_eq!(unknown.await.unwrap(), None);
    let current = text("SELECT concat_ws(' | ', status, state, current_job) FROM ops.runs WHERE finished_at IS NULL");
    assert_eq!(current.await.unwrap().unwrap(), "RUNNING | tokenizing | tokenize the corpus");
    let finished = text(
        "SELECT concat_ws(' | ', status, round, reference_validation_loss, validation_loss, matched)
         FROM ops.runs WHERE finished_at IS NOT NULL",
    );
    assert_eq!(finished.await.unwrap().unwrap(), "SUCCEEDED | 1 | 3 | 2.9 | t");
    let traces = text("SELECT string_agg(DISTINCT trace_id, ' ') FROM ops.traces");
    assert_eq!(traces.await.unwrap().unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
    let untraced = text(
        "SELECT count(*)::text FROM ops.jobs WHERE job_id NOT IN (SELECT job_id FROM ops.traces) AND run_id IS NOT NULL",
    );
    assert_eq!(untraced.await.unwrap().unwrap(), "1", "the run that was created outside of a trace has one job");
}

#[tokio::test]
async fn dashboards_read_the_views_and_nothing_else() {
    let store = store().await;
    fill(&store).await;
    let mut connection = store.pool().acquire().await.unwrap();
    sqlx::query("SET ROLE inheritune_dashboard").execute(&mut *connection).await.unwrap();
    for view in relations(&store, "ops").await {
        let query = format!("SELECT * FROM ops.{view}");
        let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut *connection).await.unwrap();
        assert!(!rows.is_empty(), "ops.{view}");
    }
    for table in relations(&store, "public").await {
        let query = format!("SELECT count(*) FROM public.{table}");
        let error = sqlx::query(AssertSqlSafe(query)).execute(&mut *connection).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "public.{table}: {error}");
    }
    for write in ["DELETE FROM ops.jobs", "UPDATE ops.artifacts SET kind = 'scores'", "CREATE TABLE ops.mine ()"] {
        let error = sqlx::query(write).execute(&mut *connection).await.unwrap_err().to_string();
        assert!(error.contains("permission denied") || error.contains("cannot"), "{write}: {error}");
    }
    sqlx::query("RESET ROLE").execute(&mut *connection).await.unwrap();
    let limits: Vec<String> =
        sqlx::query_scalar("SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = 'inheritune_dashboard' ORDER BY 1")
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let wanted = [
        "default_transaction_read_only=on",
        "idle_in_transaction_session_timeout=10s",
        "statement_timeout=5s",
        "temp_file_limit=1GB",
    ];
    assert_eq!(limits, wanted);
}
