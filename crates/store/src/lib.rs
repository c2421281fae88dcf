//! All SQL.
//!
//! Owns: the job tables with their leases and fences ([`jobs`]), runs and their inbox ([`runs`]), artifacts
//! ([`artifacts`]), metric points ([`metrics`]), parts of evaluations
//! ([`evaluation_units`]), scores side by side ([`scores`]) and notifications ([`notify`]).
//!
//! Entry point: [`Store::connect`].
//!
//! Must never: decide what a job or a run does next (that is `inheritune_domain`), or read the machine's clock where
//! the database's `now()` can be asked.

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
/// A connection that was idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_millis(500);
const BEGIN_LIST: &str = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on; \
                          SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";
/// Postgres's code for a write where none is taken.
const READ_ONLY: &str = "25006";
/// Postgres's code for a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// Why a call on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres could not be reached or refused.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The object store could not be reached or refused.
    #[error("object store: {0}")]
    Objects(#[from] object_store::Error),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The caller's lease is no longer its own: what it wrote was refused. It must stop.
    #[error("the lease on job {0} was lost")]
    LeaseLost(inheritune_domain::id::JobId),
    /// Nothing of this id.
    #[error("{kind} {id} does not exist")]
    NotFound {
        /// `run`, `job`, `artifact`, `file`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The same `request_id` came with another body.
    #[error("request_id {0} was used before with another request")]
    RequestIdReused(uuid::Uuid),
    /// The state does not allow it.
    #[error("{0}")]
    WrongState(String),
    /// A stored object is not what its manifest says.
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
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self.class() {
            FailureClass::Retryable | FailureClass::Unavailable => true,
            FailureClass::Permanent | FailureClass::Crashed | FailureClass::Killed => false,
        }
    }

    /// What it means for a job that meets it.
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

    /// Whether the database, the object store or a disk is away for now, whatever was asked of it.
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
            // By SQLSTATE: connection, resources (a full disk among them), operator, system; a standby that takes no writes.
            let away = ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) || code == READ_ONLY;
            if away { FailureClass::Unavailable } else { FailureClass::Retryable }
        }
        _ => FailureClass::Retryable,
    }
}

/// Where the store is.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `postgres://user:password@host/database`.
    pub database_url: String,
    /// Connections at most, at least 2.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
    /// The object store.
    pub objects: ObjectsConfig,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL holds a password.
        f.debug_struct("StoreConfig")
            .field("max_connections", &self.max_connections)
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

fn default_max_connections() -> u32 {
    8
}

/// Handle on the database and the object store; cheap to clone.
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
    /// Connects to both; does not migrate.
    ///
    /// # Errors
    /// The database or the object store cannot be reached, or the configuration is wrong.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let options: PgConnectOptions = config.database_url.parse()?;
        let options = options.application_name("inheritune").extra_float_digits(None);
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections.max(2))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(sessions::SETTINGS).execute(connection).await.map(|_| ()) })
            })
            // A connection that was used a moment ago need not be asked whether it still is one.
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

    /// The same store: runs and jobs that are created through it, and the jobs of these runs, are parts of a trace,
    /// named by a W3C `traceparent`.
    #[must_use]
    pub fn in_trace(&self, trace_parent: Option<&str>) -> Self {
        Self { trace_parent: trace_parent.map(Arc::from), ..self.clone() }
    }

    fn trace_parent(&self) -> Option<&str> {
        self.trace_parent.as_deref()
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// [`StoreError::WrongState`] when somebody else holds a lock that it needs for longer than `lock_timeout`, 30 s
    /// where none is set, saying who; [`StoreError::Migrate`].
    pub async fn migrate(&self) -> Result<(), StoreError> {
        sessions::check(&self.pool.connect_options()).await?;
        migrate::run(&MIGRATIONS, &self.pool).await
    }

    /// Ends the sessions of dashboards whose query or transaction has gone on for longer than `limit`; says how many.
    ///
    /// # Errors
    /// The database's.
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

    /// Sees to it that all migrations this program knows have run, later ones may have, too, and that connections keep their
    /// sessions.
    ///
    /// # Errors
    /// [`StoreError::WrongState`], saying what to do.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        sessions::check(&self.pool.connect_options()).await?;
        let needed = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
        // Not a checked query: the table is made by the first migration that runs.
        let newest = "-- store.schema\nSELECT max(version) FROM _sqlx_migrations WHERE success";
        let found = match sqlx::query_scalar::<_, Option<i64>>(newest).fetch_one(&self.pool).await {
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some(UNDEFINED_TABLE) => None,
            found => found?,
        };
        match found {
            Some(found) if found >= needed => Ok(()),
            found => Err(StoreError::WrongState(format!(
                "the database's schema is at migration {}, this program needs {needed}: run `inheritune-scheduler migrate`",
                found.unwrap_or_default()
            ))),
        }
    }

    /// A transaction whose statements are planned for the values they get and the tables as they are: for lists with
    /// filters that may be absent, and for what reads whole tables.
    pub(crate) async fn begin_list(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, StoreError> {
        Ok(self.pool.begin_with(BEGIN_LIST).await?)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!("-- store.ping\nSELECT 1 AS one").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// The object store.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The connections, for tests and benches only: SQL lives in this crate.
    pub fn pool(&self) -> &sqlx::PgPool {
        &self.pool
    }
}
