//! Which URIs outside the object store may be read, and finding the files behind one.
//!
//! A URI is compared with the allowed prefixes part by part, after decoding; a local path then once more after every
//! link in it is resolved. What is refused is not looked at: nobody learns whether it exists.

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

/// Files, and locally folders, below one URI.
const MAX_FILES: usize = 100_000;
/// Folders inside folders; more are links in a circle.
const MAX_DEPTH: usize = 32;

/// What callers are told of a location outside the allowed prefixes.
const NOT_ALLOWED: &str = "may not be read by this service. Put it into a folder or bucket that it may read, or ask who runs \
                           it to allow this one (`allowed_uris`; inheritune-standalone: --allow-uri)";
/// Refusals are for the operator's eyes too, and callers can have as many as they like.
static REFUSALS: Occasionally = Occasionally::new();

/// What lies at a URI.
#[derive(Debug)]
pub(super) enum Found {
    /// All files below a folder, and the links in it that lead nowhere.
    Folder(Vec<(FolderFile, Origin)>, Vec<String>),
    /// One file by itself, under its own name.
    File(FolderFile, Origin),
}

/// The prefixes that may be read.
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

/// A URI taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// None for a path on this machine.
    bucket: Option<String>,
    /// Decoded; none is empty, `.` or `..`.
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

    /// What lies at `uri`.
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

    /// What is allowed is for those who run the service, not for callers.
    fn note(&self, uri: &str) {
        if let Some(others) = REFUSALS.now() {
            let allowed: Vec<&str> = self.allowed.iter().map(|prefix| prefix.text.as_str()).collect();
            tracing::warn!(uri, ?allowed, others, "a location was refused: it is below none of the allowed prefixes");
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
            return Err("has a port or a user, which no file or bucket has".to_owned());
        }
        let bucket = match (url.scheme(), url.host_str()) {
            ("file", None | Some("" | "localhost")) => None,
            ("file", Some(host)) => {
                return Err(format!("names the machine {host}; write file:/// with three slashes"));
            }
            ("s3", Some(bucket)) if !bucket.is_empty() => Some(bucket.to_owned()),
            ("s3", _) => return Err("names no bucket; use s3://bucket/key".to_owned()),
            (scheme, _) => return Err(format!("has the scheme {scheme}; use file:///path or s3://bucket/key")),
        };
        // `Url` has resolved `.` and `..` by now, but not those that decoding brings to light.
        let mut parts = Vec::new();
        for part in url.path().split('/').filter(|part| !part.is_empty()) {
            let decoded = percent_encoding::percent_decode_str(part).decode_utf8();
            let decoded = decoded.map_err(|_| format!("has a part that is not UTF-8: {part}"))?;
            if matches!(&*decoded, "." | "..") || decoded.contains(['/', '\0']) {
                return Err(format!("has a part that leads elsewhere: {part}"));
            }
            parts.push(decoded.into_owned());
        }
        Ok(Self { bucket, parts })
    }

    /// Whether `other` is this place or lies below it.
    fn holds(&self, other: &Self) -> bool {
        self.bucket == other.bucket && other.parts.starts_with(&self.parts)
    }

    fn local_path(&self) -> PathBuf {
        Path::new("/").join(self.parts.iter().collect::<PathBuf>())
    }
}

/// Finding local files, every link resolved and held against the allowed prefixes.
struct Walk {
    uri: String,
    roots: Vec<PathBuf>,
}

/// What a walk has seen so far.
#[derive(Default)]
struct Below {
    files: Vec<(FolderFile, Origin)>,
    /// Links to nothing.
    dangling: Vec<String>,
    /// Files and folders.
    entries: usize,
}

impl Walk {
    fn open(mut self, path: &Path) -> Result<Found, ObjectError> {
        // A prefix that does not exist holds nothing.
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
        // The last part of the URI, not of what it may be a link to: names end in what their content is.
        let name = Place::parse(&self.uri).ok().and_then(|place| place.parts.last().cloned()).unwrap_or_default();
        let (file, origin) = local_file(name, path, &metadata);
        Ok(Found::File(file, origin))
    }

    fn walk(&self, dir: &Path, prefix: &str, depth: usize, below: &mut Below) -> Result<(), ObjectError> {
        if depth > MAX_DEPTH {
            let problem = format!("`{prefix}` is more than {MAX_DEPTH} folders deep; do its links go in circles?");
            return Err(self.refused(problem));
        }
        for entry in dir.read_dir().map_err(|e| self.unreadable(dir, e))? {
            let entry = entry.map_err(|e| self.unreadable(dir, e))?;
            below.entries += 1;
            if below.entries > MAX_FILES {
                return Err(self.refused(format!("holds more than {MAX_FILES} files; name a smaller folder")));
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(self.refused(format!("has a file whose name is not UTF-8: {prefix}{}", name.display())));
            };
            let (name, mut path) = (format!("{prefix}{name}"), entry.path());
            if entry.file_type().map_err(|e| self.unreadable(&path, e))?.is_symlink() {
                path = match path.canonicalize() {
                    Ok(path) => path,
                    // Only who reads the file has to know.
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

    /// `path` has no links left in it; `shown` is what the caller knows it by. Where a link leads is not said.
    fn check(&self, path: &Path, shown: &str) -> Result<(), ObjectError> {
        if self.roots.iter().any(|root| path.starts_with(root)) {
            return Ok(());
        }
        if let Some(others) = REFUSALS.now() {
            tracing::warn!(uri = self.uri, leads_to = %path.display(), others, "a link out of the allowed prefixes was refused");
        }
        Err(self.refused(format!(
            "{shown} leads through a link out of what this service may read; put a copy in its place, or ask who runs it to allow \
             that folder (`allowed_uris`; inheritune-standalone: --allow-uri)"
        )))
    }

    /// Nobody learns through a link what there is elsewhere, and what not.
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
            ErrorKind::NotFound => self.refused(format!("{} is a link to nothing", path.display())),
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
        // The prefix itself: what consoles make to show an empty folder.
        if name.is_empty() {
            continue;
        }
        if found.len() >= MAX_FILES {
            return Err(refused(format!("holds more than {MAX_FILES} files; name a smaller folder")));
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
    // The same for folders below: an empty object whose name others go on from.
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
