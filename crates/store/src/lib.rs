//! The database: all SQL of the project.
//!
//! Owns: the job tables with their leases and fences ([`jobs`]), runs and their inbox ([`runs`]),
//! artifacts ([`artifacts`]), metric points ([`metrics`]), evaluation units ([`evaluation_units`]),
//! the comparison of scores ([`scores`]) and notifications ([`notify`]).
//!
//! Entry point: [`Store::connect`].
//!
//! Must never: decide what a job or a run does next (`inheritune_domain` does that), or read the
//! machine's clock where the database's `now()` is available.

pub mod jobs;
pub mod runs;
pub mod artifacts;
pub mod metrics;
pub mod evaluation_units;
pub mod scores;
pub mod notify;
mod migrate;
mod report;
mod rows;
mod run_models;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use inheritune_domain::job::FailureClass;
use inheritune_objects::{ObjectError, Objects, ObjectsConfig};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// Longest wait for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle time after which a connection is tested before it is used.
const TRUSTED_IDLE: Duration = Duration::from_millis(500);
const BEGIN_LIST: &str = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on; \
                          SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";
/// Postgres's error code for a write in a read-only transaction.
const READ_ONLY: &str = "25006";
/// Postgres's error code for a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// Why a call on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres is unreachable or rejected the statement.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The object store is unreachable or rejected the request.
    #[error("object store: {0}")]
    Objects(#[from] object_store::Error),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The caller no longer holds the lease. Its write was rejected and it must stop.
    #[error("the lease on job {0} was lost")]
    LeaseLost(inheritune_domain::id::JobId),
    /// Nothing with this id exists.
    #[error("{kind} {id} does not exist")]
    NotFound {
        /// `run`, `job`, `artifact` or `file`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The `request_id` was already used with a different body.
    #[error("request_id {0} was already used for a different request")]
    RequestIdReused(uuid::Uuid),
    /// The current state does not allow the operation.
    #[error("{0}")]
    WrongState(String),
    /// A stored object does not match its manifest, or stored data is invalid.
    #[error("{name}: {problem}")]
    Corrupt {
        /// The object or file.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A location that this service may not read.
    #[error("{location}: {problem}")]
    Location {
        /// The location.
        location: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl From<ObjectError> for StoreError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Store(error) => Self::Objects(error),
            ObjectError::File { path, source } => Self::File { path, source },
            ObjectError::NotFound(file) => Self::NotFound { kind: "file", id: file },
            ObjectError::GivenUp(_) => Self::WrongState(error.to_string()),
            ObjectError::Corrupt { name, problem } => Self::Corrupt { name, problem },
            ObjectError::Location { location, problem } => Self::Location { location, problem },
        }
    }
}

impl StoreError {
    /// Returns whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self.class() {
            FailureClass::Retryable | FailureClass::Unavailable => true,
            FailureClass::Permanent | FailureClass::Crashed | FailureClass::Killed => false,
        }
    }

    /// Returns how a job treats this error.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Database(e) => of_database(e),
            Self::File { source, .. } => inheritune_objects::error::class_of_file(source),
            Self::Objects(e) => inheritune_objects::error::class_of_store(e),
            Self::Migrate(_)
            | Self::LeaseLost(_)
            | Self::NotFound { .. }
            | Self::RequestIdReused(_)
            | Self::WrongState(_)
            | Self::Corrupt { .. }
            | Self::Location { .. } => FailureClass::Permanent,
        }
    }

    /// Returns whether the database, the object store or a disk is temporarily unavailable.
    pub fn is_unavailable(&self) -> bool {
        self.class() == FailureClass::Unavailable
    }
}

fn of_database(error: &sqlx::Error) -> FailureClass {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => FailureClass::Unavailable,
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default();
            // SQLSTATE classes: connection, insufficient resources (such as a full disk), operator
            // intervention, system error; and the code of a read-only standby.
            let away = ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) || code == READ_ONLY;
            if away { FailureClass::Unavailable } else { FailureClass::Retryable }
        }
        _ => FailureClass::Retryable,
    }
}

/// Configures the database and the object store.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `postgres://user:password@host/database`.
    pub database_url: String,
    /// Most connections to the database. Values below 2 count as 2.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
    /// The object store.
    pub objects: ObjectsConfig,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL contains a password.
        f.debug_struct("StoreConfig")
            .field("max_connections", &self.max_connections)
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

