//! Conversions for artifacts.

use inheritune_domain::artifact::{Artifact, ArtifactKind, FileDigest, SegmentDigest};
use inheritune_domain::id::{JobId, RunId, Sha256Digest};
use inheritune_domain::spec::limits;
use inheritune_domain::violation::Violations;
use uuid::Uuid;

use super::fields::{Field, Notes};
use super::page::{Page, page};
use super::time::timestamp;
use crate::v1;

/// What a [`v1::RegisterArtifactRequest`] asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewArtifact {
    /// What the files are.
    pub kind: ArtifactKind,
    /// Where they are.
    pub uri: String,
    /// The metadata stored with the artifact: a JSON object.
    pub metadata: serde_json::Value,
    /// A request id chosen by the caller.
    pub request_id: Option<Uuid>,
}

impl TryFrom<&v1::RegisterArtifactRequest> for NewArtifact {
    type Error = Violations;

    fn try_from(request: &v1::RegisterArtifactRequest) -> Result<Self, Violations> {
        use inheritune_domain::artifact::Location;
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let kind = field.at("kind").named(request.kind);
        if kind.is_none() && request.kind == 0 {
            field.at("kind").bad("must be given");
        }
        if matches!(field.at("uri").location(&request.uri), Location::Artifact(_))
            && request.uri.starts_with("artifact:")
        {
            field.at("uri").bad("is already registered; use file:///path or s3://bucket/key");
        }
        let metadata = metadata(&mut field.at("metadata_json"), &request.metadata_json);
        let request_id = field.at("request_id").optional_id(&request.request_id);
        // The placeholder is never returned: the missing kind is a violation.
        let kind = kind.unwrap_or(ArtifactKind::Checkpoint);
        notes.into_result(Self { kind, uri: request.uri.clone(), metadata, request_id })
    }
}

/// Which artifacts a [`v1::ListArtifactsRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedArtifacts {
    /// Only artifacts of this kind.
    pub kind: Option<ArtifactKind>,
    /// Only artifacts of this run.
    pub run: Option<RunId>,
    /// Only artifacts of this job.
    pub job: Option<JobId>,
    /// The requested page.
    pub page: Page,
}

impl TryFrom<&v1::ListArtifactsRequest> for ListedArtifacts {
    type Error = Violations;

    fn try_from(request: &v1::ListArtifactsRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let listed = Self {
            kind: field.at("kind").named(request.kind),
            run: field.at("run_id").optional_id(&request.run_id),
            job: field.at("job_id").optional_id(&request.job_id),
            page: page(&mut field, request.page_size, &request.page_token),
        };
        notes.into_result(listed)
    }
}

fn metadata(field: &mut Field<'_>, text: &str) -> serde_json::Value {
    let empty = || serde_json::Value::Object(serde_json::Map::new());
    if text.is_empty() {
        return empty();
    }
    if let Some(problem) = limits::METADATA_JSON.problem(text) {
        field.bad(problem);
        return empty();
    }
    match serde_json::from_str(text) {
        Ok(value) if holds_nul(&value) => {
            field.bad("contains U+0000, which cannot be stored");
            empty()
        }
        Ok(value @ serde_json::Value::Object(_)) => value,
        Ok(_) => {
            field.bad("must be a JSON object");
            empty()
        }
        Err(e) => {
            field.bad(format!("is not JSON: {e}"));
            empty()
        }
    }
}

/// Returns whether a name or a text in `value` contains U+0000, which JSON can escape.
fn holds_nul(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Returns a digest as the fields `sha256` and `segments` of a [`v1::ArtifactFile`].
pub fn digest(digest: Option<&FileDigest>) -> (String, Vec<v1::FileSegment>) {
    let segment = |segment: &SegmentDigest| v1::FileSegment {
        size_bytes: segment.size_bytes,
        sha256: segment.sha256.to_string(),
    };
    match digest {
        None => (String::new(), Vec::new()),
        Some(FileDigest::Whole(sha256)) => (sha256.to_string(), Vec::new()),
        Some(FileDigest::Segments(segments)) => (String::new(), segments.iter().map(segment).collect()),
    }
}

/// Returns the digest of a file, or `None` if it is not known.
///
/// # Errors
/// A digest is not a valid SHA-256.
pub fn file_digest(file: &v1::ArtifactFile) -> Result<Option<FileDigest>, String> {
    let sha256 = |text: &str| {
        text.parse::<Sha256Digest>().map_err(|_| format!("{}: `{text}` is not a hexadecimal SHA-256", file.name))
    };
    let segment = |segment: &v1::FileSegment| {
        Ok(SegmentDigest { size_bytes: segment.size_bytes, sha256: sha256(&segment.sha256)? })
    };
    match (file.sha256.as_str(), file.segments.as_slice()) {
        ("", []) => Ok(None),
        ("", segments) => segments.iter().map(segment).collect::<Result<_, _>>().map(FileDigest::Segments).map(Some),
        (whole, _) => Ok(Some(FileDigest::Whole(sha256(whole)?))),
    }
}

impl From<&Artifact> for v1::Artifact {
    fn from(artifact: &Artifact) -> Self {
        Self {
            id: artifact.id.to_string(),
            kind: v1::ArtifactKind::from(artifact.kind).into(),
            location: artifact.location.clone(),
            manifest_sha256: artifact.manifest_sha256.map(|digest| digest.to_string()).unwrap_or_default(),
            size_bytes: artifact.size_bytes,
            job_id: artifact.job.map(|id| id.to_string()).unwrap_or_default(),
            run_id: artifact.run.map(|id| id.to_string()).unwrap_or_default(),
            step: artifact.step,
            metadata_json: artifact.metadata.to_string(),
            created_at: Some(timestamp(artifact.created_at)),
            pinned: artifact.pinned,
        }
    }
}
