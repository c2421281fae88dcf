//! Chooses the account that the server runs as, because Postgres refuses to run as root.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::binaries::{self, Binaries};
use super::cluster::Cluster;
use super::{LocalPostgresError, file_error};

/// User id of `nobody`.
const NOBODY: u32 = 65_534;
/// Timeout of the program that tests whether an account works.
const TRY_LIMIT: Duration = Duration::from_secs(20);

/// The account that the server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    /// The account of this process, which is not root.
    Own,
    /// Another account: this process is root and drops that privilege for the server.
    Other { uid: u32, gid: u32 },
    /// A user namespace in which root's files belong to an unprivileged user.
    Namespace,
}

impl Account {
    /// Chooses the account. This is the current one unless it is root. For root, it is the owner of
    /// the files, or `nobody` if root owns them. If that account has no access, it is a user
    /// namespace.
    pub(super) async fn choose(cluster: &Cluster, binaries: &Binaries) -> Result<Self, LocalPostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Own);
        }
        let other = match std::fs::symlink_metadata(&cluster.dir) {
            Ok(owner) if owner.uid() != 0 => Self::Other { uid: owner.uid(), gid: owner.gid() },
            _ => Self::Other { uid: NOBODY, gid: NOBODY },
        };
        for account in [other, Self::Namespace] {
            // Runs in the data folder, so it tests access to both the folder and the programs.
            let mut command = account.command(cluster, &binaries.postgres());
            command.arg("--version");
            match binaries::run(command, TRY_LIMIT).await {
                Ok(_) => return Ok(account),
                Err(error) => tracing::debug!(?account, %error, "Postgres cannot run as this account"),
            }
        }
        let uid = match other {
            Self::Other { uid, .. } => uid,
            Self::Own | Self::Namespace => NOBODY,
        };
        Err(LocalPostgresError::NoAccount { uid, data_dir: cluster.data_dir.clone(), bin: binaries.dir.clone() })
    }

    /// Returns a command that runs `program` as this account in the data folder.
    pub(super) fn command(self, cluster: &Cluster, program: &Path) -> Command {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Other { uid, gid } => {
                // The standard library also drops root's supplementary groups.
                let mut command = Command::new(program);
                command.uid(uid).gid(gid);
                command
            }
            Self::Namespace => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-user=1000", "--map-group=1000", "--"].map(OsStr::new)).arg(program);
                command
            }
        };
        command.current_dir(&cluster.data_dir);
        command
    }

    /// Changes the owner of `path` and everything below it to this account.
    pub(super) fn give(self, path: &Path) -> Result<(), LocalPostgresError> {
        let (uid, gid) = match self {
            Self::Own => return Ok(()),
            Self::Other { uid, gid } => (uid, gid),
            Self::Namespace => (0, 0),
        };
        let owner = std::fs::symlink_metadata(path).map_err(|e| file_error(path, e))?;
        if owner.uid() != uid {
            chown_all(path, uid, gid)?;
        }
        Ok(())
    }
}

/// Changes the owner of children first, so that a `path` with the new owner is complete.
fn chown_all(path: &Path, uid: u32, gid: u32) -> Result<(), LocalPostgresError> {
    let failed = |e| file_error(path, e);
    if std::fs::symlink_metadata(path).map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            chown_all(&entry.map_err(failed)?.path(), uid, gid)?;
        }
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(failed)
}
