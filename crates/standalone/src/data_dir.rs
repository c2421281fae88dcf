//! The data folder, which is its owner's alone, and what jobs may read without more words.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use url::Url;

/// Makes `dir` where it is absent, and keeps others out of it: it holds every corpus, model and log.
///
/// # Errors
/// It cannot be made, or is somebody else's.
pub(crate) fn make_private(dir: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("--data-dir {}", dir.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(context)?;
    let dir_path = dir.canonicalize().with_context(context)?;
    let mode = dir_path.metadata().with_context(context)?.mode();
    if mode & 0o077 != 0 {
        set_mode(&dir_path, 0o700).with_context(|| format!("{}: others may look into it", context()))?;
        tracing::info!(path = %dir_path.display(), "the data folder was open to other users; closed");
    }
    Ok(dir_path)
}

/// Lets the account `uid`, whose group has the same number, through `dir` to what it owns below. It sees no names.
///
/// # Errors
/// The folder is not ours.
pub(crate) fn let_through(dir: &Path, uid: u32) -> anyhow::Result<()> {
    let context = || format!("--data-dir {}", dir.display());
    std::os::unix::fs::chown(dir, None, Some(uid)).with_context(context)?;
    set_mode(dir, 0o710).with_context(context)
}

fn set_mode(dir: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// What jobs may read: what was given, URIs or folders; else the folder this process was started in and its data.
///
/// # Errors
/// A folder that has no URI: its name is not UTF-8, or it is gone.
pub(crate) fn allowed_uris(given: &[String], data_dir: &Path) -> anyhow::Result<Vec<String>> {
    if !given.is_empty() {
        return given
            .iter()
            .map(|prefix| if prefix.contains("://") { Ok(prefix.clone()) } else { folder(prefix) })
            .collect();
    }
    let here = std::env::current_dir().context("the folder this was started in")?;
    let mut allowed = vec![uri_of(data_dir)?];
    // A service manager starts in the root folder; that is not what anybody means.
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
