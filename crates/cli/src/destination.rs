//! Checks that a folder can be written to before a command starts work whose result would be lost.
//! Free space is not checked.

use std::path::{Path, PathBuf};

use crate::export::Existing;
use crate::failure::Failure;

/// Checks that files can be written into `dir`, which may not exist yet, and that it is empty if
/// `existing` requires it. Changes nothing.
///
/// # Errors
/// [`Failure::Local`] with the obstacle and what to do about it.
pub fn check_destination(dir: &Path, existing: Existing) -> Result<(), Failure> {
    let made = missing(dir)?;
    let probed = std::fs::create_dir_all(dir).and_then(|()| probe(dir));
    // Deepest first. Folders that another process has started to use stay.
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

/// Checks that files written into `first` do not end up in `then`, which has to be empty.
///
/// # Errors
/// [`Failure::Local`].
pub fn check_apart(first: &Path, then: &Path) -> Result<(), Failure> {
    let whole = |path: &Path| std::path::absolute(path).map_err(|e| Failure::local(path, e));
    if whole(first)?.starts_with(whole(then)?) {
        let problem = format!("would no longer be empty once {} is written; choose another folder", first.display());
        return Err(Failure::local(then, problem));
    }
    Ok(())
}

/// The ancestors of `dir`, including `dir` itself, that do not exist yet, deepest first.
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
                let problem = format!("cannot be created: {} is a file; choose another folder", place.display());
                return Err(Failure::local(dir, problem));
            }
            (Err(_), Ok(_)) => {
                let problem = format!("cannot be created: {} is a dangling symbolic link", place.display());
                return Err(Failure::local(dir, problem));
            }
            (Err(_), Err(_)) => missing.push(place.to_owned()),
        }
    }
    Ok(missing)
}

/// Writes and removes a file. Permissions alone do not tell whether a disk accepts writes.
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
        assert!(problem(&at("link/x"), Existing::Refuse).contains("dangling symbolic link"));
        // `/proc` accepts no files, not even from root. A name of 300 bytes is too long.
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
