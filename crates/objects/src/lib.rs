//! The object store: the files of artifacts, and the external folders and buckets that may be
//! read.
//!
//! Owns: which URIs may be read, and reading and writing objects in pieces. Keys are immutable: an
//! object is written once, under a key that no other writer uses, and is later only read or
//! deleted. Nothing here depends on conditional writes, because some servers accept and ignore
//! them.
//!
//! Entry point: [`Objects`]. `bucket` is one store and `source` is one readable file. [`Folder`]
//! reads a set of files, optionally through a [`FileCache`]. `uris` decides which URIs may be read.
//! [`Upload`] writes one object piece by piece, and `assembly` builds one from parts of others.
//!
//! Must never: know about the database, or what the files mean.

mod assembly;
mod bucket;
mod credentials;
pub mod error;
mod file_cache;
mod folder;
mod occasionally;
mod part_copier;
mod source;
mod upload;
mod uris;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use tokio_util::task::TaskTracker;

use bucket::{Bucket, S3Options, retried};
use credentials::Credentials;
use folder::Origin;
use source::{Expected, Source, Version};
use uris::{Found, Uris};

pub use assembly::{Chunk, Chunks, Making, Segment, WrittenBytes};
pub use assembly::{LocalFile, assemble_in_order, plan_digest};
pub use error::ObjectError;
pub use file_cache::FileCache;
pub use folder::{Folder, FolderFile, ObjectRange};
pub use occasionally::Occasionally;
pub use upload::{Finished, FinishedParts, Upload};

/// Configures the object store and the external locations that may be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectsConfig {
    /// Where artifacts are stored.
    pub storage: StorageConfig,
    /// URI prefixes that may be read, such as `file:///data/` and `s3://bucket/models/`.
    #[serde(default)]
    pub allowed_uris: Vec<String>,
}

/// Where artifacts are stored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StorageConfig {
    /// A local folder, created if it does not exist.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Whether a write is synced to disk before it is reported as done. Use `false` only for
        /// data that may be lost in a machine crash.
        #[serde(default = "yes")]
        durable: bool,
    },
    /// This process's memory.
    Memory,
    /// A bucket. Credentials come from `credentials_file` if it is set, otherwise from the
    /// environment variables `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` or the machine's role.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Prefix of every key.
        #[serde(default)]
        prefix: String,
        /// An S3-compatible endpoint. The default is Amazon's.
        #[serde(default)]
        endpoint: Option<String>,
        /// The endpoint that clients use for the same server, if it differs. Download URLs are
        /// signed for it.
        #[serde(default)]
        public_endpoint: Option<String>,
        /// The region.
        #[serde(default)]
        region: Option<String>,
        /// Whether an `http://` endpoint is accepted.
        #[serde(default)]
        allow_http: bool,
        /// A file with the lines `AWS_ACCESS_KEY_ID=…`, `AWS_SECRET_ACCESS_KEY=…` and optionally
        /// `AWS_SESSION_TOKEN=…`.
        #[serde(default)]
        credentials_file: Option<PathBuf>,
    },
}

impl StorageConfig {
    /// Returns the configuration of a durable local folder.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), durable: true }
    }
}

fn yes() -> bool {
    true
}

/// The object store.
#[derive(Debug)]
pub struct Objects {
    own: Arc<Bucket>,
    prefix: Key,
    uris: Uris,
    /// Tasks that remove the files of dropped writers.
    cleanups: TaskTracker,
}

