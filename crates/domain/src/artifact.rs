//! Artifacts: immutable sets of files in the object store, each published by one fenced row.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

mod digest;

pub use digest::{Damage, DigestCheck, FileDigest, SegmentDigest};

use crate::id::{ArtifactId, JobId, RunId, Sha256Digest};
use crate::spec::limits;
use inheritune_ids::named;

/// Maximum number of characters of a location in a message.
const MAX_SHOWN_CHARS: usize = 200;

named! {
    /// What an artifact holds.
    #[derive(PartialOrd, Ord)]
    pub enum ArtifactKind {
        /// Token ids for training and validation, with the tokenizer.
        TokenSet = "token_set",
        /// A Hugging Face model folder: `config.json`, safetensors, tokenizer files,
        /// `inheritance.json`.
        Checkpoint = "checkpoint",
        /// A checkpoint with optimizer moments and data position: everything needed for an exact
        /// resume.
        TrainingState = "training_state",
        /// Per-sequence and per-document results of an evaluation.
        Scores = "scores",
    }
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path relative to the artifact, separated by `/`.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// The digest of its bytes.
    #[serde(flatten)]
    pub digest: FileDigest,
}

/// The list of the files of an artifact, uploaded after them as `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files, sorted by name.
    pub files: Vec<ManifestFile>,
}

impl Manifest {
    /// Returns the total size of the files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Returns whether the segments of every file add up to its size.
    pub fn is_consistent(&self) -> bool {
        self.files.iter().all(|file| match &file.digest {
            FileDigest::Whole(_) => true,
            FileDigest::Segments(segments) => {
                let sum = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.size_bytes));
                sum == Some(file.size_bytes)
            }
        })
    }

    /// Returns the file called `name`.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// One published artifact, as stored in its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its id.
    pub id: ArtifactId,
    /// What it holds.
    pub kind: ArtifactKind,
    /// Location of its files: a key prefix in the project's own object store, or an absolute
    /// `file://` / `s3://` URI for a registered external artifact.
    pub location: String,
    /// Digest of `manifest.json`; `None` for a registered artifact.
    pub manifest_sha256: Option<Sha256Digest>,
    /// Total size of the files in bytes.
    pub size_bytes: u64,
    /// The job that created it; `None` for a registered artifact.
    pub job: Option<JobId>,
    /// The run it belongs to, if any.
    pub run: Option<RunId>,
    /// Optimizer steps so far (training states and trained checkpoints).
    pub step: Option<u64>,
    /// Metadata for people and for later jobs: layers, parameters, tokens, origin.
    pub metadata: serde_json::Value,
    /// When its row was written, by the clock of the database.
    pub created_at: OffsetDateTime,
    /// Whether it is exempt from retention until it is unpinned.
    pub pinned: bool,
}

/// The location of an input: a published artifact or an external URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// A published artifact.
    Artifact(ArtifactId),
    /// `file:///absolute/path` or `s3://bucket/key`. Each service configures which URIs it allows.
    Uri(String),
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Artifact(id) => write!(f, "artifact://{id}"),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

impl std::str::FromStr for Location {
    type Err = String;

    /// Parses `artifact://ID`, `file:///path` or `s3://bucket/key`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(problem) = limits::LOCATION.problem(text) {
            return Err(problem);
        }
        let shown = shown(text);
        if text.trim() != text {
            return Err(format!("`{shown}` begins or ends with white space"));
        }
        if let Some(id) = text.strip_prefix("artifact://") {
            let id = id.parse().map_err(|e| format!("`{shown}` is not an artifact id: {e}"))?;
            return Ok(Self::Artifact(id));
        }
        let url = url::Url::parse(text)
            .map_err(|e| format!("`{shown}` is not a URI ({e}); use file:///path, s3://bucket/key or artifact://ID"))?;
        let host = url.host_str().unwrap_or_default();
        match url.scheme() {
            "file" if !matches!(host, "" | "localhost") => {
                return Err(format!("`{shown}` names the host {host}; write file:/// with three slashes"));
            }
            "file" if url.path().len() <= 1 => {
                return Err(format!("`{shown}` has no path; use file:///absolute/path"));
            }
            "s3" if host.is_empty() => return Err(format!("`{shown}` has no bucket name; use s3://bucket/key")),
            "file" | "s3" => {}
            "http" | "https" => {
                return Err("http and https locations are not supported: download the data first (for a model of the \
                            Hugging Face hub, `hf download OWNER/NAME --local-dir FOLDER`), and specify the folder or \
                            file"
                    .to_owned());
            }
            scheme => return Err(format!("scheme `{scheme}` is unknown; use file://, s3:// or artifact://")),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("`{shown}` has a query or a fragment; write ? as %3F and # as %23"));
        }
        if url.port().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(format!("`{shown}` has a port or a user, which is unsupported for files and buckets"));
        }
        if url.path().contains("%00") {
            return Err(format!("`{shown}` contains U+0000, which is not allowed"));
        }
        Ok(Self::Uri(text.to_owned()))
    }
}

/// Shortens a location for a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn u7_what_names_no_place_is_no_location() {
        for bad in [
            "",
            " ",
            "s3://",
            "s3:///key",
            "file://",
            "file:///",
            "file://data/x.jsonl",
            "file:///a?b",
            "file:///a#b",
            "s3://user@bucket/x",
            "s3://bucket:9000/x",
            "file:///a\0b",
            "file:///a%00b",
            "file:///a\nb",
            " file:///a",
            "file:///a ",
            "http://host/a",
            "~/x",
            "data/x",
            "artifact://7",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad:?}");
        }
        for good in ["s3://bucket", "s3://bucket/a b", "file:///a%20b", "file://localhost/a", "file:///ä/*"] {
            assert_eq!(good.parse::<Location>().unwrap(), Location::Uri(good.to_owned()));
        }
        let long = format!("file:///{}", "x".repeat(4089));
        assert_eq!(long.parse::<Location>().unwrap_err(), limits::LOCATION.description());
        let unknown = format!("nope{}", "x".repeat(4000));
        assert!(unknown.parse::<Location>().unwrap_err().len() < 1000, "messages stay short");
    }
}
