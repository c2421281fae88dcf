//! The object store: our own artifacts' files, and the folders and buckets outside that may be read.
//!
//! Owns: which URIs may be read, and reading and writing objects in pieces. Keys are immutable: an object is written once,
//! under a key that no other writer uses, and later only read or deleted. Nothing here depends on conditional writes, which
//! some servers accept and ignore.
//!
//! Entry point: [`Objects`]. `bucket` is one store, `source` one readable file, [`Folder`] reads a set of them, through a
//! [`FileCache`] where there is one, `uris` decides which URIs may be read; [`Upload`] writes one object piece by piece,
//! `assembly` makes one out of parts of others.
//!
//! Must never: know of the database, or of what its files mean.

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
pub use folder::{Folder, FolderFile, Stretch};
pub use occasionally::Occasionally;
pub use upload::{Finished, FinishedParts, Upload};

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
        /// Whether what is written is on disk before anyone is told; `false` is for what may be lost with the machine.
        #[serde(default = "yes")]
        durable: bool,
    },
    /// This process's memory.
    Memory,
    /// A bucket. Credentials come from `credentials_file`, else from the variables `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`, or the machine's role.
    S3 {
        /// The bucket.
        bucket: String,
        /// Put before every key.
        #[serde(default)]
        prefix: String,
        /// Any S3-compatible endpoint; Amazon's when absent.
        #[serde(default)]
        endpoint: Option<String>,
        /// Where clients reach the same server, if elsewhere; download URLs are signed for it.
        #[serde(default)]
        public_endpoint: Option<String>,
        /// The region.
        #[serde(default)]
        region: Option<String>,
        /// Whether an `http://` endpoint is accepted.
        #[serde(default)]
        allow_http: bool,
        /// A file with lines `AWS_ACCESS_KEY_ID=…`, `AWS_SECRET_ACCESS_KEY=…` and, where there is one,
        /// `AWS_SESSION_TOKEN=…`.
        #[serde(default)]
        credentials_file: Option<PathBuf>,
    },
}

impl StorageConfig {
    /// A durable local folder.
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
    /// Files of writers that were dropped, on their way out.
    cleanups: TaskTracker,
}

impl Objects {
    /// Makes a local folder when absent; speaks to no server yet.
    ///
    /// # Errors
    /// [`ObjectError::Location`] that names the field.
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

    /// Whether `bytes` more fit into the store, as far as that can be known: into a local folder's disk.
    ///
    /// # Errors
    /// [`ObjectError::File`] where there is less, which is waited for: room can be made, and disks can grow.
    pub async fn check_room(&self, bytes: u64) -> Result<(), ObjectError> {
        // The folder itself has no key.
        let Some(path) = self.own.local_path(&Key::from("any"))? else { return Ok(()) };
        let path = path.parent().unwrap_or(&path).to_owned();
        let shown = path.display().to_string();
        let disk = on_disk(&path.clone(), move || Ok(rustix::fs::statvfs(&path)?)).await?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes > free_bytes {
            let problem =
                format!("No space left on device: {bytes} bytes are to be written, and {free_bytes} are free");
            return Err(ObjectError::File { path: shown, source: io::Error::new(io::ErrorKind::StorageFull, problem) });
        }
        Ok(())
    }

    /// Starts the object `name` under `location`.
    pub fn upload(&self, location: &str, name: &str) -> Result<Upload, ObjectError> {
        Ok(Upload::new(self.own.clone(), self.key(location, name)?))
    }

    /// Makes an object of what another upload, broken off, had finished; none of its parts can be added any more. It may
    /// have been made already. Says whether it is there.
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

    /// Gives back the parts of another upload, broken off.
    pub async fn abort(&self, location: &str, name: &str, parts: &FinishedParts) -> Result<(), ObjectError> {
        let key = self.key(location, name)?;
        match self.own.multipart() {
            Some(store) => Ok(store.abort_multipart(&key, &parts.upload_id).await?),
            None => Ok(()),
        }
    }

    /// Part of an object of ours, which has `size_bytes`, to be read later.
    pub fn stretch(
        &self,
        location: &str,
        name: &str,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<Stretch, ObjectError> {
        let source = Source::Object { bucket: self.own.clone(), key: self.key(location, name)? };
        let shown = format!("{location}/{name}");
        Ok(Stretch { source, expected: Expected { shown, size_bytes, listed: true, version: Version::Unknown }, range })
    }

    /// The local file that the object `name` under `location` will be; none in other kinds of store.
    pub fn local_file(&self, location: &str, name: &str) -> Result<Option<LocalFile>, ObjectError> {
        let path = self.own.local_path(&self.key(location, name)?)?;
        Ok(path.map(|path| LocalFile { path, durable: self.own.is_durable() }))
    }

    /// Writes one small object.
    pub async fn put(&self, location: &str, name: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.own.store.put(&self.key(location, name)?, bytes.into()).await?;
        Ok(())
    }

    /// A small object; none when it is absent.
    pub async fn read(&self, location: &str, name: &str, max_bytes: u64) -> Result<Option<Bytes>, ObjectError> {
        match self.own.store.get(&self.key(location, name)?).await {
            Ok(object) if object.meta.size > max_bytes => Err(ObjectError::Corrupt {
                name: format!("{location}/{name}"),
                problem: format!("is {} bytes; at most {max_bytes} are read", object.meta.size),
            }),
            Ok(object) => Ok(Some(object.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The files that a manifest lists under `location`, called `shown` in messages.
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

    /// The folder or file at `uri`, called `shown` in messages, else by its URI.
    pub async fn open_uri(&self, shown: Option<String>, uri: &str) -> Result<Folder, ObjectError> {
        let uri_of = |own: &str| shown.clone().unwrap_or_else(|| own.to_owned());
        Ok(match self.uris.open(uri).await? {
            Found::Folder(files, dangling) => {
                Folder::new(uri_of(uri.trim_end_matches('/')), files).with_dangling(dangling)
            }
            // Of a file, the folder above: names follow it in messages.
            Found::File(file, origin) => {
                let above = uri.trim_end_matches('/').rsplit_once('/').map_or(uri, |(above, _)| above);
                Folder::of_one_file(uri_of(above), file, origin)
            }
        })
    }

    /// The folder `top` of a store on a disk, where it is not there though something was written below it: then the disk is
    /// most likely not mounted.
    pub fn unmounted(&self, top: &str) -> Option<PathBuf> {
        let path = self.own.local_path(&self.key(top, "").ok()?).ok()??;
        (!path.is_dir()).then_some(path)
    }

    /// Deletes one object; one that is gone already is no error.
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

    /// Deletes all objects under `location`; one that is gone already is no error.
    pub async fn delete(&self, location: &str) -> Result<(), ObjectError> {
        self.own.delete(&self.key(location, "")?).await
    }

    /// The keys of all objects under `location`, unfinished ones included where they can be seen, each with when it was
    /// written, in seconds since 1970.
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

/// A field of [`ObjectsConfig`] that cannot be used.
fn field(name: &str, problem: impl ToString) -> ObjectError {
    ObjectError::Location { location: format!("objects.{name}"), problem: problem.to_string() }
}

/// Does `work` on the file or folder `path` where waiting for a disk hurts nobody.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ObjectError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    done.map_err(|source| ObjectError::File { path: path.display().to_string(), source })
}