impl Objects {
    /// Opens the store. Creates a local folder if it does not exist; contacts no server yet.
    ///
    /// # Errors
    /// [`ObjectError::Location`], which names the invalid field.
    pub fn new(config: &ObjectsConfig) -> Result<Self, ObjectError> {
        let (own, prefix, s3) = match &config.storage {
            StorageConfig::Folder { path, durable } => {
                (Bucket::folder(path, *durable)?, Key::default(), S3Options::default())
            }
            StorageConfig::Memory => (Bucket::memory(), Key::default(), S3Options::default()),
            StorageConfig::S3 { bucket, prefix, endpoint, public_endpoint, region, allow_http, credentials_file } => {
                let (endpoint, public_endpoint) = (endpoint.clone(), public_endpoint.clone());
                let credentials = credentials_file.as_deref().map(Credentials::read).transpose()?;
                let (region, allow_http) = (region.clone(), *allow_http);
                let options = S3Options { endpoint, public_endpoint, region, allow_http, credentials };
                let prefix = Key::parse(prefix).map_err(|e| field("storage.prefix", e))?;
                (Bucket::s3(bucket, &options)?, prefix, options)
            }
        };
        let uris = Uris::new(&config.allowed_uris, &s3)?;
        Ok(Self { own: Arc::new(own), prefix, uris, cleanups: TaskTracker::new() })
    }

    /// Checks that the store has room for `bytes` more. Only the disk of a local folder is checked.
    ///
    /// # Errors
    /// [`ObjectError::File`] if there is not enough room. The job waits and retries, because space
    /// can be freed and disks can grow.
    pub async fn check_room(&self, bytes: u64) -> Result<(), ObjectError> {
        // The folder itself has no key, so take the parent of an arbitrary one.
        let Some(path) = self.own.local_path(&Key::from("any"))? else { return Ok(()) };
        let path = path.parent().unwrap_or(&path).to_owned();
        let shown = path.display().to_string();
        let disk = on_disk(&path.clone(), move || Ok(rustix::fs::statvfs(&path)?)).await?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes > free_bytes {
            let problem = format!("No space left on device: {bytes} bytes are needed, but only {free_bytes} are free");
            return Err(ObjectError::File { path: shown, source: io::Error::new(io::ErrorKind::StorageFull, problem) });
        }
        Ok(())
    }

    /// Starts an upload of the object `name` under `location`.
    pub fn upload(&self, location: &str, name: &str) -> Result<Upload, ObjectError> {
        Ok(Upload::new(self.own.clone(), self.key(location, name)?))
    }

    /// Completes an interrupted upload from the parts that it had finished. No more parts can be
    /// added afterwards. Returns whether the object exists, also if it had been completed before.
    pub async fn complete(&self, location: &str, name: &str, parts: &FinishedParts) -> Result<bool, ObjectError> {
        let key = self.key(location, name)?;
        let Some(store) = self.own.multipart() else { return Ok(false) };
        let completed = store.complete_multipart(&key, &parts.upload_id, parts.ids()).await;
        match (completed, self.own.store.head(&key).await) {
            (_, Ok(object)) => Ok(object.size == parts.size_bytes()),
            (_, Err(object_store::Error::NotFound { .. })) => Ok(false),
            (Err(error), Err(_)) | (Ok(_), Err(error)) => Err(error.into()),
        }
    }

    /// Aborts an interrupted upload, which frees its parts.
    pub async fn abort(&self, location: &str, name: &str, parts: &FinishedParts) -> Result<(), ObjectError> {
        let key = self.key(location, name)?;
        match self.own.multipart() {
            Some(store) => Ok(store.abort_multipart(&key, &parts.upload_id).await?),
            None => Ok(()),
        }
    }

