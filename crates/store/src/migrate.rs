//! Runs migrations. If a required lock is not available in time, the error names its holder.

use std::time::Duration;

use inheritune_domain::id::Sha256Digest;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use crate::StoreError;

/// Sets the longest wait for one lock, unless the role or the URL already sets it. The lock may be
/// that of the migrations, which another `migrate` holds, or that of a table.
const LOCK_LIMIT: &str =
    "SELECT set_config('lock_timeout', '30s', false) FROM pg_settings WHERE name = 'lock_timeout' AND setting = '0'";
/// Interval between two checks for sessions that block the migrations.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Postgres's error code for a lock timeout.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Runs the pending migrations on a separate connection.
pub(crate) async fn run(migrations: &Migrator, pool: &PgPool) -> Result<(), StoreError> {
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    sqlx::raw_sql(LOCK_LIMIT).execute(&mut connection).await?;
    // Not checked queries, because they read system views.
    let own: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let mut holders = Vec::new();
    let migrated = {
        let mut running = std::pin::pin!(async {
            migrations.run_direct(None, &mut connection, false).await?;
            Ok::<_, MigrateError>(write_views(&mut connection).await?)
        });
        loop {
            match tokio::time::timeout(LOOK_INTERVAL, &mut running).await {
                Ok(migrated) => break migrated,
                // The last holders seen are the ones that caused a timeout. A failed check counts
                // as none.
                Err(_) => {
                    let found = in_the_way(pool, own).await.unwrap_or_default();
                    if holders.is_empty() && !found.is_empty() {
                        tracing::info!(holders = found.join("; "), "waiting for a lock");
                    }
                    holders = found;
                }
            }
        }
    };
    match migrated {
        Ok(()) => Ok(connection.close().await?),
        Err(error) if is_lock_timeout(&error) => {
            let holders = if holders.is_empty() { "another session".to_owned() } else { holders.join("; ") };
            Err(StoreError::WrongState(format!(
                "the schema was not migrated: {holders} held a required lock for too long. Wait for that session or \
                 terminate it (SELECT pg_terminate_backend(PID)), then try again"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// The views in `ops`. A view comes after the views that it reads.
const VIEWS: [&str; 12] = [
    include_str!("../../../views/jobs.sql"),
    include_str!("../../../views/runs.sql"),
    include_str!("../../../views/models.sql"),
    include_str!("../../../views/job_attempts.sql"),
    include_str!("../../../views/training_curves.sql"),
    include_str!("../../../views/scores.sql"),
    include_str!("../../../views/workers.sql"),
    include_str!("../../../views/artifacts.sql"),
    include_str!("../../../views/queue.sql"),
    include_str!("../../../views/evaluation_units.sql"),
    include_str!("../../../views/leaderboard.sql"),
    include_str!("../../../views/traces.sql"),
];
/// Advisory lock of transactions that update the views.
const VIEWS_LOCK: i64 = 0x696e_6865_7269_7475;

/// Updates the views to the definitions of this program, unless they are current. This works on the
/// existing views because later releases only add columns.
async fn write_views(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let text = VIEWS.concat();
    let digest = Sha256Digest::of(text.as_bytes()).to_string();
    let mut tx = connection.begin().await?;
    sqlx::query("-- schema_views.lock\nSELECT pg_advisory_xact_lock($1)").bind(VIEWS_LOCK).execute(&mut *tx).await?;
    let newest = "-- schema_views.read\nSELECT digest FROM schema_views";
    if sqlx::query_scalar::<_, String>(newest).fetch_optional(&mut *tx).await?.as_deref() == Some(&digest) {
        return tx.rollback().await;
    }
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *tx).await?;
    let noted = "-- schema_views.write
        INSERT INTO schema_views (digest) VALUES ($1) ON CONFLICT (singleton) DO UPDATE SET digest = excluded.digest";
    sqlx::query(noted).bind(&digest).execute(&mut *tx).await?;
    tx.commit().await
}

async fn in_the_way(pool: &PgPool, of: i32) -> Result<Vec<String>, sqlx::Error> {
    let holders = "-- migrate.in_the_way
        SELECT format('process %s of Postgres (application `%s`, role %s, query for %s s)', pid, left(application_name, 64),
                      usename, coalesce(extract(epoch FROM clock_timestamp() - query_start)::bigint::text, '?'))
        FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids($1)) LIMIT 4";
    sqlx::query_scalar(holders).bind(of).fetch_all(pool).await
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let error: &dyn std::error::Error = error;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error) {
            return refusal.code().as_deref() == Some(LOCK_NOT_AVAILABLE);
        }
        cause = error.source();
    }
    false
}
