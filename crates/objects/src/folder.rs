//! Reading a set of files from a local folder or a store.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_domain::artifact::{Damage, DigestCheck, FileDigest};
use inheritune_domain::id::Sha256Digest;
use tempfile::NamedTempFile;

use super::file_cache::FileCache;
use super::on_disk;
use super::source::{Expected, Source, Version};
use crate::ObjectError;
use crate::error::{corrupt, not_found};

/// Bytes per request of a stream. One long request is several times slower: on a local disk because
/// its reads are small, and on S3 because it uses a single connection.
const PIECE_BYTES: u64 = 8 << 20;
/// Requests of a stream in flight at once.
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
    /// Digest, if a manifest lists it.
    pub digest: Option<FileDigest>,
}

/// Where a file was found, and in which version.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) source: Source,
    pub(super) version: Version,
}

/// A range of a file or an object, to be read later.
#[derive(Debug, Clone)]
pub struct ObjectRange {
    pub(super) source: Source,
    pub(super) expected: Expected,
    pub(super) range: Range<u64>,
}

/// A readable set of files.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Name in messages.
    shown: String,
    /// Whether the URI named a single file, as opposed to a folder with one file.
    is_one_file: bool,
    files: Vec<FolderFile>,
    /// Locations, one for each of `files`.
    origins: Vec<Origin>,
    /// Names of dangling links.
    dangling: Vec<String>,
}

impl Folder {
    pub(super) fn new(shown: String, mut found: Vec<(FolderFile, Origin)>) -> Self {
        found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (files, origins) = found.into_iter().unzip();
        Self { shown, is_one_file: false, files, origins, dangling: Vec::new() }
    }

    /// Returns the set of a single file that a URI named directly.
    pub(super) fn of_one_file(shown: String, file: FolderFile, origin: Origin) -> Self {
        Self { is_one_file: true, ..Self::new(shown, vec![(file, origin)]) }
    }

    /// Returns whether the URI named a single file, as opposed to a folder.
    pub fn is_one_file(&self) -> bool {
        self.is_one_file
    }

    pub(super) fn with_dangling(self, dangling: Vec<String>) -> Self {
        Self { dangling, ..self }
    }

    /// Returns the names of dangling links. [`Folder::files`] does not include them; callers that
    /// need such a file report it.
    pub fn dangling_links(&self) -> &[String] {
        &self.dangling
    }

    /// Returns the files, sorted by name.
    pub fn files(&self) -> &[FolderFile] {
        &self.files
    }

    /// Returns whether the folder contains a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Reads a whole small file. Checks its digest if it is known.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`]; [`ObjectError::Corrupt`] if the file is larger than `max_bytes`
    /// or its content has changed.
    pub async fn read(&self, name: &str, max_bytes: u64) -> Result<Bytes, ObjectError> {
        let (file, Origin { source, .. }) = self.find(name)?;
        let expected = self.expected(file);
        if file.size_bytes > max_bytes {
            return Err(corrupt(expected.shown, format!("is {} bytes; the limit is {max_bytes}", file.size_bytes)));
        }
        let bytes = match file.size_bytes {
            // Stores reject requests for an empty range.
            0 => source.check_empty(&expected).await.map(|()| Bytes::new())?,
            size_bytes => source.read(&expected, 0..size_bytes).await?,
        };
        if let Some(digest) = &file.digest {
            let mut check = DigestCheck::new(digest.clone());
            check.update(&bytes).and_then(|()| check.finish()).map_err(|damage| corrupt(&expected.shown, damage))?;
        }
        Ok(bytes)
    }

    /// Reads all of `range` of a file, in one request. Does not check the digest.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`]; [`ObjectError::Corrupt`] if the file ends before the range does.
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let (file, Origin { source, .. }) = self.find(name)?;
        let expected = self.expected(file);
        check_range(&expected, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        source.read(&expected, range).await
    }

