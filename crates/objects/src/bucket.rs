//! One store: a local folder, memory, or an S3 bucket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::signer::Signer as _;
use object_store::{BackoffConfig, ClientConfigKey, MultipartId, ObjectMeta, ObjectStore, RetryConfig};
use url::Url;

use super::credentials::Credentials;
use super::folder::ObjectRange;
use super::part_copier::PartCopier;
use super::source::Source;
use super::{field, on_disk};
use crate::ObjectError;
use crate::error::corrupt;

/// Timeout of one request to S3, including its body. object_store's default of 30 s is too short
/// for a part on a slow connection.
const REQUEST_TIMEOUT: &str = "300 seconds";
/// Retries of one request. In practice [`RETRY_TIMEOUT`] is the limit.
const MAX_RETRIES: usize = 1_000;
/// Longest time from the first to the last attempt of a request. It is less than the 5 minutes
/// after which the signature expires.
pub(super) const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
/// Wait before the first retry of a request. It roughly doubles before each further retry.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between two attempts, so that a recovered server is used again soon.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Parent folders of an artifact that are removed with their last artifact: those of the job and
/// the artifact kind.
const FOLDERS_ABOVE: usize = 2;
/// Validity of a download URL.
const DOWNLOAD_URL_VALID: Duration = Duration::from_secs(3600);

/// One store.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    kind: BucketKind,
}

#[derive(Debug)]
enum BucketKind {
    Folder { store: LocalFileSystem, durable: bool },
    Memory(Arc<InMemory>),
    S3(S3),
}

#[derive(Debug)]
struct S3 {
    store: Arc<AmazonS3>,
    /// The same bucket at the endpoint that clients use. It signs their download URLs.
    public: Arc<AmazonS3>,
    /// Name of the bucket, for copies from it to other buckets.
    name: String,
    copier: PartCopier,
}

/// How S3 is reached. Missing values come from the `AWS_*` environment variables.
#[derive(Debug, Clone, Default)]
pub(super) struct S3Options {
    pub(super) endpoint: Option<String>,
    pub(super) public_endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) allow_http: bool,
    pub(super) credentials: Option<Credentials>,
}

impl Bucket {
    /// Opens a local folder and creates it if it does not exist. If `durable`, every write is
    /// synced to disk before the call returns.
    pub(super) fn folder(path: &Path, durable: bool) -> Result<Self, ObjectError> {
        let bad = |problem: String| field("storage.path", format!("{}: {problem}", path.display()));
        std::fs::create_dir_all(path).map_err(|e| bad(format!("cannot be created: {e}")))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|e| bad(e.to_string()))?;
        let store = store.with_fsync(durable);
        Ok(Self { store: Arc::new(store.clone()), kind: BucketKind::Folder { store, durable } })
    }

    pub(super) fn memory() -> Self {
        let memory = Arc::new(InMemory::new());
        Self { store: memory.clone(), kind: BucketKind::Memory(memory) }
    }

    pub(super) fn s3(name: &str, options: &S3Options) -> Result<Self, ObjectError> {
        if name.is_empty() {
            return Err(field("storage.bucket", "is empty"));
        }
        let store = client(name, options, ("storage.endpoint", options.endpoint.as_deref()))?;
        let public = match &options.public_endpoint {
            Some(endpoint) => client(name, options, ("storage.public_endpoint", Some(endpoint)))?,
            None => store.clone(),
        };
        let s3 = S3 { store: store.clone(), public, name: name.to_owned(), copier: PartCopier::new()? };
        Ok(Self { store, kind: BucketKind::S3(s3) })
    }

    pub(super) fn is_s3(&self) -> bool {
        matches!(self.kind, BucketKind::S3(_))
    }

    /// Returns the local path of the object `key`, which need not exist yet, or `None` if the store
    /// is not a local folder.
    pub(super) fn local_path(&self, key: &Key) -> Result<Option<PathBuf>, ObjectError> {
        match &self.kind {
            BucketKind::Folder { store, .. } => Ok(Some(store.path_to_filesystem(key)?)),
            BucketKind::Memory(_) | BucketKind::S3(_) => Ok(None),
        }
    }

    /// Returns whether this is a folder whose writes are synced to disk before a call returns.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.kind, BucketKind::Folder { durable: true, .. })
    }

    /// Returns the interface for multipart uploads, if the store supports them.
    pub(super) fn multipart(&self) -> Option<Arc<dyn MultipartStore>> {
        match &self.kind {
            BucketKind::Folder { .. } => None,
            BucketKind::Memory(memory) => Some(memory.clone()),
            BucketKind::S3(s3) => Some(s3.store.clone()),
        }
    }

    /// Returns whether the server may be able to copy parts of objects.
    pub(super) fn copies_parts(&self) -> bool {
        match &self.kind {
            BucketKind::Folder { .. } | BucketKind::Memory(_) => false,
            BucketKind::S3(s3) => s3.copier.may_work(),
        }
    }

    /// Copies a range of another object on the same server to a part of the upload `into`. If the
    /// server does not support this, downloads and uploads the range.
    pub(super) async fn copy_part(
        &self,
        into: (&Key, &MultipartId, usize),
        object_range: &ObjectRange,
    ) -> Result<PartId, ObjectError> {
        let BucketKind::S3(s3) = &self.kind else { return Err(corrupt(into.0.as_ref(), "is not in S3")) };
        if let Source::Object { bucket, key } = &object_range.source
            && let BucketKind::S3(from) = &bucket.kind
            && let Some(part) = s3.copier.copy(&s3.store, into, (&from.name, key, &object_range.range)).await?
        {
            return Ok(part);
        }
        let (key, id, number) = into;
        Ok(s3.store.put_part(key, id, number, object_range.clone().read().await?.into()).await?)
    }

    /// Returns the keys under `prefix`, each with its modification time in seconds since 1970.
    pub(super) async fn written(&self, prefix: &Key) -> Result<Vec<(String, f64)>, ObjectError> {
        match &self.kind {
            // Walk the folder, because object_store hides files that a killed process left
            // unfinished.
            BucketKind::Folder { store, .. } => {
                let (dir, key) = (store.path_to_filesystem(prefix)?, prefix.to_string());
                on_disk(&dir.clone(), move || {
                    let mut found = Vec::new();
                    walk(&dir, &key, &mut found)?;
                    Ok(found)
                })
                .await
            }
            BucketKind::Memory(_) | BucketKind::S3(_) => {
                let seconds = |object: ObjectMeta| object.last_modified.timestamp_millis() as f64 / 1e3;
                let objects = retried(|| self.list(prefix)).await?;
                Ok(objects.into_iter().map(|object| (object.location.to_string(), seconds(object))).collect())
            }
        }
    }

    /// Deletes all objects under `prefix`. Succeeds if some no longer exist.
    pub(super) async fn delete(&self, prefix: &Key) -> Result<(), ObjectError> {
        if let BucketKind::Folder { store, .. } = &self.kind {
            let dir = store.path_to_filesystem(prefix)?;
            return on_disk(&dir.clone(), move || remove(&dir)).await;
        }
        retried(|| self.delete_objects(prefix)).await
    }

    async fn delete_objects(&self, prefix: &Key) -> Result<(), ObjectError> {
        let keys = self.list(prefix).await?.into_iter().map(|object| Ok(object.location));
        let mut deleted = self.store.delete_stream(futures::stream::iter(keys.collect::<Vec<_>>()).boxed());
        while let Some(deleted) = deleted.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn list(&self, prefix: &Key) -> Result<Vec<ObjectMeta>, ObjectError> {
        Ok(self.store.list(Some(prefix)).try_collect().await?)
    }

    /// Returns the URL from which clients download the object `key`.
    pub(super) async fn download_url(&self, key: &Key) -> Result<String, ObjectError> {
        match &self.kind {
            BucketKind::Folder { store, .. } => file_url(&store.path_to_filesystem(key)?),
            // Other processes cannot read the object, but the URL still identifies it.
            BucketKind::Memory(_) => Ok(format!("memory:///{key}")),
            BucketKind::S3(s3) => {
                // The default HTTP method is GET.
                Ok(s3.public.signed_url(Default::default(), key, DOWNLOAD_URL_VALID).await?.to_string())
            }
        }
    }
}

