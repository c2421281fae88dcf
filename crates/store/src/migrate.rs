//! Migrations that do not wait for ever: whoever holds a lock that they need is named.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::StoreError;

/// Longest wait for one lock, unless the role or the URL says another one: for the migrations' own, which another `migrate`
/// holds, or for a table.
const LOCK_LIMIT: &str =
    "SELECT set_config('lock_timeout', '30s', false) FROM pg_settings WHERE name = 'lock_timeout' AND setting = '0'";
/// Between two looks at who is in the way.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Postgres's code for a lock that was not had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Runs what has not run yet, on a connection of its own.
pub(crate) async fn run(migrations: &Migrator, pool: &PgPool) -> Result<(), StoreError> {
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    sqlx::raw_sql(LOCK_LIMIT).execute(&mut connection).await?;
    // Not checked queries: they read the server's own views.
    let own: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let mut holders = Vec::new();
    let migrated = {
        let mut running = std::pin::pin!(migrations.run_direct(None, &mut connection, false));
        loop {
            match tokio::time::timeout(LOOK_INTERVAL, &mut running).await {
                Ok(migrated) => break migrated,
                // What is seen last is what it waited for; a look that fails tells nothing.
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
                "the schema was not brought up to date: a lock that this needs was held for too long by {holders}. Wait for it, \
                 or end it (SELECT pg_terminate_backend(PID)), and try again"
            )))
        }
        Err(error) => Err(error.into()),
    }
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
