//! Reading a set of files, wherever they are.

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_domain::id::Sha256Digest;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::bucket::{Expected, Source};
use crate::StoreError;
use crate::rows::{corrupt, not_found};

/// Bytes of one request of a stream. One long request is several times slower: on a local disk because its reads
/// are small, on S3 because it is one connection.
const PIECE_BYTES: u64 = 8 << 20;
/// Pieces of a stream on their way at once.
const PIECES_AT_ONCE: usize = 2;
/// Files fetched at once.
const FILES_AT_ONCE: usize = 4;
/// Permissions of a fetched file: the owner writes, all read.
const FETCHED_MODE: u32 = 0o644;

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
    /// What messages call it.
    shown: String,
    files: Vec<FolderFile>,
    /// Where the bytes are; one for each of `files`.
    sources: Vec<Source>,
}

impl Folder {
    pub(super) fn new(shown: String, mut found: Vec<(FolderFile, Source)>) -> Self {
        found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (files, sources) = found.into_iter().unzip();
        Self { shown, files, sources }
    }

    /// The files, by name.
    pub fn files(&self) -> &[FolderFile] {
        &self.files
    }

    /// Whether it has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// A small file, whole; its digest is checked where it is known.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] when it is larger than `max_bytes` or not what it should be.
    pub async fn read(&self, name: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        let (file, source) = self.find(name)?;
        let expected = self.expected(file);
        if file.size_bytes > max_bytes {
            return Err(corrupt(expected.shown, format!("is {} bytes; at most {max_bytes} are read", file.size_bytes)));
        }
        let bytes = match file.size_bytes {
            // An empty range is no request that a store understands.
            0 => source.check_empty(&expected).await.map(|()| Bytes::new())?,
            size_bytes => source.read(&expected, 0..size_bytes).await?,
        };
        check_digest(&expected, file.sha256, || Sha256Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Part of a file: all of `range`, in one request. Its digest is not looked at.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] when the file ends before the range does.
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (file, source) = self.find(name)?;
        let expected = self.expected(file);
        check_range(&expected, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        source.read(&expected, range).await
    }

    /// Part of a file, piece by piece: all of `range`, or an error. Its digest is not looked at.
    ///
    /// # Errors
    /// As [`Folder::read_range`], at once or from the stream.
    pub async fn stream(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        let (file, source) = self.find(name)?;
        let expected = self.expected(file);
        check_range(&expected, &range)?;
        Ok(pieces(source.clone(), expected, range))
    }

    /// All files to the local directory `dir`, a few at a time. A file appears under its name when it is whole and
    /// what its manifest says.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] naming the file; [`StoreError::File`]; the object store's.
    pub async fn fetch(&self, dir: &Path) -> Result<(), StoreError> {
        let fetches = self.files.iter().zip(&self.sources).map(|(file, source)| self.fetch_one(file, source, dir));
        // Each future is boxed: a stream of borrowing ones is not provably `Send`.
        let fetches: Vec<_> = fetches.map(futures::FutureExt::boxed).collect();
        futures::stream::iter(fetches).buffer_unordered(FILES_AT_ONCE).try_collect().await
    }

    /// One file to the local directory `dir`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; else as [`Folder::fetch`].
    pub async fn fetch_file(&self, name: &str, dir: &Path) -> Result<(), StoreError> {
        let (file, source) = self.find(name)?;
        self.fetch_one(file, source, dir).await
    }

    async fn fetch_one(&self, file: &FolderFile, source: &Source, dir: &Path) -> Result<(), StoreError> {
        let expected = self.expected(file);
        if file.size_bytes == 0 {
            source.check_empty(&expected).await?;
        }
        let path = dir.join(&file.name);
        let mut part = blocking(&path, Partial::create).await?;
        let mut bytes = pieces(source.clone(), expected.clone(), 0..file.size_bytes);
        while let Some(piece) = bytes.try_next().await? {
            part = blocking(&path, move |_| part.write(&piece)).await?;
        }
        let digest = Sha256Digest(part.hasher.clone().finalize().into());
        check_digest(&expected, file.sha256, || digest)?;
        blocking(&path, move |path| part.keep(path)).await
    }

    /// Where a client gets each of the files.
    pub(crate) async fn download_urls(&self) -> Result<Vec<String>, StoreError> {
        let mut urls = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            urls.push(source.download_url().await?);
        }
        Ok(urls)
    }

    /// Size of all files.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    fn find(&self, name: &str) -> Result<(&FolderFile, &Source), StoreError> {
        let at = self.files.binary_search_by(|file| file.name.as_str().cmp(name));
        let at = at.map_err(|_| not_found("file", format!("{}/{name}", self.shown)))?;
        Ok((&self.files[at], &self.sources[at]))
    }

    fn expected(&self, file: &FolderFile) -> Expected {
        Expected {
            shown: format!("{}/{}", self.shown, file.name),
            size_bytes: file.size_bytes,
            listed: file.sha256.is_some(),
        }
    }
}

fn pieces(source: Source, expected: Expected, range: Range<u64>) -> BoxStream<'static, Result<Bytes, StoreError>> {
    let Range { start, end } = range;
    let piece = move |at: u64| at..end.min(at.saturating_add(PIECE_BYTES));
    let ranges = (start..end).step_by(PIECE_BYTES as usize).map(piece);
    futures::stream::iter(ranges)
        .map(move |range| {
            let (source, expected) = (source.clone(), expected.clone());
            async move { source.read(&expected, range).await }
        })
        .buffered(PIECES_AT_ONCE)
        .boxed()
}

fn check_range(expected: &Expected, range: &Range<u64>) -> Result<(), StoreError> {
    if range.start <= range.end && range.end <= expected.size_bytes {
        return Ok(());
    }
    let problem = format!("is {} bytes; {} to {} were asked for", expected.size_bytes, range.start, range.end);
    Err(corrupt(&expected.shown, problem))
}

fn check_digest(
    expected: &Expected,
    sha256: Option<Sha256Digest>,
    actual: impl FnOnce() -> Sha256Digest,
) -> Result<(), StoreError> {
    let Some(sha256) = sha256 else { return Ok(()) };
    let actual = actual();
    if actual == sha256 {
        return Ok(());
    }
    Err(corrupt(&expected.shown, format!("is damaged: its SHA-256 is {actual}, the manifest says {sha256}")))
}

/// A file on its way to a directory, under a name of its own with the end `.partial`; gone when dropped.
struct Partial {
    file: NamedTempFile,
    hasher: Sha256,
}

impl Partial {
    fn create(path: &Path) -> std::io::Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)?;
        let file = tempfile::Builder::new()
            .prefix(path.file_name().unwrap_or_default())
            .suffix(".partial")
            .permissions(std::fs::Permissions::from_mode(FETCHED_MODE))
            .tempfile_in(parent)?;
        Ok(Self { file, hasher: Sha256::new() })
    }

    fn write(mut self, piece: &[u8]) -> std::io::Result<Self> {
        self.hasher.update(piece);
        self.file.write_all(piece)?;
        Ok(self)
    }

    fn keep(self, path: &Path) -> std::io::Result<()> {
        self.file.persist(path).map(|_| ()).map_err(|e| e.error)
    }
}

/// Does `work` on the file `path` where waiting for a disk hurts nobody.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let own = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&own)).await;
    let done = done.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
    done.map_err(|source| StoreError::File { path: path.display().to_string(), source })
}