    /// Returns a range of a file, to be read later. Reading it fails if the file has changed since
    /// this folder was opened.
    ///
    /// # Errors
    /// The errors of [`Folder::read_range`].
    pub fn range(&self, name: &str, range: Range<u64>) -> Result<ObjectRange, ObjectError> {
        let (file, Origin { source, version }) = self.find(name)?;
        let expected = Expected { version: version.clone(), ..self.expected(file) };
        check_range(&expected, &range)?;
        Ok(ObjectRange { source: source.clone(), expected, range })
    }

    /// Returns the digest of exactly this range of a file, if the manifest lists it.
    pub fn known_digest(&self, name: &str, range: &Range<u64>) -> Option<Sha256Digest> {
        let (file, _) = self.find(name).ok()?;
        file.digest.as_ref()?.of_range(file.size_bytes, range)
    }

    /// Streams all of `range` of a file, piece by piece. Does not check the digest.
    ///
    /// # Errors
    /// The errors of [`Folder::read_range`], from this call or from the stream.
    pub async fn stream(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError> {
        let (file, Origin { source, .. }) = self.find(name)?;
        let expected = self.expected(file);
        check_range(&expected, &range)?;
        Ok(pieces(source.clone(), expected, range))
    }

    /// Downloads all files to the local directory `dir`, a few at a time. A file appears under its
    /// name when it is complete and matches its manifest.
    ///
    /// # Errors
    /// [`ObjectError::Corrupt`], which names the file; [`ObjectError::File`]; errors of the object
    /// store.
    pub async fn fetch(&self, dir: &Path) -> Result<(), ObjectError> {
        self.fetch_with(dir, None).await
    }

    /// Downloads like [`Folder::fetch`], but through `cache` for files that a manifest lists and
    /// that come from a store. The caller must not modify the files.
    ///
    /// # Errors
    /// The errors of [`Folder::fetch`].
    pub async fn fetch_cached(&self, dir: &Path, cache: &FileCache) -> Result<(), ObjectError> {
        match self.fetch_with(dir, Some(cache)).await {
            Err(ObjectError::File { path, source }) if source.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(path, "the disk is full; emptying the cache of fetched files");
                cache.clear();
                self.fetch_with(dir, Some(cache)).await
            }
            fetched => fetched,
        }
    }

    /// Returns the same folder, restricted to the files `names`.
    #[must_use]
    pub fn only(&self, names: &[&str]) -> Self {
        let names: HashSet<&str> = names.iter().copied().collect();
        let kept = self.files.iter().zip(&self.origins).filter(|(file, _)| names.contains(file.name.as_str()));
        let found = kept.map(|(file, origin)| (file.clone(), origin.clone())).collect();
        Self::new(self.shown.clone(), found)
    }

    async fn fetch_with(&self, dir: &Path, cache: Option<&FileCache>) -> Result<(), ObjectError> {
        let fetches =
            self.files.iter().zip(&self.origins).map(|(file, origin)| self.fetch_one(file, &origin.source, dir, cache));
        // Boxed, because a stream of borrowing futures is not provably `Send`.
        let fetches: Vec<_> = fetches.map(futures::FutureExt::boxed).collect();
        futures::stream::iter(fetches).buffer_unordered(FILES_AT_ONCE).try_collect().await
    }

    /// Downloads one file to the local directory `dir`.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`]; the errors of [`Folder::fetch`].
    pub async fn fetch_file(&self, name: &str, dir: &Path) -> Result<(), ObjectError> {
        let (file, Origin { source, .. }) = self.find(name)?;
        self.fetch_one(file, source, dir, None).await
    }

