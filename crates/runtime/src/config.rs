//! Configuration: one TOML file per service. Unknown fields are rejected, and secrets can be kept
//! in separate files.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use inheritune_objects::ObjectsConfig;
use inheritune_store::StoreConfig;

/// Largest secret file that is read.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Errors of loading or checking a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid for the service; the message shows the line.
    #[error("{path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
    /// A field has an invalid value, or a required field is missing.
    #[error("`{field}` {problem}")]
    Field {
        /// The field, as it is spelled in the file.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// How a process is configured, which decides how messages name its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settings {
    /// By a configuration file: `worker.threads`.
    File,
    /// By command-line flags: `--threads`.
    Flags,
}

impl Settings {
    /// Returns the user-visible name of `field`, given as in the file (`worker.threads`).
    #[must_use]
    pub fn name(self, field: &str) -> String {
        match self {
            Self::File => field.to_owned(),
            Self::Flags => format!("--{}", field.rsplit('.').next().unwrap_or(field).replace('_', "-")),
        }
    }
}

/// Reads the TOML file at `path`. Types reject unknown fields with `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// The file cannot be read, is not valid TOML, or has fields that are missing, unknown or of the
/// wrong type; the message names the file and the line.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|e| ConfigError::Parse { path: path.to_owned(), problem: e.to_string() })
}

/// The section `[database]`, which is the same in every service's file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host/database`. Exactly one of `url` and `url_file` is required.
    #[serde(default)]
    pub url: Option<String>,
    /// A file that contains the URL, for deployments that mount secrets.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// Maximum number of database connections of this process.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL contains a password.
        f.debug_struct("DatabaseConfig").field("url_file", &self.url_file).finish_non_exhaustive()
    }
}

fn default_max_connections() -> u32 {
    8
}

impl DatabaseConfig {
    /// Returns the store's configuration, with the secret read from its file.
    ///
    /// # Errors
    /// Neither or both of `url` and `url_file` are given, the file cannot be read or is empty, or
    /// `max_connections` is 0.
    pub fn store_config(&self, objects: ObjectsConfig) -> Result<StoreConfig, ConfigError> {
        let field = |field, problem: &str| ConfigError::Field { field, problem: problem.to_owned() };
        let database_url = match (&self.url, &self.url_file) {
            (Some(url), None) => url.clone(),
            (None, Some(path)) => read_secret(path)?,
            (Some(_), Some(_)) => return Err(field("database.url", "and database.url_file are both given; keep one")),
            (None, None) => return Err(field("database.url", "is missing; give it, or database.url_file")),
        };
        if self.max_connections == 0 {
            return Err(field("database.max_connections", "must be at least 1"));
        }
        Ok(StoreConfig { database_url, max_connections: self.max_connections, objects })
    }
}

/// Reads a secret from its file and trims surrounding whitespace.
///
/// # Errors
/// The file cannot be read, is empty, or is longer than 64 KiB.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
    let parse_error = |problem: &str| ConfigError::Parse { path: path.to_owned(), problem: problem.to_owned() };
    if std::fs::metadata(path).map_err(read_error)?.len() > MAX_SECRET_BYTES {
        return Err(parse_error("is longer than 64 KiB; expected a single secret"));
    }
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    match text.trim() {
        "" => Err(parse_error("is empty; expected a secret")),
        secret => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::service::ServiceConfig;
    use expect_test::{Expect, expect};
    use inheritune_objects::StorageConfig;

    fn check(text: &str, expected: Expect) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.toml");
        std::fs::write(&path, text).unwrap();
        let loaded = load::<ServiceConfig>(&path).map(|config| config.worker.lease_ms).map_err(|e| e.to_string());
        let shown = match loaded {
            Ok(lease_ms) => format!("lease_ms {lease_ms}"),
            Err(error) => error.replace(&path.display().to_string(), "service.toml"),
        };
        expected.assert_eq(&shown);
    }

    const GOOD: &str =
        "listen = \"127.0.0.1:0\"\n[database]\nurl = \"postgres://x\"\n[objects.storage]\nkind = \"memory\"\n";

    #[test]
    fn unknown_fields_are_refused_with_file_and_line() {
        check(GOOD, expect!["lease_ms 5000"]);
        check(&format!("{GOOD}[worker]\nlease_ms = 9000\n"), expect!["lease_ms 9000"]);
        check(
            &format!("{GOOD}[worker]\nlease_sm = 9000\n"),
            expect![[r#"
                service.toml: TOML parse error at line 7, column 1
                  |
                7 | lease_sm = 9000
                  | ^^^^^^^^
                unknown field `lease_sm`, expected one of `heartbeat_ms`, `lease_ms`, `poll_ms`, `concurrency`, `cache_dir`, `cache_max_bytes`, `threads`, `stall_ms`, `shutdown_grace_ms`, `job_memory_max_bytes`, `job_disk_max_bytes`, `ceilings`
            "#]],
        );
    }

    fn database(url: Option<&str>, url_file: Option<&Path>) -> Result<String, String> {
        let config =
            DatabaseConfig { url: url.map(str::to_owned), url_file: url_file.map(Path::to_owned), max_connections: 1 };
        let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
        config.store_config(objects).map(|store| store.database_url).map_err(|e| e.to_string())
    }

    #[test]
    fn the_database_url_comes_from_exactly_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        std::fs::write(&path, "postgres://secret\n").unwrap();
        assert_eq!(database(Some("postgres://plain"), None).unwrap(), "postgres://plain");
        assert_eq!(database(None, Some(&path)).unwrap(), "postgres://secret");
        assert!(database(None, None).unwrap_err().contains("`database.url` is missing"));
        assert!(database(Some("postgres://plain"), Some(&path)).unwrap_err().contains("keep one"));
        std::fs::write(&path, " \n").unwrap();
        assert!(database(None, Some(&path)).unwrap_err().contains("is empty"));
        assert!(database(None, Some(&dir.path().join("none"))).unwrap_err().contains("none: No such file"));
    }
}
