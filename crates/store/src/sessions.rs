//! Sessions of Postgres, which leases' listeners, the migrations' lock and prepared statements need for as long as a connection
//! lasts. A pooler that gives each transaction another one (PgBouncer's `pool_mode = transaction`) is refused.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::StoreError;

/// What every session is set to, by statements: poolers refuse parameters at the start of a connection. A process that freezes
/// inside a transaction keeps its locks for 30 s at most. Statements are short and repeated: planning, or compiling, each one anew
/// takes as long as what it does. They find their rows by index, however small the table was when they were planned; see
/// `begin_list` for the others.
pub(crate) const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '30s'; SET plan_cache_mode = force_generic_plan; \
                                   SET jit = off; SET enable_seqscan = off; SET enable_hashjoin = off; \
                                   SET enable_mergejoin = off";
/// Longest look.
const LIMIT: Duration = Duration::from_secs(15);

/// Sees to it that a connection keeps its session.
///
/// # Errors
/// [`StoreError::WrongState`] where it does not, saying what to do.
pub(crate) async fn check(options: &PgConnectOptions) -> Result<(), StoreError> {
    let kept = tokio::time::timeout(LIMIT, are_kept(options)).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
    if kept? {
        return Ok(());
    }
    Err(StoreError::WrongState(
        "the database URL leads to a pooler that gives each transaction another session of Postgres; sessions must last as \
         long as connections: use `pool_mode = session` (PgBouncer), or Postgres's own address"
            .to_owned(),
    ))
}

async fn are_kept(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let (mut one, mut other) = (PgConnection::connect_with(options).await?, PgConnection::connect_with(options).await?);
    let before = session(&mut one, "SELECT pg_backend_pid()").await?;
    // Holds a session until its end; where sessions are shared, most likely the one that was free last.
    let held = session(&mut other, "BEGIN; SELECT pg_backend_pid()").await?;
    let kept = before != held && before == session(&mut one, "SELECT pg_backend_pid()").await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    one.close().await?;
    other.close().await?;
    Ok(kept)
}

/// By the simple protocol: nothing is prepared.
async fn session(connection: &mut PgConnection, query: &'static str) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql(query).fetch_one(connection).await?.try_get(0)
}
