//! Folders for jobs' files: one per worker, with one subfolder per attempt. The folders of dead
//! workers are removed when a worker starts.
//!
//! A worker holds a lock on `{worker}-{pid}.lock` as long as its process lives, and the kernel
//! releases it however the process dies. A folder whose lock can be acquired is therefore unused.
//! PIDs alone are not enough, because containers reuse the same ones.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use inheritune_domain::id::WorkerId;
use inheritune_store::jobs::LeaseKey;

use super::WorkerError;

/// A worker's own folder.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
    lock_path: PathBuf,
    // Never read: it holds the lock.
    _lock: File,
}

impl Scratch {
    /// Creates and locks the folder of `worker` below `cache_dir`, and removes those of dead
    /// workers.
    pub(super) fn open(cache_dir: &Path, worker: WorkerId) -> Result<Self, WorkerError> {
        let error = |path: &Path, source| WorkerError::CacheDir { path: path.to_owned(), source };
        std::fs::create_dir_all(cache_dir).map_err(|e| error(cache_dir, e))?;
        remove_dead(cache_dir).map_err(|e| error(cache_dir, e))?;
        let name = format!("{worker}-{}", std::process::id());
        let dir = cache_dir.join(&name);
        let lock_path = cache_dir.join(format!("{name}.lock"));
        // Lock it under a temporary name first. A visible lock file is then always locked while its
        // worker lives.
        let new_path = cache_dir.join(format!("{name}.new"));
        let lock = File::create(&new_path).map_err(|e| error(&new_path, e))?;
        lock.lock().map_err(|e| error(&new_path, e))?;
        std::fs::rename(&new_path, &lock_path).map_err(|e| error(&lock_path, e))?;
        std::fs::create_dir(&dir).map_err(|e| error(&dir, e))?;
        Ok(Self { dir, lock_path, _lock: lock })
    }

    /// Returns the folder of one attempt, without creating it.
    pub(super) fn attempt_dir(&self, key: LeaseKey) -> PathBuf {
        self.dir.join(format!("{}-{}", key.job, key.token))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Fails if an abandoned job still has files there. Then the next worker removes them.
        if std::fs::remove_dir(&self.dir).is_ok() {
            let _left_for_the_next = std::fs::remove_file(&self.lock_path);
        }
    }
}

fn remove_dead(cache_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(cache_dir)? {
        let lock_path = entry?.path();
        if lock_path.extension().is_some_and(|extension| extension == "lock")
            && let Err(error) = remove_if_dead(&lock_path)
        {
            tracing::warn!(path = %lock_path.display(), %error, "cannot remove the files of a dead worker");
        }
    }
    Ok(())
}

fn remove_if_dead(lock_path: &Path) -> io::Result<()> {
    let lock = match File::open(lock_path) {
        Ok(lock) => lock,
        // Another worker that is starting has already removed it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let dir = lock_path.with_extension("");
    tracing::info!(path = %dir.display(), "removing the files of a dead worker");
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    std::fs::remove_file(lock_path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_files_of_dead_workers_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        // The folder and the unlocked lock file of a worker that was killed.
        std::fs::create_dir_all(cache.path().join("dead-1/job-1")).unwrap();
        std::fs::write(cache.path().join("dead-1/job-1/weights"), "x").unwrap();
        std::fs::write(cache.path().join("dead-1.lock"), "").unwrap();
        std::fs::write(cache.path().join("not-ours"), "").unwrap();
        let first = Scratch::open(cache.path(), WorkerId(Uuid::now_v7())).unwrap();
        let second = Scratch::open(cache.path(), WorkerId(Uuid::now_v7())).unwrap();
        assert!(first.dir.is_dir() && second.dir.is_dir());
        assert_eq!(names(cache.path()).len(), 5, "{:?}", names(cache.path()));
        drop(second);
        std::fs::write(first.dir.join("left"), "").unwrap();
        drop(first);
        // The folder is not empty, so it stays until the next worker removes it.
        assert_eq!(names(cache.path()).len(), 3, "{:?}", names(cache.path()));
        drop(Scratch::open(cache.path(), WorkerId(Uuid::now_v7())).unwrap());
        assert_eq!(names(cache.path()), ["not-ours"]);
    }
}
