//! Postgres's data directory. It is created atomically, and never served by two processes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use uuid::Uuid;

use super::account::Account;
use super::binaries::{self, Binaries};
use super::password::Password;
use super::{FAST_STOP_LIMIT, IMMEDIATE_STOP_LIMIT, LocalPostgresError, NAME, POLL, file_error};

/// Timeout of `initdb`, which usually takes one or two seconds.
const INITDB_LIMIT: Duration = Duration::from_secs(180);
/// Name prefix of incomplete data directories.
const PART_PREFIX: &str = "cluster.part-";

/// A data directory and the folder that contains it.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) data_dir: PathBuf,
    pub(super) dir: PathBuf,
}

impl Cluster {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), dir: data_dir.join("cluster") }
    }

    /// Returns the major version that created the directory, or `None` if it does not exist.
    pub(super) fn version(&self) -> Result<Option<u32>, LocalPostgresError> {
        let path = self.dir.join("PG_VERSION");
        match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(major) => Ok(Some(major)),
                Err(_) => Err(file_error(&path, std::io::Error::other(format!("`{}` is not a version", text.trim())))),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file_error(&path, e)),
        }
    }

    /// Creates the directory if it does not exist, and makes `account` its owner.
    pub(super) async fn make(
        &self,
        binaries: &Binaries,
        account: Account,
        password: &Password,
    ) -> Result<(), LocalPostgresError> {
        self.remove_parts()?;
        if self.dir.exists() {
            return account.give(&self.dir);
        }
        // If this process dies during `initdb`, it leaves only a temporary directory behind.
        let part = self.data_dir.join(format!("{PART_PREFIX}{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&part).map_err(|e| file_error(&part, e))?;
        account.give(&part)?;
        let mut initdb = account.command(self, &binaries.initdb());
        initdb.arg("-D").arg(&part).args(["-U", NAME, "-E", "UTF8", "--no-locale", "--no-instructions"]);
        let copy = password.for_initdb(account)?;
        initdb.args(["-A", "scram-sha-256"]).arg("--pwfile").arg(copy.path());
        // A new directory has no data yet that could be lost in a crash.
        initdb.arg("--no-sync");
        let made = binaries::run(initdb, INITDB_LIMIT).await;
        let made = made.and_then(|_| std::fs::rename(&part, &self.dir).map_err(|e| file_error(&self.dir, e)));
        if made.is_err() {
            // Report the first error.
            drop(std::fs::remove_dir_all(&part));
        }
        made
    }

    fn remove_parts(&self) -> Result<(), LocalPostgresError> {
        let failed = |e| file_error(&self.data_dir, e);
        for entry in std::fs::read_dir(&self.data_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().to_string_lossy().starts_with(PART_PREFIX) {
                continue;
            }
            // The `initdb` of a dead owner may still be writing there. The next start then removes
            // it.
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::info!(path = %entry.path().display(), "removed an incomplete data directory"),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "cannot remove an incomplete data directory")
                }
            }
        }
        Ok(())
    }

    /// Stops the server that a dead owner left running. The caller holds the folder's lock, so the
    /// server has no owner.
    pub(super) async fn stop_orphan(&self) -> Result<(), LocalPostgresError> {
        let Some(pid) = self.postmaster()? else { return Ok(()) };
        if !self.is_served_by(pid) {
            if matches!(test_kill_process(pid), Ok(()) | Err(Errno::PERM)) {
                // Another process has this pid now. Postgres would mistake it for the old server.
                let path = self.dir.join("postmaster.pid");
                std::fs::remove_file(&path).map_err(|e| file_error(&path, e))?;
            }
            return Ok(());
        }
        let pid_text = pid.as_raw_nonzero();
        tracing::warn!(pid = %pid_text, data_dir = %self.data_dir.display(), "stopping the Postgres of a dead process");
        for (signal, limit) in
            [(Signal::INT, FAST_STOP_LIMIT), (Signal::QUIT, IMMEDIATE_STOP_LIMIT), (Signal::KILL, IMMEDIATE_STOP_LIMIT)]
        {
            // Fails if the process is already gone.
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                if !self.is_served_by(pid) {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Err(LocalPostgresError::NotStopped { pid: pid_text.get(), data_dir: self.data_dir.clone() })
    }

    /// Returns the pid in the directory's pid file. The process may no longer run.
    fn postmaster(&self) -> Result<Option<Pid>, LocalPostgresError> {
        let path = self.dir.join("postmaster.pid");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
                Ok(pid.filter(|pid| *pid > 1).and_then(Pid::from_raw))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file_error(&path, e)),
        }
    }

    /// Returns whether the process is a Postgres on this directory. Checks the command line,
    /// because pids are reused.
    fn is_served_by(&self, pid: Pid) -> bool {
        let command_line = match std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) {
            Ok(arguments) => String::from_utf8_lossy(&arguments).replace('\0', " "),
            Err(_) => {
                let ps = Command::new("ps").args(["-ww", "-o", "command=", "-p"]).arg(pid.to_string()).output();
                ps.map(|ps| String::from_utf8_lossy(&ps.stdout).into_owned()).unwrap_or_default()
            }
        };
        command_line.contains("postgres") && command_line.contains(&format!(" -D {} ", self.dir.display()))
    }
}
