//! Finds the programs of a Postgres server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::LocalPostgresError;

/// Timeout of a program that only prints information, such as its version.
const ASK_LIMIT: Duration = Duration::from_secs(20);

/// A folder that contains `postgres` and `initdb`.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    /// Returns the programs in `given` if it is set. Otherwise searches the usual folders, and
    /// prefers programs of the major version `wanted` over the first ones found.
    pub(super) async fn find(given: Option<&Path>, wanted: Option<u32>) -> Result<Self, LocalPostgresError> {
        if let Some(dir) = given {
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            return if is_complete(&dir) { Self::at(dir).await } else { Err(LocalPostgresError::NotBinaries(dir)) };
        }
        let mut first = None;
        for dir in candidates().await.into_iter().filter(|dir| is_complete(dir)) {
            // Skip programs that cannot print their version.
            let Ok(found) = Self::at(dir).await else { continue };
            if wanted.is_none_or(|wanted| wanted == found.major) {
                return Ok(found);
            }
            first = first.or(Some(found));
        }
        first.ok_or(LocalPostgresError::NoBinaries)
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    async fn at(dir: PathBuf) -> Result<Self, LocalPostgresError> {
        let program = dir.join("postgres");
        let mut command = Command::new(&program);
        command.arg("--version");
        let version = run(command, ASK_LIMIT).await?;
        match major_version(&version) {
            Some(major) => Ok(Self { dir, major }),
            None => {
                let problem = format!("printed `{}` instead of a Postgres version", version.trim());
                Err(LocalPostgresError::Program { program, problem })
            }
        }
    }
}

/// Runs a program until it exits, and returns its standard output.
pub(super) async fn run(command: Command, limit: Duration) -> Result<String, LocalPostgresError> {
    let program = PathBuf::from(command.get_program());
    let failed = |problem: String| LocalPostgresError::Program { program: program.clone(), problem };
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| failed(format!("did not exit within {} s", limit.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{}: {}", output.status, said.trim())))
}

/// Parses the major version, for example 15 from
/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn is_complete(dir: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|program| dir.join(program).is_file())
}

async fn candidates() -> Vec<PathBuf> {
    let mut ask = Command::new("pg_config");
    ask.arg("--bindir");
    let named = run(ask, ASK_LIMIT).await.ok().map(|dir| PathBuf::from(dir.trim()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // `make install` puts the Postgres that `make setup` fetched here.
    let installed = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("postgres/bin")));
    named
        .into_iter()
        .chain(newest_first("/usr/lib/postgresql", ""))
        .chain(newest_first("/opt/homebrew/opt", "postgresql@"))
        .chain(newest_first("/usr/local/opt", "postgresql@"))
        .chain(std::env::split_paths(&path))
        .chain(installed)
        .collect()
}

/// Returns the `bin` folder of each `{parent}/{prefix}{version}`, newest version first.
fn newest_first(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, bin)| bin).collect()
}

#[cfg(test)]
mod tests {
    use super::major_version;

    #[test]
    fn versions() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_version("postgres (Fork) 4.2"), None);
    }
}
