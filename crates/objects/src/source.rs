//! One readable file, on this machine or in a store.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};

use super::bucket::{Bucket, file_url};
use crate::ObjectError;
use crate::error::{corrupt, not_found};

/// Where the bytes of one file are.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// On this machine: every link resolved, and allowed to be read.
    Local(PathBuf),
    /// In a store.
    Object { bucket: Arc<Bucket>, key: Key },
}

/// What tells one content of a file outside from the next; a file of ours never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    /// Nothing is known, or the file is ours.
    Unknown,
    /// A local file: which one it is, and when it was last written.
    Local { device: u64, inode: u64, written_ns: i128 },
    /// An object: its ETag, which some servers do not list, and the second in which it was written.
    Object { e_tag: Option<String>, written_s: i64 },
}

impl Version {
    pub(super) fn of_file(metadata: &Metadata) -> Self {
        let written_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self::Local { device: metadata.dev(), inode: metadata.ino(), written_ns }
    }

    pub(super) fn of_object(object: &ObjectMeta) -> Self {
        Self::Object { e_tag: object.e_tag.clone(), written_s: object.last_modified.timestamp() }
    }

    /// Whether `now` may still be the content that this was.
    fn is(&self, now: &Self) -> bool {
        match (self, now) {
            (Self::Object { e_tag: Some(then), .. }, Self::Object { e_tag: Some(now), .. }) => then == now,
            (Self::Object { written_s: then, .. }, Self::Object { written_s: now, .. }) => then == now,
            (Self::Unknown, _) => true,
            (Self::Local { .. } | Self::Object { .. }, _) => self == now,
        }
    }
}

/// What is known of a file before it is read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// What messages call it.
    pub(super) shown: String,
    pub(super) size_bytes: u64,
    /// Whether a manifest lists it: then it must be there, and of this very size.
    pub(super) listed: bool,
    /// What it must still be; unknown where it may grow while it is read.
    pub(super) version: Version,
}

impl Source {
    /// The bytes of `range`, which lies within [`Expected::size_bytes`]: all of them, or an error.
    pub(super) async fn read(&self, expected: &Expected, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let wanted = range.end - range.start;
        let bytes = match self {
            Self::Local(path) => {
                let (path, expected) = (path.clone(), expected.clone());
                let read = move || read_local(&path, &expected, range);
                tokio::task::spawn_blocking(read).await.map_err(|e| corrupt("reading thread", e))??
            }
            Self::Object { bucket, key } => read_object(bucket, key, expected, range).await?,
        };
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        Err(corrupt(&expected.shown, format!("{} bytes came where {wanted} were asked for", bytes.len())))
    }

    /// Checks that a file without bytes is there and has none.
    pub(super) async fn check_empty(&self, expected: &Expected) -> Result<(), ObjectError> {
        match self {
            Self::Local(path) => match tokio::fs::metadata(path).await {
                Ok(metadata) => expected.check_file(&metadata),
                Err(error) => Err(expected.io_error(path, error)),
            },
            Self::Object { bucket, key } => match bucket.store.head(key).await {
                Ok(object) => expected.check(object.size, &Version::of_object(&object)),
                Err(error) => Err(expected.object_error(error)),
            },
        }
    }

    pub(super) fn is_in_s3(&self) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Object { bucket, .. } => bucket.is_s3(),
        }
    }

    /// The local file that it is, where it is one.
    pub(super) fn local_path(&self) -> Option<PathBuf> {
        match self {
            Self::Local(path) => Some(path.clone()),
            Self::Object { bucket, key } => bucket.local_path(key).ok().flatten(),
        }
    }

    pub(super) async fn download_url(&self) -> Result<String, ObjectError> {
        match self {
            Self::Local(path) => file_url(path),
            Self::Object { bucket, key } => bucket.download_url(key).await,
        }
    }
}

/// A local file, if it is still what it was when it was found.
pub(super) fn open_local(path: &Path, expected: &Expected) -> Result<File, ObjectError> {
    let failed = |error| expected.io_error(path, error);
    let file = File::open(path).map_err(failed)?;
    expected.check_file(&file.metadata().map_err(failed)?)?;
    Ok(file)
}

fn read_local(path: &Path, expected: &Expected, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let failed = |error| expected.io_error(path, error);
    let file = open_local(path, expected)?;
    // A piece of a file is asked for, never more than memory holds.
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
    Ok(bytes.into())
}

async fn read_object(bucket: &Bucket, key: &Key, expected: &Expected, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    let read = async {
        let object = bucket.store.get_opts(key, options).await?;
        Ok::<_, object_store::Error>((object.meta.clone(), object.bytes().await?))
    };
    match read.await {
        Ok((object, bytes)) => {
            expected.check(object.size, &Version::of_object(&object))?;
            Ok(bytes)
        }
        Err(error @ object_store::Error::NotFound { .. }) => Err(expected.object_error(error)),
        // Servers word "that range is past the end" differently; the size tells.
        Err(error) => match bucket.store.head(key).await {
            Ok(object) => {
                let version = Version::of_object(&object);
                Err(expected.check(object.size, &version).err().unwrap_or_else(|| error.into()))
            }
            Err(_) => Err(error.into()),
        },
    }
}

impl Expected {
    pub(super) fn check_file(&self, metadata: &Metadata) -> Result<(), ObjectError> {
        self.check(metadata.len(), &Version::of_file(metadata))
    }

    /// A file that a manifest lists must have its size to the byte; any other may have grown since it was found, unless
    /// it must still be what it was then.
    pub(super) fn check(&self, size_bytes: u64, version: &Version) -> Result<(), ObjectError> {
        let may_grow = !self.listed && self.version == Version::Unknown;
        let holds = if may_grow { size_bytes >= self.size_bytes } else { size_bytes == self.size_bytes };
        if !holds {
            let said_by = if self.listed { "the manifest says" } else { "it had when it was opened" };
            return Err(corrupt(
                &self.shown,
                format!("is {size_bytes} bytes, not the {} that {said_by}", self.size_bytes),
            ));
        }
        if !self.version.is(version) {
            return Err(corrupt(
                &self.shown,
                "was replaced or written to while it was read; start over when it is whole",
            ));
        }
        Ok(())
    }

    fn object_error(&self, error: object_store::Error) -> ObjectError {
        match error {
            object_store::Error::NotFound { .. } => self.missing(),
            error => error.into(),
        }
    }

    pub(super) fn io_error(&self, path: &Path, error: io::Error) -> ObjectError {
        match error.kind() {
            io::ErrorKind::NotFound => self.missing(),
            io::ErrorKind::UnexpectedEof => corrupt(&self.shown, "became shorter while it was read"),
            _ => ObjectError::File { path: path.display().to_string(), source: error },
        }
    }

    fn missing(&self) -> ObjectError {
        if self.listed {
            corrupt(&self.shown, "is missing, though the manifest lists it")
        } else {
            not_found(&self.shown)
        }
    }
}