    async fn fetch_one(
        &self,
        file: &FolderFile,
        source: &Source,
        dir: &Path,
        cache: Option<&FileCache>,
    ) -> Result<(), ObjectError> {
        let expected = self.expected(file);
        if file.size_bytes == 0 {
            source.check_empty(&expected).await?;
        }
        let path = dir.join(&file.name);
        // Local files are not cached, because they are already on this machine.
        let cached = match (cache, &file.digest, source) {
            (Some(cache), Some(digest), Source::Object { .. }) => Some((cache.clone(), digest.clone())),
            _ => None,
        };
        if let Some((cache, digest)) = cached.clone() {
            let (target, size_bytes) = (path.clone(), file.size_bytes);
            if on_disk(&path, move || Ok(cache.take(&digest, size_bytes, &target))).await? {
                return Ok(());
            }
        }
        let (target, digest) = (path.clone(), file.digest.clone());
        let mut part = on_disk(&path, move || Partial::create(&target, digest)).await?;
        let mut bytes = pieces(source.clone(), expected.clone(), 0..file.size_bytes);
        while let Some(piece) = bytes.try_next().await? {
            let damage;
            (part, damage) = on_disk(&path, move || part.write(&piece)).await?;
            damage.map_err(|damage| corrupt(&expected.shown, damage))?;
        }
        if let Some(check) = part.check.take() {
            check.finish().map_err(|damage| corrupt(&expected.shown, damage))?;
        }
        on_disk(&path.clone(), move || {
            part.keep(&path)?;
            if let Some((cache, digest)) = cached {
                cache.keep(&digest, &path);
            }
            Ok(())
        })
        .await
    }

    /// Returns the URLs from which clients download the files, in the order of [`Folder::files`].
    pub async fn download_urls(&self) -> Result<Vec<String>, ObjectError> {
        let mut urls = Vec::with_capacity(self.origins.len());
        for origin in &self.origins {
            urls.push(origin.source.download_url().await?);
        }
        Ok(urls)
    }

    /// Returns the total size of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    fn find(&self, name: &str) -> Result<(&FolderFile, &Origin), ObjectError> {
        let at = self.files.binary_search_by(|file| file.name.as_str().cmp(name));
        let at = at.map_err(|_| {
            let shown = format!("{}/{name}", self.shown);
            if self.dangling.iter().any(|link| link == name) {
                return ObjectError::Location { location: shown, problem: "is a dangling link".to_owned() };
            }
            not_found(shown)
        })?;
        Ok((&self.files[at], &self.origins[at]))
    }

    fn expected(&self, file: &FolderFile) -> Expected {
        Expected {
            shown: format!("{}/{}", self.shown, file.name),
            size_bytes: file.size_bytes,
            listed: file.digest.is_some(),
            version: Version::Unknown,
        }
    }
}

fn pieces(source: Source, expected: Expected, range: Range<u64>) -> BoxStream<'static, Result<Bytes, ObjectError>> {
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

fn check_range(expected: &Expected, range: &Range<u64>) -> Result<(), ObjectError> {
    if range.start <= range.end && range.end <= expected.size_bytes {
        return Ok(());
    }
    let problem = format!("is {} bytes, so it has no range {} to {}", expected.size_bytes, range.start, range.end);
    Err(corrupt(&expected.shown, problem))
}

/// A partially downloaded file under a temporary name that ends in `.partial`. Dropping it removes
/// the file.
struct Partial {
    file: NamedTempFile,
    check: Option<DigestCheck>,
}

impl Partial {
    fn create(path: &Path, digest: Option<FileDigest>) -> io::Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)?;
        let file = tempfile::Builder::new()
            .prefix(path.file_name().unwrap_or_default())
            .suffix(".partial")
            .permissions(std::fs::Permissions::from_mode(FETCHED_MODE))
            .tempfile_in(parent)?;
        Ok(Self { file, check: digest.map(DigestCheck::new) })
    }

    /// Writes a piece. Also returns whether it matches the digest.
    fn write(mut self, piece: &[u8]) -> io::Result<(Self, Result<(), Damage>)> {
        let checked = self.check.as_mut().map_or(Ok(()), |check| check.update(piece));
        self.file.write_all(piece)?;
        Ok((self, checked))
    }

    fn keep(self, path: &Path) -> io::Result<()> {
        self.file.persist(path).map(|_| ()).map_err(|e| e.error)
    }
}
