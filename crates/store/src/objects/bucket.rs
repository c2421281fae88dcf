//! One store: a local folder, memory, or an S3 bucket; and one readable file in it or on this machine.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::signer::Signer as _;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, RetryConfig,
};
use url::Url;

use super::field;
use crate::StoreError;
use crate::rows::corrupt;

/// One request to S3, body included; object_store's own 30 s are too short for a part on a slow line.
const REQUEST_TIMEOUT: &str = "300 seconds";
/// Tries of one request after the first.
const MAX_RETRIES: usize = 8;
/// From the first try of a request to the last; below the 5 minutes that its signature may age.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
/// Folders above an artifact's own that go with the last artifact in them: its job's and its kind's.
const FOLDERS_ABOVE: usize = 2;
/// How long a download URL works.
const DOWNLOAD_URL_VALID: Duration = Duration::from_secs(3600);

/// One store.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    kind: BucketKind,
}

#[derive(Debug)]
enum BucketKind {
    Folder(LocalFileSystem),
    Memory,
    S3(Arc<AmazonS3>),
}

/// How S3 is reached; what is absent comes from the variables `AWS_*`.
#[derive(Debug, Clone, Default)]
pub(super) struct S3Options {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) allow_http: bool,
}

impl Bucket {
    /// A local folder, made when absent. What was written is on disk before a call returns.
    pub(super) fn folder(path: &Path) -> Result<Self, StoreError> {
        let bad = |problem: String| field("storage.path", format!("{}: {problem}", path.display()));
        std::fs::create_dir_all(path).map_err(|e| bad(format!("cannot be made: {e}")))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|e| bad(e.to_string()))?;
        let store = store.with_fsync(true);
        Ok(Self { store: Arc::new(store.clone()), kind: BucketKind::Folder(store) })
    }

    pub(super) fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()), kind: BucketKind::Memory }
    }

    pub(super) fn s3(name: &str, options: &S3Options) -> Result<Self, StoreError> {
        if name.is_empty() {
            return Err(field("storage.bucket", "is empty"));
        }
        let retry =
            RetryConfig { backoff: BackoffConfig::default(), max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_virtual_hosted_style_request(false)
            .with_retry(retry)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
        if let Some(endpoint) = &options.endpoint {
            check_endpoint(endpoint, options.allow_http)?;
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if options.allow_http {
            builder = builder.with_allow_http(true);
        }
        let store = Arc::new(builder.build().map_err(|e| field("storage", format!("bucket {name}: {e}")))?);
        Ok(Self { store: store.clone(), kind: BucketKind::S3(store) })
    }

    /// The keys under `prefix`, each with when it was written, in seconds since 1970.
    pub(super) async fn written(&self, prefix: &Key) -> Result<Vec<(String, f64)>, StoreError> {
        match &self.kind {
            // By our own eyes: to object_store, what a killed process was still writing does not exist.
            BucketKind::Folder(folder) => {
                let (dir, key) = (folder.path_to_filesystem(prefix)?, prefix.to_string());
                on_disk(&dir.clone(), move || {
                    let mut found = Vec::new();
                    walk(&dir, &key, &mut found)?;
                    Ok(found)
                })
                .await
            }
            BucketKind::Memory | BucketKind::S3(_) => {
                let seconds = |object: ObjectMeta| object.last_modified.timestamp_millis() as f64 / 1e3;
                let objects = self.store.list(Some(prefix));
                Ok(objects.map_ok(|object| (object.location.to_string(), seconds(object))).try_collect().await?)
            }
        }
    }

    /// Deletes all objects under `prefix`; one that is gone already is no error.
    pub(super) async fn delete(&self, prefix: &Key) -> Result<(), StoreError> {
        if let BucketKind::Folder(folder) = &self.kind {
            let dir = folder.path_to_filesystem(prefix)?;
            return on_disk(&dir.clone(), move || remove(&dir)).await;
        }
        let keys: Vec<Key> = self.store.list(Some(prefix)).map_ok(|object| object.location).try_collect().await?;
        let mut deleted = self.store.delete_stream(futures::stream::iter(keys.into_iter().map(Ok)).boxed());
        while let Some(deleted) = deleted.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Where a client gets the object `key`.
    async fn download_url(&self, key: &Key) -> Result<String, StoreError> {
        match &self.kind {
            BucketKind::Folder(folder) => file_url(&folder.path_to_filesystem(key)?),
            // Nothing outside this process reads it; the name still tells the objects apart.
            BucketKind::Memory => Ok(format!("memory:///{key}")),
            BucketKind::S3(s3) => {
                // The default method is GET.
                Ok(s3.signed_url(Default::default(), key, DOWNLOAD_URL_VALID).await?.to_string())
            }
        }
    }
}

fn walk(dir: &Path, key: &str, found: &mut Vec<(String, f64)>) -> io::Result<()> {
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let key = format!("{key}/{}", entry.file_name().to_string_lossy());
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(&entry.path(), &key, found)?,
            Ok(metadata) => {
                // Before 1970 is long ago either way.
                let written = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                found.push((key, written.as_secs_f64()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes a folder with all in it, and those above that become empty.
fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Who is about to write there makes them again.
    let above = dir.ancestors().skip(1).take(FOLDERS_ABOVE);
    above.map(std::fs::remove_dir).take_while(Result::is_ok).for_each(drop);
    Ok(())
}

/// Does `work` on `path` where waiting for a disk hurts nobody.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    done.map_err(|source| StoreError::File { path: path.display().to_string(), source })
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), StoreError> {
    let url = Url::parse(endpoint).map_err(|e| field("storage.endpoint", format!("`{endpoint}` is not a URL: {e}")))?;
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        "http" => {
            Err(field("storage.endpoint", format!("`{endpoint}` is not encrypted; use https:// or set allow_http")))
        }
        _ => Err(field("storage.endpoint", format!("`{endpoint}` must start with https:// or http://"))),
    }
}

fn file_url(path: &Path) -> Result<String, StoreError> {
    let url = Url::from_file_path(path);
    Ok(url.map_err(|()| corrupt(path.display().to_string(), "is not an absolute path"))?.to_string())
}

/// Where the bytes of one file are.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// On this machine: every link resolved, and allowed to be read.
    Local(PathBuf),
    /// In a store.
    Object { bucket: Arc<Bucket>, key: Key },
}

/// What is known of a file before it is read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// What messages call it.
    pub(super) shown: String,
    pub(super) size_bytes: u64,
    /// Whether a manifest lists it: then it must be there, and of this very size.
    pub(super) listed: bool,
}

impl Source {
    /// The bytes of `range`, which lies within [`Expected::size_bytes`]: all of them, or an error.
    pub(super) async fn read(&self, expected: &Expected, range: Range<u64>) -> Result<Bytes, StoreError> {
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
    pub(super) async fn check_empty(&self, expected: &Expected) -> Result<(), StoreError> {
        match self {
            Self::Local(path) => match tokio::fs::metadata(path).await {
                Ok(metadata) => expected.check_size(metadata.len()),
                Err(error) => Err(expected.io_error(path, error)),
            },
            Self::Object { bucket, key } => match bucket.store.head(key).await {
                Ok(object) => expected.check_size(object.size),
                Err(error) => Err(expected.object_error(error)),
            },
        }
    }

    pub(super) async fn download_url(&self) -> Result<String, StoreError> {
        match self {
            Self::Local(path) => file_url(path),
            Self::Object { bucket, key } => bucket.download_url(key).await,
        }
    }
}

fn read_local(path: &Path, expected: &Expected, range: Range<u64>) -> Result<Bytes, StoreError> {
    let failed = |error| expected.io_error(path, error);
    let file = std::fs::File::open(path).map_err(failed)?;
    expected.check_size(file.metadata().map_err(failed)?.len())?;
    // A piece of a file is asked for, never more than memory holds.
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
    Ok(bytes.into())
}

async fn read_object(bucket: &Bucket, key: &Key, expected: &Expected, range: Range<u64>) -> Result<Bytes, StoreError> {
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    let read = async {
        let object = bucket.store.get_opts(key, options).await?;
        Ok::<_, object_store::Error>((object.meta.size, object.bytes().await?))
    };
    match read.await {
        Ok((size_bytes, bytes)) => {
            expected.check_size(size_bytes)?;
            Ok(bytes)
        }
        Err(error @ object_store::Error::NotFound { .. }) => Err(expected.object_error(error)),
        // Servers word "that range is past the end" differently; the size tells.
        Err(error) => match bucket.store.head(key).await {
            Ok(object) => Err(expected.check_size(object.size).err().unwrap_or_else(|| error.into())),
            Err(_) => Err(error.into()),
        },
    }
}

impl Expected {
    /// A file that a manifest lists must have its size to the byte; any other may have grown since it was found.
    fn check_size(&self, size_bytes: u64) -> Result<(), StoreError> {
        let holds = if self.listed { size_bytes == self.size_bytes } else { size_bytes >= self.size_bytes };
        if holds {
            return Ok(());
        }
        let said_by = if self.listed { "the manifest says" } else { "it had when it was opened" };
        Err(corrupt(&self.shown, format!("is {size_bytes} bytes, not the {} that {said_by}", self.size_bytes)))
    }

    fn object_error(&self, error: object_store::Error) -> StoreError {
        match error {
            object_store::Error::NotFound { .. } => self.missing(),
            error => error.into(),
        }
    }

    fn io_error(&self, path: &Path, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::NotFound => self.missing(),
            io::ErrorKind::UnexpectedEof => corrupt(&self.shown, "became shorter while it was read"),
            _ => StoreError::File { path: path.display().to_string(), source: error },
        }
    }

    fn missing(&self) -> StoreError {
        if self.listed {
            corrupt(&self.shown, "is missing, though the manifest lists it")
        } else {
            crate::rows::not_found("file", &self.shown)
        }
    }
}
