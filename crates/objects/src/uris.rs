//! Decides which external URIs may be read, and finds the files at a URI.
//!
//! A decoded URI is compared with the allowed prefixes component by component. A local path is
//! compared again after all of its links are resolved. Rejected locations are never accessed, so
//! that callers cannot find out whether they exist.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use url::Url;

use super::bucket::{Bucket, S3Options};
use super::field;
use super::folder::{FolderFile, Origin};
use super::source::{Source, Version};
use crate::error::not_found;
use crate::{ObjectError, Occasionally};

/// Most files below one URI. Local folders count too.
const MAX_FILES: usize = 100_000;
/// Deepest nesting of folders. Anything deeper is assumed to be a cycle of links.
const MAX_DEPTH: usize = 32;

/// Error for a location outside the allowed prefixes.
const NOT_ALLOWED: &str = "may not be read by this service. Move it to an allowed folder or bucket, or ask the \
                           operator to allow this one (`allowed_uris`; inheritune-standalone: --allow-uri)";
/// Limits the log lines about rejections, because callers can cause any number of them.
static REFUSALS: Occasionally = Occasionally::new();

/// The content of a URI.
#[derive(Debug)]
pub(super) enum Found {
    /// All files below a folder, and the names of its dangling links.
    Folder(Vec<(FolderFile, Origin)>, Vec<String>),
    /// A single file under its own name.
    File(FolderFile, Origin),
}

/// The URI prefixes that may be read.
#[derive(Debug)]
pub(super) struct Uris {
    allowed: Vec<Prefix>,
    /// The stores of the allowed buckets, by name.
    buckets: BTreeMap<String, Arc<Bucket>>,
}

#[derive(Debug)]
struct Prefix {
    text: String,
    place: Place,
}

/// A parsed URI.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// `None` for a local path.
    bucket: Option<String>,
    /// Decoded path components, none of which is empty, `.` or `..`.
    parts: Vec<String>,
}

impl Uris {
    pub(super) fn new(prefixes: &[String], s3: &S3Options) -> Result<Self, ObjectError> {
        let mut uris = Self { allowed: Vec::new(), buckets: BTreeMap::new() };
        for text in prefixes {
            let place = Place::parse(text).map_err(|problem| field("allowed_uris", format!("`{text}` {problem}")))?;
            if let Some(bucket) = &place.bucket
                && !uris.buckets.contains_key(bucket)
            {
                uris.buckets.insert(bucket.clone(), Arc::new(Bucket::s3(bucket, s3)?));
            }
            uris.allowed.push(Prefix { text: text.clone(), place });
        }
        Ok(uris)
    }

    /// Finds the files at `uri`, if it is allowed.
    pub(super) async fn open(&self, uri: &str) -> Result<Found, ObjectError> {
        let refused = |problem: String| ObjectError::Location { location: uri.to_owned(), problem };
        let place = Place::parse(uri).map_err(refused)?;
        if !self.allowed.iter().any(|prefix| prefix.place.holds(&place)) {
            self.note(uri);
            return Err(refused(NOT_ALLOWED.to_owned()));
        }
        match &place.bucket {
            None => {
                let walk = Walk { uri: uri.to_owned(), roots: self.local_prefixes() };
                let found = tokio::task::spawn_blocking(move || walk.open(&place.local_path())).await;
                found.unwrap_or_else(|panicked| Err(refused(format!("cannot be listed: {panicked}"))))
            }
            Some(bucket) => match self.buckets.get(bucket) {
                Some(bucket) => list_bucket(bucket, uri, &place.parts).await,
                None => Err(refused(NOT_ALLOWED.to_owned())),
            },
        }
    }

    fn local_prefixes(&self) -> Vec<PathBuf> {
        let local = self.allowed.iter().filter(|prefix| prefix.place.bucket.is_none());
        local.map(|prefix| prefix.place.local_path()).collect()
    }

    /// Logs a rejected URI with the allowed prefixes, which only operators may see.
    fn note(&self, uri: &str) {
        if let Some(others) = REFUSALS.now() {
            let allowed: Vec<&str> = self.allowed.iter().map(|prefix| prefix.text.as_str()).collect();
            tracing::warn!(uri, ?allowed, others, "rejected a location outside the allowed prefixes");
        }
    }
}