/// Retries an idempotent call while the store is unreachable or failing. object_store itself
/// retries only `GET` and `PUT` after a connection reset, and nothing whose response was cut off.
pub(super) async fn retried<T, F: Future<Output = Result<T, ObjectError>>>(
    call: impl Fn() -> F,
) -> Result<T, ObjectError> {
    let (mut wait, deadline) = (FIRST_WAIT, Instant::now() + RETRY_TIMEOUT);
    loop {
        match call().await {
            Err(ObjectError::Store(error @ object_store::Error::Generic { .. })) if Instant::now() < deadline => {
                tracing::debug!(%error, "request to the object store failed; retrying");
            }
            done => return done,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
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
                // Times before 1970 count as 1970.
                let written = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                found.push((key, written.as_secs_f64()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes a folder with its content, and the parents that become empty.
fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Writers recreate these folders when they need them.
    let above = dir.ancestors().skip(1).take(FOLDERS_ABOVE);
    above.map(std::fs::remove_dir).take_while(Result::is_ok).for_each(drop);
    Ok(())
}

/// Creates a client of the bucket `name` at an endpoint. Errors name `endpoint_field`.
fn client(
    name: &str,
    options: &S3Options,
    (endpoint_field, endpoint): (&'static str, Option<&str>),
) -> Result<Arc<AmazonS3>, ObjectError> {
    let backoff = BackoffConfig { init_backoff: FIRST_WAIT, max_backoff: LONGEST_WAIT, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_virtual_hosted_style_request(false)
        .with_retry(retry)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
    if let Some(endpoint) = endpoint {
        check_endpoint(endpoint, options.allow_http).map_err(|problem| field(endpoint_field, problem))?;
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(credentials) = &options.credentials {
        builder = credentials.set(builder);
    }
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build().map_err(|e| field("storage", format!("bucket {name}: {e}")))?))
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), String> {
    let url = Url::parse(endpoint).map_err(|e| format!("`{endpoint}` is not a URL: {e}"))?;
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        "http" => Err(format!("`{endpoint}` is not encrypted; use https:// or set allow_http")),
        _ => Err(format!("`{endpoint}` must start with https:// or http://")),
    }
}

/// Returns the `file://` URL of an absolute path.
pub(super) fn file_url(path: &Path) -> Result<String, ObjectError> {
    let url = Url::from_file_path(path);
    Ok(url.map_err(|()| corrupt(path.display().to_string(), "is not an absolute path"))?.to_string())
}
