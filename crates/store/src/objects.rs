//! Objects.
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use inheritune_domain::id::Sha256Digest;

use crate::StoreError;

/// The object store, and what may be read outside it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectsConfig {
    /// Where our own artifacts live.
    pub storage: StorageConfig,
    /// Prefixes of URIs that may be read: `file:///data/`, `s3://bucket/models/`.
    #[serde(default)]
    pub allowed_uris: Vec<String>,
}

/// Where our own artifacts live.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StorageConfig {
    /// A local folder, made when absent.
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// This process's memory.
    Memory,
    /// A bucket. Credentials come from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or the machine's role.
    S3 {
        /// The bucket.
        bucket: String,
        /// Put before every key.
        #[serde(default)]
        prefix: String,
        /// Any S3-compatible endpoint; Amazon's when absent.
        #[serde(default)]
        endpoint: Option<String>,
        /// The region.
        #[serde(default)]
        region: Option<String>,
        /// Whether an `http://` endpoint is accepted.
        #[serde(default)]
        allow_http: bool,
    },
}

/// The object store.
#[derive(Debug)]
pub struct Objects {}

/// One file of a [`Folder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFile {
    /// Name relative to the folder.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Digest, where a manifest tells it.
    pub sha256: Option<Sha256Digest>,
}

/// A readable set of files.
#[derive(Debug, Clone)]
pub struct Folder {
    files: Vec<FolderFile>,
}

#[allow(clippy::todo)]
impl Folder {
    /// The files, by name.
    pub fn files(&self) -> &[FolderFile] {
        &self.files
    }
    /// Whether it has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }
    /// A small file.
    ///
    /// # Errors
    /// It is larger than `max_bytes`, absent or not readable.
    pub async fn read(&self, _name: &str, _max_bytes: u64) -> Result<Bytes, StoreError> {
        todo!()
    }
    /// Part of a file.
    ///
    /// # Errors
    /// It is absent, shorter or not readable.
    pub async fn read_range(&self, _name: &str, _range: Range<u64>) -> Result<Bytes, StoreError> {
        todo!()
    }
    /// Part of a file, piece by piece.
    ///
    /// # Errors
    /// It is absent, shorter or not readable.
    pub async fn stream(
        &self,
        _name: &str,
        _range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        todo!()
    }
    /// All files to a local directory.
    ///
    /// # Errors
    /// A file is not readable or not what its digest says.
    pub async fn fetch(&self, _dir: &Path) -> Result<(), StoreError> {
        todo!()
    }
    /// One file to a local directory.
    ///
    /// # Errors
    /// As [`Folder::fetch`].
    pub async fn fetch_file(&self, _name: &str, _dir: &Path) -> Result<(), StoreError> {
        todo!()
    }
}
