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

/// The location of one file.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A local path with all links resolved, which may be read.
    Local(PathBuf),
    /// An object in a store.
    Object { bucket: Arc<Bucket>, key: Key },
}

/// Identifies the content of an external file, which may change. Stored artifacts never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    /// Not known, or not needed because the file belongs to an artifact.
    Unknown,
    /// Identity and modification time of a local file.
    Local { device: u64, inode: u64, written_ns: i128 },
    /// ETag of an object, which some servers do not list, and its modification time in seconds.
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

    /// Returns whether `now` may still be the same content.
    fn is(&self, now: &Self) -> bool {
        match (self, now) {
            (Self::Object { e_tag: Some(then), .. }, Self::Object { e_tag: Some(now), .. }) => then == now,
            (Self::Object { written_s: then, .. }, Self::Object { written_s: now, .. }) => then == now,
            (Self::Unknown, _) => true,
            (Self::Local { .. } | Self::Object { .. }, _) => self == now,
        }
    }
}

/// What is known about a file before it is read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Name in messages.
    pub(super) shown: String,
    pub(super) size_bytes: u64,
    /// Whether a manifest lists the file. If so, it must exist and have exactly this size.
    pub(super) listed: bool,
    /// The version that the file must still have; unknown if it may grow during the read.
    pub(super) version: Version,
}

impl Source {
    /// Reads all bytes of `range`, which lies within [`Expected::size_bytes`], or fails.
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
        Err(corrupt(&expected.shown, format!("read {} bytes, expected {wanted}", bytes.len())))
    }

    /// Checks that an empty file exists and is empty.
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

    /// Returns the path if this is a local file or an object in a local folder.
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

/// Opens a local file and checks that it has not changed since it was found.
pub(super) fn open_local(path: &Path, expected: &Expected) -> Result<File, ObjectError> {
    let failed = |error| expected.io_error(path, error);
    let file = File::open(path).map_err(failed)?;
    expected.check_file(&file.metadata().map_err(failed)?)?;
    Ok(file)
}

fn read_local(path: &Path, expected: &Expected, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let failed = |error| expected.io_error(path, error);
    let file = open_local(path, expected)?;
    // Callers read files piece by piece, so a range always fits into memory.
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
        // Servers report a range past the end in different ways, so compare the size.
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

    /// Checks size and version. A file that a manifest lists must have exactly the listed size. Any
    /// other file may have grown since it was found, unless its version must not have changed.
    pub(super) fn check(&self, size_bytes: u64, version: &Version) -> Result<(), ObjectError> {
        let may_grow = !self.listed && self.version == Version::Unknown;
        let holds = if may_grow { size_bytes >= self.size_bytes } else { size_bytes == self.size_bytes };
        if !holds {
            let was = if self.listed { "the manifest lists" } else { "when opened it had" };
            return Err(corrupt(&self.shown, format!("is {size_bytes} bytes, but {was} {}", self.size_bytes)));
        }
        if !self.version.is(version) {
            return Err(corrupt(
                &self.shown,
                "was replaced or modified while it was read; retry when the file is complete",
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
            io::ErrorKind::UnexpectedEof => corrupt(&self.shown, "was truncated while it was read"),
            _ => ObjectError::File { path: path.display().to_string(), source: error },
        }
    }

    fn missing(&self) -> ObjectError {
        if self.listed { corrupt(&self.shown, "is missing, but the manifest lists it") } else { not_found(&self.shown) }
    }
}
