//! The superuser's password, in a file that only the owner of the data folder may read. A private
//! socket folder alone is not enough: if this process is root, the server and its socket belong to
//! another account, which other programs may also use.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use super::account::Account;
use super::cluster::Cluster;
use super::{LocalPostgresError, NAME, file_error};

/// Password file in the format of libpq: `psql 'postgres://…&passfile=…'`.
const FILE: &str = "pgpass";
/// Name of the same file until the server requires the password.
const PART: &str = "pgpass.part";
/// File from which `initdb` reads the password.
const FOR_INITDB: &str = "pgpass.initdb";

/// The password of a data folder.
pub(super) struct Password {
    data_dir: PathBuf,
    pub(super) text: String,
    /// Whether the server requires the password.
    is_kept: bool,
}

impl Password {
    /// Returns the folder's password, or creates one.
    pub(super) fn of(data_dir: &Path) -> Result<Self, LocalPostgresError> {
        let found = |text, is_kept| Self { data_dir: data_dir.to_owned(), text, is_kept };
        if let Some(text) = read(&data_dir.join(FILE))? {
            return Ok(found(text, true));
        }
        let part = data_dir.join(PART);
        if let Some(text) = read(&part)? {
            return Ok(found(text, false));
        }
        // 244 random bits from the operating system.
        let text = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        write(&part, &format!("*:*:*:{NAME}:{text}\n"))?;
        Ok(found(text, false))
    }

    /// Returns the path of the password file for psql.
    pub(super) fn path(&self) -> PathBuf {
        self.data_dir.join(FILE)
    }

    /// Writes a copy that `initdb` can read as `account`. Dropping the copy removes it.
    pub(super) fn for_initdb(&self, account: Account) -> Result<Copy, LocalPostgresError> {
        let copy = Copy(self.data_dir.join(FOR_INITDB));
        write(&copy.0, &self.text)?;
        account.give(&copy.0)?;
        Ok(copy)
    }

    /// Makes the server at `url` require the password. A server that an older version created
    /// trusts everyone who can reach its socket.
    pub(super) async fn keep(mut self, cluster: &Cluster, url: &str) -> Result<(), LocalPostgresError> {
        if self.is_kept {
            return Ok(());
        }
        let mut connection = PgConnection::connect(url).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("ALTER ROLE {NAME} PASSWORD '{}'", self.text)))
            .execute(&mut connection)
            .await?;
        let rules = cluster.dir.join("pg_hba.conf");
        let failed = |e| file_error(&rules, e);
        let text = std::fs::read_to_string(&rules).map_err(failed)?;
        std::fs::write(&rules, without_trust(&text)).map_err(failed)?;
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await?;
        connection.close().await?;
        let (part, kept) = (self.data_dir.join(PART), self.path());
        std::fs::rename(part, &kept).map_err(|e| file_error(&kept, e))?;
        self.is_kept = true;
        Ok(())
    }
}

/// A temporary file. Dropping it removes the file.
pub(super) struct Copy(PathBuf);

impl Copy {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // If this fails, the next `initdb` overwrites the file.
        drop(std::fs::remove_file(&self.0));
    }
}

fn read(path: &Path) -> Result<Option<String>, LocalPostgresError> {
    match std::fs::read_to_string(path) {
        Ok(text) => match text.trim_end().rsplit(':').next() {
            Some(password) if !password.is_empty() => Ok(Some(password.to_owned())),
            _ => Err(file_error(path, std::io::Error::other("contains no password"))),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_error(path, e)),
    }
}

/// Writes a file that only its owner can read, and syncs it to disk.
fn write(path: &Path, text: &str) -> Result<(), LocalPostgresError> {
    let failed = |e| file_error(path, e);
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        Ok(()) | Err(_) => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Returns the rules with every `trust` replaced. `initdb` writes one rule per line.
fn without_trust(rules: &str) -> String {
    let rule = |line: &str| match line.trim_end().strip_suffix("trust") {
        Some(rule) if !line.trim_start().starts_with('#') => format!("{rule}scram-sha-256\n"),
        Some(_) | None => format!("{line}\n"),
    };
    rules.lines().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::without_trust;

    #[test]
    fn nobody_is_trusted() {
        let rules = "# METHOD can be \"trust\", or\n# trust\nlocal   all  all   trust\nhost all all ::1/128 trust \n\nlocal all x peer\n";
        let asked = "# METHOD can be \"trust\", or\n# trust\nlocal   all  all   scram-sha-256\nhost all all ::1/128 scram-sha-256\n\nlocal all x peer\n";
        assert_eq!(without_trust(rules), asked);
    }
}