fn default_max_connections() -> u32 {
    8
}

/// A handle to the database and the object store. Clones are cheap.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: sqlx::PgPool,
    pub(crate) objects: Arc<Objects>,
    pub(crate) wakeups: Arc<tokio::sync::OnceCell<notify::Wakeups>>,
    pub(crate) announcer: notify::Announcer,
    trace_parent: Option<Arc<str>>,
    pub(crate) claim_starts: Arc<jobs::ClaimStarts>,
}

impl Store {
    /// Connects to the database and opens the object store. Does not run migrations.
    ///
    /// # Errors
    /// The database is unreachable, or the configuration is invalid.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let options: PgConnectOptions = config.database_url.parse()?;
        let options = options.application_name("inheritune").extra_float_digits(None);
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections.max(2))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(sessions::SETTINGS).execute(connection).await.map(|_| ()) })
            })
            // Skip the test for connections that were used recently.
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move { Ok(metadata.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok()) })
            })
            .connect_with(options)
            .await?;
        let objects = Objects::new(&config.objects)?;
        Ok(Self {
            announcer: notify::Announcer::start(pool.clone()),
            pool,
            objects: Arc::new(objects),
            wakeups: Arc::default(),
            claim_starts: Arc::default(),
            trace_parent: None,
        })
    }

    /// Returns a handle to the same store with a W3C `traceparent`. Runs and jobs that are created
    /// through it, and the jobs of these runs, belong to that trace.
    #[must_use]
    pub fn in_trace(&self, trace_parent: Option<&str>) -> Self {
        Self { trace_parent: trace_parent.map(Arc::from), ..self.clone() }
    }

    fn trace_parent(&self) -> Option<&str> {
        self.trace_parent.as_deref()
    }

    /// Runs the pending migrations and updates the views.
    ///
    /// # Errors
    /// [`StoreError::WrongState`] if another session holds a required lock for longer than
    /// `lock_timeout` (30 s if it is not set), which names that session; [`StoreError::Migrate`].
    pub async fn migrate(&self) -> Result<(), StoreError> {
        sessions::check(&self.pool.connect_options()).await?;
        migrate::run(&MIGRATIONS, &self.pool).await
    }

    /// Terminates the sessions of dashboards whose query or transaction has run for longer than
    /// `limit`. Returns how many.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn end_dashboard_queries(&self, limit: Duration) -> Result<u64, StoreError> {
        let ended = sqlx::query_scalar!(
            r#"-- store.end_dashboard_queries
             SELECT end_dashboard_queries($1::float8 * interval '1 second') AS "ended!""#,
            limit.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::from(rows::count(ended)))
    }

    /// Checks that all migrations of this program have run, and that connections keep their
    /// sessions. Later migrations may have run too.
    ///
    /// # Errors
    /// [`StoreError::WrongState`], which says what to do.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        sessions::check(&self.pool.connect_options()).await?;
        let needed = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
        // Not a checked query, because the first migration creates the table.
        let newest = "-- store.schema\nSELECT max(version) FROM _sqlx_migrations WHERE success";
        let found = match sqlx::query_scalar::<_, Option<i64>>(newest).fetch_one(&self.pool).await {
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some(UNDEFINED_TABLE) => None,
            found => found?,
        };
        match found {
            Some(found) if found >= needed => Ok(()),
            found => Err(StoreError::WrongState(format!(
                "the database schema is at migration {}, but this program needs {needed}: run \
                 `inheritune-scheduler migrate`",
                found.unwrap_or_default()
            ))),
        }
    }

    /// Begins a transaction whose statements are planned for their actual parameters and the
    /// current table sizes. It is for lists with optional filters, and for queries that read whole
    /// tables.
    pub(crate) async fn begin_list(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, StoreError> {
        Ok(self.pool.begin_with(BEGIN_LIST).await?)
    }

    /// Checks that the database responds.
    ///
    /// # Errors
    /// The database does not respond.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!("-- store.ping\nSELECT 1 AS one").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Returns the object store.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Returns the connection pool, for tests and benchmarks only, because SQL belongs in this
    /// crate.
    pub fn pool(&self) -> &sqlx::PgPool {
        &self.pool
    }
}
