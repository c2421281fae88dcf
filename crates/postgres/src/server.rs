//! The server process.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use inheritune_ids::id::Sha256Digest;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};

use super::account::Account;
use super::binaries::Binaries;
use super::cluster::Cluster;
use super::password::Password;
use super::{FAST_STOP_LIMIT, IMMEDIATE_STOP_LIMIT, LocalPostgresError, NAME, POLL, file_error};

/// Longest wait for a server to start, including crash recovery.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for one connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the last processes of a killed server, which still hold its shared memory.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(15);
/// Size above which the log is rotated at the next start.
const LOG_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// Most lines of the log that an error shows.
const LOG_TAIL_LINES: usize = 20;
/// Port number in the name of the socket. The server does not listen on TCP.
const PORT: u16 = 5432;
/// Longest path of a socket in bytes. macOS allows 103, Linux 107.
const SOCKET_PATH_LIMIT: usize = 103;

/// Settings of the server. `fsync` stays on, because the database contains user data.
const SETTINGS: [&str; 12] = [
    "listen_addresses=",
    "max_connections=200",
    "shared_buffers=64MB",
    "wal_level=minimal",
    "max_wal_senders=0",
    "min_wal_size=32MB",
    "max_worker_processes=2",
    "jit=off",
    "logging_collector=off",
    "log_destination=stderr",
    "log_checkpoints=off",
    "log_line_prefix=%m [%p] ",
];

/// A running server. Dropping it tells the server to stop.
pub(super) struct Server {
    process: Child,
    data_dir: PathBuf,
    socket_dir: PathBuf,
    password: String,
}

impl Server {
    /// Starts a server and waits until it accepts connections.
    pub(super) async fn start(
        cluster: &Cluster,
        binaries: &Binaries,
        account: Account,
        password: &Password,
    ) -> Result<Self, LocalPostgresError> {
        let socket_dir = socket_dir(&cluster.data_dir, account)?;
        let deadline = Instant::now() + LEFTOVERS_LIMIT;
        loop {
            let mut log = Log::open(&cluster.data_dir)?;
            let mut command = account.command(cluster, &binaries.postgres());
            command.arg("-D").arg(&cluster.dir).arg("-k").arg(&socket_dir).args(["-p", &PORT.to_string()]);
            command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
            // A separate process group, so that Ctrl-C does not stop the server before its clients.
            command.process_group(0).stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
            let process = command.spawn().map_err(|e| file_error(&binaries.postgres(), e))?;
            let (data_dir, password) = (cluster.data_dir.clone(), password.text.clone());
            let mut server = Self { process, data_dir, socket_dir: socket_dir.clone(), password };
            let Err(problem) = server.answers().await else { return Ok(server) };
            let tail = log.tail();
            if !(tail.contains("shared memory block") && Instant::now() < deadline) {
                return Err(LocalPostgresError::NotStarted { problem, log: log.path, tail });
            }
            tokio::time::sleep(POLL * 10).await;
        }
    }

    /// Returns the URL of `database` for sqlx and psql, including the password.
    pub(super) fn url(&self, database: &str) -> String {
        self.address(database).replacen(NAME, &format!("{NAME}:{}", self.password), 1)
    }

    /// Returns the URL without the password.
    pub(super) fn address(&self, database: &str) -> String {
        let dir = encoded(&self.socket_dir);
        format!("postgres://{NAME}@localhost:{PORT}/{database}?host={dir}&sslmode=disable")
    }

