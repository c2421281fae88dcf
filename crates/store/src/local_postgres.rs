//! A private Postgres.
use std::path::Path;

/// Why a private Postgres does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    /// No binaries.
    #[error("no Postgres binaries found")]
    NoBinaries,
}

/// A private Postgres.
#[derive(Debug)]
pub struct LocalPostgres {
    url: String,
}

#[allow(clippy::todo)]
impl LocalPostgres {
    /// Starts it.
    ///
    /// # Errors
    /// [`LocalPostgresError`].
    pub async fn start(_data_dir: &Path, _pg_bin: Option<&Path>) -> Result<Self, LocalPostgresError> {
        todo!()
    }
    /// Where it listens, for sqlx.
    pub fn url(&self) -> &str {
        &self.url
    }
    /// Makes an empty database and says where it is.
    ///
    /// # Errors
    /// [`LocalPostgresError`].
    pub async fn create_database(&self, _name: &str) -> Result<String, LocalPostgresError> {
        todo!()
    }
    /// Stops it.
    ///
    /// # Errors
    /// [`LocalPostgresError`].
    pub async fn stop(self) -> Result<(), LocalPostgresError> {
        todo!()
    }
}