impl Place {
    fn parse(uri: &str) -> Result<Self, String> {
        let url = Url::parse(uri).map_err(|e| format!("is not a URI ({e}); use file:///path or s3://bucket/key"))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a query or a fragment; write ? as %3F and # as %23".to_owned());
        }
        if url.port().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err("has a port or a user, which is unsupported for files and buckets".to_owned());
        }
        let bucket = match (url.scheme(), url.host_str()) {
            ("file", None | Some("" | "localhost")) => None,
            ("file", Some(host)) => {
                return Err(format!("names the host {host}; write file:/// with three slashes"));
            }
            ("s3", Some(bucket)) if !bucket.is_empty() => Some(bucket.to_owned()),
            ("s3", _) => return Err("has no bucket name; use s3://bucket/key".to_owned()),
            (scheme, _) => return Err(format!("has scheme {scheme}; use file:///path or s3://bucket/key")),
        };
        // `Url` has already resolved `.` and `..`, but not their encoded forms.
        let mut parts = Vec::new();
        for part in url.path().split('/').filter(|part| !part.is_empty()) {
            let decoded = percent_encoding::percent_decode_str(part).decode_utf8();
            let decoded = decoded.map_err(|_| format!("has a part that is not UTF-8: {part}"))?;
            if matches!(&*decoded, "." | "..") || decoded.contains(['/', '\0']) {
                return Err(format!("has a part that is not a plain name: {part}"));
            }
            parts.push(decoded.into_owned());
        }
        Ok(Self { bucket, parts })
    }

    /// Returns whether `other` is this place or lies below it.
    fn holds(&self, other: &Self) -> bool {
        self.bucket == other.bucket && other.parts.starts_with(&self.parts)
    }

    fn local_path(&self) -> PathBuf {
        Path::new("/").join(self.parts.iter().collect::<PathBuf>())
    }
}

/// Finds local files. Resolves every link and compares its target with the allowed prefixes.
struct Walk {
    uri: String,
    roots: Vec<PathBuf>,
}

/// What a walk has found so far.
#[derive(Default)]
struct Below {
    files: Vec<(FolderFile, Origin)>,
    /// Names of dangling links.
    dangling: Vec<String>,
    /// Number of files and folders.
    entries: usize,
}

impl Walk {
    fn open(mut self, path: &Path) -> Result<Found, ObjectError> {
        // A prefix that does not exist contains nothing.
        self.roots = self.roots.iter().filter_map(|root| root.canonicalize().ok()).collect();
        let path = path.canonicalize().map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => self.missing(path),
            _ => self.unreadable(path, error),
        })?;
        self.check(&path, "it")?;
        let metadata = path.metadata().map_err(|e| self.unreadable(&path, e))?;
        if metadata.is_dir() {
            let mut below = Below::default();
            self.walk(&path, "", 0, &mut below)?;
            return Ok(Found::Folder(below.files, below.dangling));
        }
        if !metadata.is_file() {
            return Err(self.refused("is neither a folder nor a file".to_owned()));
        }
        // Use the last component of the URI, not of a link's target: the extension of a name tells
        // the file format.
        let name = Place::parse(&self.uri).ok().and_then(|place| place.parts.last().cloned()).unwrap_or_default();
        let (file, origin) = local_file(name, path, &metadata);
        Ok(Found::File(file, origin))
    }

    fn walk(&self, dir: &Path, prefix: &str, depth: usize, below: &mut Below) -> Result<(), ObjectError> {
        if depth > MAX_DEPTH {
            let problem = format!("`{prefix}` is more than {MAX_DEPTH} folders deep; check its links for cycles");
            return Err(self.refused(problem));
        }
        for entry in dir.read_dir().map_err(|e| self.unreadable(dir, e))? {
            let entry = entry.map_err(|e| self.unreadable(dir, e))?;
            below.entries += 1;
            if below.entries > MAX_FILES {
                return Err(self.refused(format!("contains more than {MAX_FILES} files; use a smaller folder")));
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(self.refused(format!("has a file whose name is not UTF-8: {prefix}{}", name.display())));
            };
            let (name, mut path) = (format!("{prefix}{name}"), entry.path());
            if entry.file_type().map_err(|e| self.unreadable(&path, e))?.is_symlink() {
                path = match path.canonicalize() {
                    Ok(path) => path,
                    // Only an error if the file is read later.
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        below.dangling.push(name);
                        continue;
                    }
                    Err(error) => return Err(self.unreadable(&path, error)),
                };
                self.check(&path, &format!("`{name}`"))?;
            }
            let metadata = path.metadata().map_err(|e| self.unreadable(&path, e))?;
            if metadata.is_dir() {
                self.walk(&path, &format!("{name}/"), depth + 1, below)?;
            } else if metadata.is_file() {
                below.files.push(local_file(name, path, &metadata));
            }
        }
        Ok(())
    }

    /// Checks that `path`, in which all links are resolved, is allowed. The error calls it `shown`,
    /// as the caller knows it, and does not reveal the target of a link.
    fn check(&self, path: &Path, shown: &str) -> Result<(), ObjectError> {
        if self.roots.iter().any(|root| path.starts_with(root)) {
            return Ok(());
        }
        if let Some(others) = REFUSALS.now() {
            tracing::warn!(uri = self.uri, leads_to = %path.display(), others, "rejected a link");
        }
        Err(self.refused(format!(
            "{shown} leads through a link to a location that this service may not read; replace the link with a \
             copy, or ask the operator to allow that location (`allowed_uris`; inheritune-standalone: --allow-uri)"
        )))
    }

    /// Returns the error for a missing path. A path behind a link out of the allowed prefixes is
    /// reported as rejected, so that callers cannot find out whether it exists.
    fn missing(&self, path: &Path) -> ObjectError {
        let nearest = path.ancestors().skip(1).find_map(|folder| folder.canonicalize().ok());
        match nearest.map(|folder| self.check(&folder, "it")) {
            Some(Err(refused)) => refused,
            Some(Ok(())) | None => not_found(&self.uri),
        }
    }

    fn refused(&self, problem: String) -> ObjectError {
        ObjectError::Location { location: self.uri.clone(), problem }
    }

    fn unreadable(&self, path: &Path, error: std::io::Error) -> ObjectError {
        match error.kind() {
            ErrorKind::NotFound => self.refused(format!("{} is a dangling link", path.display())),
            ErrorKind::PermissionDenied => self.refused(format!("{} may not be read by this user", path.display())),
            _ => ObjectError::File { path: path.display().to_string(), source: error },
        }
    }
}

