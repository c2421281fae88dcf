//! A cache of files that were fetched from a store, keyed by digest, in a folder of bounded size.
//!
//! Several processes may share the folder. Cached files are complete and never modified. Files
//! enter and leave the cache as hard links, so that an evicted file remains with its users. A
//! cached file is verified before it is used. If it does not match its digest, it is removed and
//! fetched again.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use inheritune_domain::artifact::{DigestCheck, FileDigest};
use inheritune_domain::id::Sha256Digest;

/// Bytes per read.
const PIECE_BYTES: usize = 1 << 20;
/// Permissions of a cached file: read-only, because others have links to it.
const KEPT_MODE: u32 = 0o444;

/// A folder of fetched files. Its errors are only logged, because the files can be fetched again.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct FileCache {
    dir: PathBuf,
    max_bytes: u64,
}

impl FileCache {
    /// Returns a cache in `dir` of at most `max_bytes`; zero disables it. The folder is created
    /// when the first file is added.
    pub fn new(dir: impl Into<PathBuf>, max_bytes: u64) -> Self {
        Self { dir: dir.into(), max_bytes }
    }

    /// Removes all cached files.
    pub fn clear(&self) {
        self.logged("emptied", self.shrink(0));
    }

    /// Links the cached file with this digest and length to `path`. Returns `false` if there is
    /// none.
    pub(super) fn take(&self, digest: &FileDigest, size_bytes: u64, path: &Path) -> bool {
        let kept = self.path(digest);
        self.logged("read", take(&kept, (digest, size_bytes), path)).unwrap_or_else(|| {
            // Remove a damaged file, so that an intact copy can take its place.
            let _not_there = std::fs::remove_file(&kept);
            false
        })
    }

    /// Adds the complete file `path`, which has this digest, and evicts the least recently used
    /// files.
    pub(super) fn keep(&self, digest: &FileDigest, path: &Path) {
        self.logged("added to", self.add(digest, path));
    }

    fn add(&self, digest: &FileDigest, path: &Path) -> io::Result<()> {
        if path.metadata()?.len() > self.max_bytes {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir)?;
        std::fs::set_permissions(path, Permissions::from_mode(KEPT_MODE))?;
        match std::fs::hard_link(path, self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Ok(()) | Err(_) => {}
        }
        self.shrink(self.max_bytes)
    }

    /// Removes the least recently used files until at most `max_bytes` are left. If two processes
    /// do this at the same time, they may remove more than necessary.
    fn shrink(&self, max_bytes: u64) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            match path.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                metadata => files.push((metadata?, path)),
            }
        }
        let used = |metadata: &Metadata| metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.sort_by_key(|(metadata, _)| used(metadata));
        let mut bytes: u64 = files.iter().map(|(metadata, _)| metadata.len()).sum();
        for (metadata, path) in files {
            if bytes <= max_bytes {
                break;
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => bytes -= metadata.len(),
            }
        }
        Ok(())
    }

    fn path(&self, digest: &FileDigest) -> PathBuf {
        let name = match digest {
            FileDigest::Whole(sha256) => sha256.to_string(),
            FileDigest::Segments(segments) => {
                let mut all = Vec::new();
                for segment in segments {
                    all.extend(segment.size_bytes.to_le_bytes());
                    all.extend(segment.sha256.0);
                }
                format!("{}-segments", Sha256Digest::of(&all))
            }
        };
        self.dir.join(name)
    }

    fn logged<T>(&self, what: &str, done: io::Result<T>) -> Option<T> {
        done.inspect_err(|error| {
            tracing::warn!(path = %self.dir.display(), %error, "the cache of fetched files cannot be {what}");
        })
        .ok()
    }
}

fn take(kept: &Path, (digest, size_bytes): (&FileDigest, u64), path: &Path) -> io::Result<bool> {
    let mut file = match File::open(kept) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let found = file.metadata()?.len();
    if found != size_bytes {
        return Err(io::Error::other(format!("{} is {found} bytes, expected {size_bytes}", kept.display())));
    }
    let mut check = DigestCheck::new(digest.clone());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            bytes => check.update(&piece[..bytes]).map_err(io::Error::other)?,
        }
    }
    check.finish().map_err(io::Error::other)?;
    // Mark the file as recently used.
    file.set_modified(SystemTime::now())?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::hard_link(kept, path) {
        // Another process evicted it in the meantime.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        linked => linked.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use inheritune_domain::artifact::SegmentDigest;
    use std::time::Duration;

    fn fetched(dir: &Path, bytes: &[u8]) -> (FileDigest, PathBuf) {
        let digest = FileDigest::Whole(Sha256Digest::of(bytes));
        let path = dir.join(format!("fetched-{}", bytes.len()));
        std::fs::write(&path, bytes).unwrap();
        (digest, path)
    }

    /// Sets the modification times as if the files had been used in this order, one second apart.
    fn age(cache: &FileCache, digests: &[&FileDigest]) {
        for (at, digest) in digests.iter().enumerate() {
            let file = File::open(cache.path(digest)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at as u64 + 1)).unwrap();
        }
    }

    #[test]
    fn what_was_not_used_for_longest_is_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FileCache::new(dir.path().join("cache"), 100);
        let (a, path_a) = fetched(dir.path(), &[1; 40]);
        let (b, path_b) = fetched(dir.path(), &[2; 41]);
        let (c, path_c) = fetched(dir.path(), &[3; 42]);
        let (large, path_large) = fetched(dir.path(), &[4; 101]);
        cache.keep(&a, &path_a);
        cache.keep(&b, &path_b);
        age(&cache, &[&a, &b]);
        assert!(cache.take(&a, 40, &dir.path().join("deep/taken-a")));
        cache.keep(&c, &path_c);
        cache.keep(&large, &path_large);
        let taken = |digest, size, name| cache.take(digest, size, &dir.path().join(name));
        assert!(taken(&a, 40, "a") && !taken(&b, 41, "b") && taken(&c, 42, "c") && !taken(&large, 101, "large"));
        assert_eq!(std::fs::read(dir.path().join("deep/taken-a")).unwrap(), [1; 40]);
        cache.clear();
        assert!(!taken(&a, 40, "again") && std::fs::read(dir.path().join("a")).unwrap() == [1; 40]);
        let none = FileCache::new(dir.path().join("none"), 0);
        none.keep(&a, &path_a);
        assert!(!none.dir.exists());
    }

    #[test]
    fn a_damaged_file_is_not_taken_and_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FileCache::new(dir.path().join("cache"), 100);
        let (_, path) = fetched(dir.path(), b"weights");
        let segment = SegmentDigest { size_bytes: 7, sha256: Sha256Digest::of(b"weights") };
        let digest = FileDigest::Segments(vec![segment]);
        for damaged in [b"weighty".as_slice(), b"weight", b"weights and more", b""] {
            cache.keep(&digest, &path);
            std::fs::remove_file(cache.path(&digest)).unwrap();
            std::fs::write(cache.path(&digest), damaged).unwrap();
            assert!(!cache.take(&digest, 7, &dir.path().join("taken")));
            assert!(!cache.path(&digest).exists() && !dir.path().join("taken").exists());
        }
        cache.keep(&digest, &path);
        assert!(cache.take(&digest, 7, &dir.path().join("taken")));
    }
}
