//! Whether a folder can take what is to be written there later: asked before work begins whose result would be lost.
//! Whether there will be room is not known.

use std::path::{Path, PathBuf};

use crate::export::Existing;
use crate::failure::Failure;

/// Sees to it that files can be written into `dir`, which need not exist yet, and that there are none where that matters.
/// Leaves everything as it was.
///
/// # Errors
/// [`Failure::Local`], naming what is in the way and what to do.
pub fn check_destination(dir: &Path, existing: Existing) -> Result<(), Failure> {
    let made = missing(dir)?;
    let probed = std::fs::create_dir_all(dir).and_then(|()| probe(dir));
    // Deepest first; what another process put there meanwhile stays.
    for made in &made {
        let _stays_where_it_is_in_use = std::fs::remove_dir(made);
    }
    probed.map_err(|e| Failure::local(dir, format!("cannot be written to: {e}; choose another folder")))?;
    if existing == Existing::Refuse && made.is_empty() {
        let mut entries = std::fs::read_dir(dir).map_err(|e| Failure::local(dir, e))?;
        if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != crate::export::STAGING)) {
            return Err(Failure::local(dir, "is not empty; choose another folder, or add --force"));
        }
    }
    Ok(())
}

/// Sees to it that what is written into `first` does not fill `then`, which has to be empty.
///
/// # Errors
/// [`Failure::Local`].
pub fn check_apart(first: &Path, then: &Path) -> Result<(), Failure> {
    let whole = |path: &Path| std::path::absolute(path).map_err(|e| Failure::local(path, e));
    if whole(first)?.starts_with(whole(then)?) {
        let problem = format!("would not be empty any more once {} is written; choose another folder", first.display());
        return Err(Failure::local(then, problem));
    }
    Ok(())
}

/// The folders on the way to `dir` that are not there, deepest first.
fn missing(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut missing = Vec::new();
    for place in dir.ancestors() {
        // The current folder.
        if place.as_os_str().is_empty() {
            break;
        }
        match (std::fs::metadata(place), std::fs::symlink_metadata(place)) {
            (Ok(found), _) if found.is_dir() => break,
            (Ok(_), _) if place == dir => return Err(Failure::local(dir, "is a file; name a folder")),
            (Ok(_), _) => {
                let problem = format!("cannot be made: {} is a file; choose another folder", place.display());
                return Err(Failure::local(dir, problem));
            }
            (Err(_), Ok(_)) => {
                let problem = format!("cannot be made: {} is a link to nothing", place.display());
                return Err(Failure::local(dir, problem));
            }
            (Err(_), Err(_)) => missing.push(place.to_owned()),
        }
    }
    Ok(missing)
}

/// A file that is made, filled and removed: rights alone do not say whether a disk takes writes.
fn probe(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".inheritune-check-{}", std::process::id()));
    let written = std::fs::write(&path, b"x");
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn problem(dir: &Path, existing: Existing) -> String {
        check_destination(dir, existing).unwrap_err().to_string()
    }

    #[test]
    fn r5_places_that_cannot_take_files_are_named_before_anything_is_done() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        assert!(problem(&at("file"), Existing::Replace).ends_with("is a file; name a folder"));
        let below = problem(&at("file/deep/er"), Existing::Refuse);
        assert!(below.contains("file is a file; choose another folder"), "{below}");
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        assert!(problem(&at("link/x"), Existing::Refuse).contains("link to nothing"));
        // `/proc` takes nothing, not even from root; a name of 300 bytes is too long.
        for place in [Path::new("/proc/inheritune"), &at(&"n".repeat(300))] {
            assert!(problem(place, Existing::Refuse).contains("cannot be written to"), "{}", place.display());
        }
        assert!(problem(home.path(), Existing::Refuse).contains("is not empty"));
        check_destination(home.path(), Existing::Replace).unwrap();
        check_destination(&at("a/b/c"), Existing::Refuse).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        check_destination(&at("empty"), Existing::Refuse).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["empty", "file", "link"], "everything is as it was");
    }

    #[test]
    fn r5_a_report_does_not_fill_the_folder_of_the_export() {
        let apart = |report: &str, export: &str| check_apart(Path::new(report), Path::new(export)).is_ok();
        assert!(apart("out/report", "out/target") && apart("out", "out/target") && apart("report", "report-2"));
        assert!(!apart("out", "out") && !apart("./out", "out/") && !apart("out/report", "out"));
    }
}