    /// Returns a range of the stored object `name`, which has `size_bytes`, to be read later.
    pub fn range(
        &self,
        location: &str,
        name: &str,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<ObjectRange, ObjectError> {
        let source = Source::Object { bucket: self.own.clone(), key: self.key(location, name)? };
        let shown = format!("{location}/{name}");
        let expected = Expected { shown, size_bytes, listed: true, version: Version::Unknown };
        Ok(ObjectRange { source, expected, range })
    }

    /// Returns the local file for the object `name` under `location`, or `None` if the store is not
    /// a local folder.
    pub fn local_file(&self, location: &str, name: &str) -> Result<Option<LocalFile>, ObjectError> {
        let path = self.own.local_path(&self.key(location, name)?)?;
        Ok(path.map(|path| LocalFile { path, durable: self.own.is_durable() }))
    }

    /// Writes one small object.
    pub async fn put(&self, location: &str, name: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.own.store.put(&self.key(location, name)?, bytes.into()).await?;
        Ok(())
    }

    /// Reads one small object. Returns `None` if it does not exist.
    pub async fn read(&self, location: &str, name: &str, max_bytes: u64) -> Result<Option<Bytes>, ObjectError> {
        match self.own.store.get(&self.key(location, name)?).await {
            Ok(object) if object.meta.size > max_bytes => Err(ObjectError::Corrupt {
                name: format!("{location}/{name}"),
                problem: format!("is {} bytes; the limit is {max_bytes}", object.meta.size),
            }),
            Ok(object) => Ok(Some(object.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the files that a manifest lists under `location`. Messages call the folder `shown`.
    pub fn folder(&self, shown: String, location: &str, files: Vec<FolderFile>) -> Result<Folder, ObjectError> {
        let found: Result<Vec<_>, ObjectError> = files
            .into_iter()
            .map(|file| {
                let key = self.key(location, &file.name)?;
                let source = Source::Object { bucket: self.own.clone(), key };
                Ok((file, Origin { source, version: Version::Unknown }))
            })
            .collect();
        Ok(Folder::new(shown, found?))
    }

    /// Opens the folder or file at `uri`. Messages call it `shown`, or its URI if that is `None`.
    pub async fn open_uri(&self, shown: Option<String>, uri: &str) -> Result<Folder, ObjectError> {
        let uri_of = |own: &str| shown.clone().unwrap_or_else(|| own.to_owned());
        Ok(match self.uris.open(uri).await? {
            Found::Folder(files, dangling) => {
                Folder::new(uri_of(uri.trim_end_matches('/')), files).with_dangling(dangling)
            }
            // Messages append the file name, so a file is shown by its parent folder.
            Found::File(file, origin) => {
                let above = uri.trim_end_matches('/').rsplit_once('/').map_or(uri, |(above, _)| above);
                Folder::of_one_file(uri_of(above), file, origin)
            }
        })
    }

    /// Returns the path of the folder `top` of a local store if it does not exist. If something was
    /// written below it before, the disk is most likely not mounted.
    pub fn unmounted(&self, top: &str) -> Option<PathBuf> {
        let path = self.own.local_path(&self.key(top, "").ok()?).ok()??;
        (!path.is_dir()).then_some(path)
    }

    /// Deletes one object. Succeeds if it no longer exists.
    pub async fn delete_file(&self, location: &str, name: &str) -> Result<(), ObjectError> {
        let key = self.key(location, name)?;
        let delete = || async {
            match self.own.store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        retried(delete).await
    }

    /// Deletes all objects under `location`. Succeeds if some no longer exist.
    pub async fn delete(&self, location: &str) -> Result<(), ObjectError> {
        self.own.delete(&self.key(location, "")?).await
    }

    /// Returns the keys of all objects under `location`, each with its modification time in seconds
    /// since 1970. Includes unfinished objects if the store lists them.
    pub async fn written(&self, location: &str) -> Result<Vec<(String, f64)>, ObjectError> {
        let written = self.own.written(&self.key(location, "")?).await?;
        let relative = |(key, at): (String, f64)| {
            let key = key.strip_prefix(self.prefix.as_ref())?.trim_start_matches('/').to_owned();
            Some((key, at))
        };
        Ok(written.into_iter().filter_map(relative).collect())
    }

    /// Files of writers that were dropped, on their way out.
    pub fn cleanups(&self) -> &TaskTracker {
        &self.cleanups
    }

    fn key(&self, location: &str, name: &str) -> Result<Key, ObjectError> {
        let parts = [self.prefix.as_ref(), location, name];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Key::parse(parts.join("/")).map_err(|e| ObjectError::Store(e.into()))
    }
}

/// The error for an invalid field of [`ObjectsConfig`].
fn field(name: &str, problem: impl ToString) -> ObjectError {
    ObjectError::Location { location: format!("objects.{name}"), problem: problem.to_string() }
}

/// Runs `work` on the file or folder `path` in a blocking thread.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ObjectError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    done.map_err(|source| ObjectError::File { path: path.display().to_string(), source })
}
