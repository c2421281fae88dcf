//! Postgres sessions. Listeners, the migrations' lock and prepared statements need one session for
//! the lifetime of a connection. A pooler that assigns sessions per transaction (PgBouncer's
//! `pool_mode = transaction`) is rejected.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::StoreError;

/// Settings of every session. They are statements because poolers reject connection parameters.
///
/// - A process that freezes inside a transaction keeps its locks for at most 30 s.
/// - Statements are short and repeated. Planning or compiling each one again would take as long as
///   its execution, so generic plans are forced and JIT is off.
/// - Statements find their rows by index, even if the table was small when they were planned.
///   `begin_list` is for the other statements.
pub(crate) const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '30s'; SET plan_cache_mode = force_generic_plan; \
                                   SET jit = off; SET enable_seqscan = off; SET enable_hashjoin = off; \
                                   SET enable_mergejoin = off";
/// Timeout of the check.
const LIMIT: Duration = Duration::from_secs(15);

/// Checks that a connection keeps its session.
///
/// # Errors
/// [`StoreError::WrongState`] if it does not, which says what to do.
pub(crate) async fn check(options: &PgConnectOptions) -> Result<(), StoreError> {
    let kept = tokio::time::timeout(LIMIT, are_kept(options)).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
    if kept? {
        return Ok(());
    }
    Err(StoreError::WrongState(
        "the database URL points to a pooler that does not keep one Postgres session per connection: use \
         `pool_mode = session` (PgBouncer), or connect to Postgres directly"
            .to_owned(),
    ))
}

async fn are_kept(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let (mut one, mut other) = (PgConnection::connect_with(options).await?, PgConnection::connect_with(options).await?);
    let before = session(&mut one, "SELECT pg_backend_pid()").await?;
    // The transaction holds a session. If sessions are shared, most likely the one that was used
    // last.
    let held = session(&mut other, "BEGIN; SELECT pg_backend_pid()").await?;
    let kept = before != held && before == session(&mut one, "SELECT pg_backend_pid()").await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    one.close().await?;
    other.close().await?;
    Ok(kept)
}

/// Queries the backend pid with the simple protocol, which prepares no statement.
async fn session(connection: &mut PgConnection, query: &'static str) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql(query).fetch_one(connection).await?.try_get(0)
}