    /// Disconnects all clients and stops the server. Kills it if that takes too long.
    pub(super) async fn stop(&mut self) -> Result<(), LocalPostgresError> {
        for (signal, limit) in
            [(Signal::INT, FAST_STOP_LIMIT), (Signal::QUIT, IMMEDIATE_STOP_LIMIT), (Signal::KILL, IMMEDIATE_STOP_LIMIT)]
        {
            self.tell(signal);
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                if self.process.try_wait().map_err(|e| file_error(&self.data_dir, e))?.is_some() {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
            tracing::warn!(pid = self.process.id(), ?signal, "Postgres does not stop");
        }
        Err(LocalPostgresError::NotStopped { pid: self.process.id().cast_signed(), data_dir: self.data_dir.clone() })
    }

    /// Waits until the server exits by itself. Returns its exit status.
    pub(super) async fn ended(&mut self) -> Result<String, LocalPostgresError> {
        loop {
            match self.process.try_wait().map_err(|e| file_error(&self.data_dir, e))? {
                Some(status) => return Ok(status.to_string()),
                None => tokio::time::sleep(POLL * 10).await,
            }
        }
    }

    async fn answers(&mut self) -> Result<(), String> {
        let url = self.url("postgres");
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            match self.process.try_wait() {
                Ok(Some(status)) => return Err(format!("the process exited: {status}")),
                Ok(None) => {}
                Err(e) => return Err(format!("cannot wait for the process: {e}")),
            }
            if let Ok(Ok(connection)) = tokio::time::timeout(CONNECT_LIMIT, PgConnection::connect(&url)).await {
                // The server accepts connections, even if closing this one fails.
                drop(connection.close().await);
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(format!("no response within {} s", START_LIMIT.as_secs()))
    }

    fn tell(&self, signal: Signal) {
        // Ignore errors, because the process may be gone. Its pid is not reused before it is
        // reaped.
        if let Some(pid) = Pid::from_raw(self.process.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Drop cannot wait for the exit. The next start on this folder does.
        if let Ok(None) = self.process.try_wait() {
            self.tell(Signal::INT);
        }
    }
}

/// Returns a path, encoded as a parameter of a URL.
pub(super) fn encoded(path: &Path) -> String {
    let path: String = url::form_urlencoded::byte_serialize(path.as_os_str().as_encoded_bytes()).collect();
    // libpq does not decode `+` as a space.
    path.replace('+', "%20")
}

/// Creates a private folder for the socket: in the data folder if the path is short enough, else in
/// `/tmp`.
fn socket_dir(data_dir: &Path, account: Account) -> Result<PathBuf, LocalPostgresError> {
    let near = data_dir.join("socket");
    let fits = near.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= SOCKET_PATH_LIMIT;
    let dir = if fits {
        near
    } else {
        // Derived from the data folder, so that its URL never changes.
        let digest = Sha256Digest::of(data_dir.as_os_str().as_encoded_bytes()).to_string();
        Path::new("/tmp").join(format!("inheritune-{}", &digest[..16]))
    };
    let failed = |e| file_error(&dir, e);
    match DirBuilder::new().mode(0o700).create(&dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && fits => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            // Any user may have created this folder in /tmp.
            let found = std::fs::symlink_metadata(&dir).map_err(failed)?;
            let trusted = match account {
                Account::Own => vec![rustix::process::geteuid().as_raw()],
                Account::Other { uid, .. } => vec![0, uid],
                Account::Namespace => vec![0],
            };
            if !found.is_dir() || !trusted.contains(&found.uid()) || found.mode() & 0o077 != 0 {
                return Err(failed(std::io::Error::other("is not a private folder of this account; remove it")));
            }
        }
        made => made.map_err(failed)?,
    }
    account.give(&dir)?;
    // Remove the files of a dead server. Another process may have the pid in the lock file now,
    // which would prevent the start.
    for leftover in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
        match std::fs::remove_file(dir.join(leftover)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    Ok(dir)
}

/// The log of the server.
struct Log {
    path: PathBuf,
    file: File,
    /// Length in bytes before this start.
    before: u64,
}

impl Log {
    fn open(data_dir: &Path) -> Result<Self, LocalPostgresError> {
        let path = data_dir.join("server.log");
        let failed = |e| file_error(&path, e);
        if std::fs::metadata(&path).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) {
            std::fs::rename(&path, data_dir.join("server.log.1")).map_err(failed)?;
        }
        let file = File::options().read(true).append(true).create(true).open(&path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?.len();
        Ok(Self { path, file, before })
    }

    fn writer(&self) -> Result<File, LocalPostgresError> {
        self.file.try_clone().map_err(|e| file_error(&self.path, e))
    }

    /// Returns the last lines since this start.
    fn tail(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.file.seek(SeekFrom::Start(self.before)).and_then(|_| self.file.read_to_end(&mut bytes));
        if let Err(e) = read {
            return format!("(cannot be read: {e})");
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}
