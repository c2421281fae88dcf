//! Which account the server runs as: Postgres refuses to be root.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::binaries::{self, Binaries};
use super::cluster::Cluster;
use super::{LocalPostgresError, file_error};

/// `nobody`: the account that owns nothing.
const NOBODY: u32 = 65_534;
/// Longest run of the program that shows whether an account will do.
const TRY_LIMIT: Duration = Duration::from_secs(20);

/// Which account the server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    /// This process's own, which is not root.
    Own,
    /// Another one: this process is root and lets go of that.
    Other { uid: u32, gid: u32 },
    /// Root's own files, seen from a user namespace in which their owner is somebody else.
    Namespace,
}

impl Account {
    /// Our own when we are not root; else the owner of the files, else nobody; else a user namespace.
    pub(super) async fn choose(cluster: &Cluster, binaries: &Binaries) -> Result<Self, LocalPostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Own);
        }
        let other = match std::fs::symlink_metadata(&cluster.dir) {
            Ok(owner) if owner.uid() != 0 => Self::Other { uid: owner.uid(), gid: owner.gid() },
            _ => Self::Other { uid: NOBODY, gid: NOBODY },
        };
        for account in [other, Self::Namespace] {
            // Runs in the data folder: shows that the account reaches both that and the programs.
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

    /// `program`, to be run as this account in the data folder.
    pub(super) fn command(self, cluster: &Cluster, program: &Path) -> Command {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Other { uid, gid } => {
                // The standard library drops root's supplementary groups as well.
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

    /// Makes everything below `path` this account's.
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

/// Children first: a `path` that has its new owner is done.
fn chown_all(path: &Path, uid: u32, gid: u32) -> Result<(), LocalPostgresError> {
    let failed = |e| file_error(path, e);
    if std::fs::symlink_metadata(path).map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            chown_all(&entry.map_err(failed)?.path(), uid, gid)?;
        }
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(failed)
}
