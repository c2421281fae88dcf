//! The data folder, which only its owner can access, and the locations that jobs may read by
//! default.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use url::Url;

/// Creates `dir` if it does not exist, and makes it inaccessible to other users: it contains all
/// corpora, models and logs.
///
/// # Errors
/// The folder cannot be created, or belongs to another user.
pub(crate) fn make_private(dir: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("--data-dir {}", dir.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(context)?;
    let dir_path = dir.canonicalize().with_context(context)?;
    let mode = dir_path.metadata().with_context(context)?.mode();
    if mode & 0o077 != 0 {
        set_mode(&dir_path, 0o700).with_context(|| format!("{}: other users can access it", context()))?;
        tracing::info!(path = %dir_path.display(), "the data folder was accessible to other users; restricted it");
    }
    Ok(dir_path)
}

/// Lets the account `uid`, whose group has the same id, traverse `dir` to reach its own files
/// below. It cannot list the folder.
///
/// # Errors
/// The folder belongs to another user.
pub(crate) fn let_through(dir: &Path, uid: u32) -> anyhow::Result<()> {
    let context = || format!("--data-dir {}", dir.display());
    std::os::unix::fs::chown(dir, None, Some(uid)).with_context(context)?;
    set_mode(dir, 0o710).with_context(context)
}

fn set_mode(dir: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Returns the URI prefixes that jobs may read: the given URIs or folders. If none are given, the
/// current folder and the data folder.
///
/// # Errors
/// A folder has no URI, because its name is not UTF-8 or because it no longer exists.
pub(crate) fn allowed_uris(given: &[String], data_dir: &Path) -> anyhow::Result<Vec<String>> {
    if !given.is_empty() {
        return given
            .iter()
            .map(|prefix| if prefix.contains("://") { Ok(prefix.clone()) } else { folder(prefix) })
            .collect();
    }
    let here = std::env::current_dir().context("the current folder")?;
    let mut allowed = vec![uri_of(data_dir)?];
    // Service managers start processes in the root folder, which must not be allowed by default.
    if here != Path::new("/") {
        allowed.push(uri_of(&here)?);
    }
    Ok(allowed)
}

fn folder(path: &str) -> anyhow::Result<String> {
    uri_of(&std::path::absolute(path).with_context(|| format!("--allow-uri {path}"))?)
}

fn uri_of(dir: &Path) -> anyhow::Result<String> {
    Ok(Url::from_directory_path(dir).map_err(|()| anyhow::anyhow!("--allow-uri {}: has no URI", dir.display()))?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s5_the_data_folder_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        let fresh = dir.path().join("a/b");
        assert_eq!(make_private(&fresh).unwrap(), fresh.canonicalize().unwrap());
        assert_eq!(mode(&fresh), 0o700);
        for open in [0o755, 0o777, 0o711, 0o750] {
            set_mode(&fresh, open).unwrap();
            make_private(&fresh).unwrap();
            assert_eq!(mode(&fresh), 0o700, "from {open:o}");
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = make_private(&dir.path().join("file")).unwrap_err();
        assert!(format!("{error:#}").starts_with("--data-dir "), "{error:#}");
    }

    #[test]
    fn s5_jobs_read_where_this_was_started_and_nothing_else() {
        let data = Path::new("/srv/with space");
        let allowed = allowed_uris(&[], data).unwrap();
        let here = Url::from_directory_path(std::env::current_dir().unwrap()).unwrap().to_string();
        assert_eq!(allowed, ["file:///srv/with%20space/".to_owned(), here]);
        let given = ["file:///models/".to_owned(), "s3://bucket/x".to_owned(), "/data".to_owned()];
        assert_eq!(allowed_uris(&given, data).unwrap(), ["file:///models/", "s3://bucket/x", "file:///data/"]);
        assert!(allowed_uris(&["corpora".to_owned()], data).unwrap()[0].ends_with("/corpora/"));
    }
}