fn local_file(name: String, path: PathBuf, metadata: &Metadata) -> (FolderFile, Origin) {
    let file = FolderFile { name, size_bytes: metadata.len(), digest: None };
    (file, Origin { source: Source::Local(path), version: Version::of_file(metadata) })
}

async fn list_bucket(bucket: &Arc<Bucket>, uri: &str, parts: &[String]) -> Result<Found, ObjectError> {
    let refused = |problem: String| ObjectError::Location { location: uri.to_owned(), problem };
    let prefix = Key::parse(parts.join("/")).map_err(|e| refused(e.to_string()))?;
    let file = |name: String, object: ObjectMeta| {
        let (file, version) = (FolderFile { name, size_bytes: object.size, digest: None }, Version::of_object(&object));
        let source = Source::Object { bucket: bucket.clone(), key: object.location };
        (file, Origin { source, version })
    };
    let mut found = Vec::new();
    let mut objects = bucket.store.list(Some(&prefix));
    while let Some(object) = objects.try_next().await? {
        let Some(parts) = object.location.prefix_match(&prefix) else { continue };
        let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        // The prefix itself: an empty object that web consoles create to show an empty folder.
        if name.is_empty() {
            continue;
        }
        if found.len() >= MAX_FILES {
            return Err(refused(format!("contains more than {MAX_FILES} files; use a smaller folder")));
        }
        found.push(file(name, object));
    }
    if found.is_empty() {
        let name = parts.last().ok_or_else(|| not_found(uri))?;
        return match bucket.store.head(&prefix).await {
            Ok(object) => {
                let (file, origin) = file(name.clone(), object);
                Ok(Found::File(file, origin))
            }
            Err(object_store::Error::NotFound { .. }) => Err(not_found(uri)),
            Err(error) => Err(error.into()),
        };
    }
    // Skip such objects for subfolders too: empty objects whose name is a prefix of other names.
    let mut names: Vec<String> = found.iter().map(|(file, _)| file.name.clone()).collect();
    names.sort();
    found.retain(|(file, _)| {
        let below = format!("{}/", file.name);
        let at = names.partition_point(|name| *name < below);
        file.size_bytes > 0 || !names.get(at).is_some_and(|name| name.starts_with(&below))
    });
    Ok(Found::Folder(found, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::Place;

    fn holds(prefix: &str, uri: &str) -> bool {
        let prefix = Place::parse(prefix).expect(prefix);
        Place::parse(uri).is_ok_and(|place| prefix.holds(&place))
    }

    #[test]
    fn prefixes_end_at_a_part() {
        for inside in ["file:///data", "file:///data/", "file:///data/a/b", "file:///data//a", "file:///d%61ta/a"] {
            assert!(holds("file:///data", inside) && holds("file:///data/", inside), "{inside}");
        }
        for outside in ["file:///database", "file:///", "file:///dat", "s3://data/a", "file:///other/data"] {
            assert!(!holds("file:///data", outside), "{outside}");
        }
        assert!(holds("s3://bucket/models", "s3://bucket/models/x") && holds("s3://bucket", "s3://bucket/x"));
        assert!(!holds("s3://bucket/models", "s3://bucket/models2") && !holds("s3://bucket", "s3://bucket2/x"));
        assert!(holds("file:///", "file:///anything"));
    }

    #[test]
    fn dots_lead_nowhere() {
        for uri in [
            "file:///data/../etc/passwd",
            "file:///data/%2e%2e/etc",
            "file:///data/.%2E/etc",
            "file:///data/a%2F..%2F..%2Fetc",
            "file:///data/..%2fetc",
            "file:///data/a%00b",
            "file://host/data/a",
            "file:///data/a?b",
            "file:///data/a#b",
            "http://data/a",
            "s3:///data",
            "s3://user@data/a",
            "data/a",
            "",
        ] {
            assert!(!holds("file:///data", uri), "{uri}");
        }
        assert!(!holds("s3://b/models", "s3://b/models/../secret") && !holds("s3://b/m", "s3://b/m/%2e%2e/secret"));
    }
}
