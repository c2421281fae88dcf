//! A record of what an attempt has finished, saved beside its files, so that the next attempt can
//! resume from there.
//!
//! ```text
//!  attempt 1: uploads parts and saves journal.json beside them every second; then it dies
//!  attempt 2: reads the journal, completes the upload from those parts, and copies from the
//!             object: finished segments have a digest, so the store can copy them itself
//! ```
//! Each attempt writes to a separate location. An attempt that only seemed dead therefore cannot
//! damage the next one's files: completing an object from its parts ends its upload. A journal is
//! deleted before its artifact's row is written, so files beside a journal do not belong to a row.

use std::time::Duration;

use inheritune_domain::artifact::{ArtifactKind, SegmentDigest};
use inheritune_domain::id::{JobId, Sha256Digest};
use serde::{Deserialize, Serialize};

use super::ROOT;
use crate::StoreError;
use crate::rows::corrupt;
use inheritune_objects::{Chunk, Finished, Objects, Segment};

/// Name of the journal. The name is reserved.
pub(super) const JOURNAL_FILE: &str = "journal.json";
/// Size limit of a journal.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// Interval between saves. If the process is killed, the work since the last save is lost.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The files of an attempt, as far as they are finished.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    files: Vec<JournalFile>,
}

/// One file, as far as it is finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JournalFile {
    name: String,
    /// Plan digest: a digest of the sources of the file.
    plan: Sha256Digest,
    /// Has parts while the upload is incomplete. A complete object has no parts.
    finished: Finished,
}

/// The journal of an attempt that is over or has lost its lease.
#[derive(Debug)]
pub(super) struct EarlierAttempt {
    location: String,
    journal: Journal,
}

impl Journal {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Records what is finished of a file. The file recorded last is the unfinished one.
    pub(super) fn note(&mut self, name: &str, plan: Sha256Digest, finished: Finished) {
        self.files.retain(|file| file.name != name);
        self.files.push(JournalFile { name: name.to_owned(), plan, finished });
    }

    /// Returns whether the journal contains the file `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    pub(super) async fn save(&self, objects: &Objects, location: &str) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|e| corrupt(JOURNAL_FILE, e))?;
        Ok(objects.put(location, JOURNAL_FILE, bytes.into()).await?)
    }

    async fn load(objects: &Objects, location: &str) -> Result<Option<Self>, StoreError> {
        let bytes = objects.read(location, JOURNAL_FILE, MAX_JOURNAL_BYTES).await?;
        let journal = bytes.map(|bytes| serde_json::from_slice(&bytes));
        journal.transpose().map_err(|e| corrupt(format!("{location}/{JOURNAL_FILE}"), e))
    }
}

impl JournalFile {
    fn size_bytes(&self) -> u64 {
        match &self.finished.parts {
            Some(parts) => parts.size_bytes(),
            None => self.finished.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.size_bytes)),
        }
    }
}

/// Returns the journals that other attempts of `job` left. Skips the caller's location `own`.
pub(super) async fn earlier_attempts(
    objects: &Objects,
    (kind, job): (ArtifactKind, JobId),
    own: &str,
) -> Result<Vec<EarlierAttempt>, StoreError> {
    let mut found = Vec::new();
    for (key, _) in objects.written(&format!("{ROOT}/{}/{job}", kind.as_str())).await? {
        let Some(location) = key.strip_suffix(JOURNAL_FILE).map(|place| place.trim_end_matches('/')) else { continue };
        if location == own {
            continue;
        }
        match Journal::load(objects, location).await {
            Ok(Some(journal)) => found.push(EarlierAttempt { location: location.to_owned(), journal }),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(location, %error, "cannot read the journal of an earlier attempt; repeating its work")
            }
        }
    }
    Ok(found)
}

impl EarlierAttempt {
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    fn file(&self, name: &str, plan: Sha256Digest) -> Option<&JournalFile> {
        self.journal.files.iter().find(|file| file.name == name && file.plan == plan)
    }
}

/// Replaces the segments of the file `name` that an earlier attempt finished with copies from
/// there. Returns all segments and the number of replaced bytes. Files with the same plan digest
/// are equal, byte for byte.
pub(super) async fn reuse(
    objects: &Objects,
    earlier: &[EarlierAttempt],
    (name, plan): (&str, Sha256Digest),
    mut segments: Vec<Segment>,
) -> Result<(Vec<Segment>, u64), StoreError> {
    let found = earlier.iter().filter_map(|attempt| Some((attempt.location(), attempt.file(name, plan)?)));
    let Some((location, file)) = found.max_by_key(|(_, file)| file.size_bytes()) else { return Ok((segments, 0)) };
    if let Some(parts) = &file.finished.parts
        && !objects.complete(location, name, parts).await?
    {
        return Ok((segments, 0));
    }
    let (size_bytes, mut at) = (file.size_bytes(), 0);
    for (segment, SegmentDigest { size_bytes: length, sha256 }) in segments.iter_mut().zip(&file.finished.segments) {
        let end = at + segment.size_bytes();
        if segment.size_bytes() != *length || end > size_bytes {
            break;
        }
        let object_range = objects.range(location, name, size_bytes, at..end)?;
        *segment = Segment { chunks: vec![Chunk::Copied(object_range)].into(), sha256: Some(*sha256) };
        at = end;
    }
    Ok((segments, at))
}

/// Deletes all files of an attempt, including the parts of interrupted uploads in its journal.
pub(super) async fn delete_place(objects: &Objects, location: &str) -> Result<(), StoreError> {
    let journal = Journal::load(objects, location).await.unwrap_or_else(|error| {
        tracing::warn!(location, %error, "cannot read a journal; parts of uploads may remain in the bucket");
        None
    });
    for file in journal.iter().flat_map(|journal| &journal.files) {
        if let Some(parts) = &file.finished.parts
            && let Err(error) = objects.abort(location, &file.name, parts).await
        {
            // Most likely another attempt has already completed the upload.
            tracing::debug!(location, file = file.name, %error, "cannot abort an upload");
        }
    }
    Ok(objects.delete(location).await?)
}

/// Deletes like [`delete_place`], but only logs errors, because the sweep deletes what is left.
pub(super) async fn try_delete_place(objects: &Objects, location: &str) {
    if let Err(error) = delete_place(objects, location).await {
        tracing::warn!(location, %error, "cannot delete orphaned files; the sweep will delete them");
    }
}
