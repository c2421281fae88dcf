//! What an attempt of a job has finished of its files, noted beside them, so that the next attempt goes on from there.
//!
//! ```text
//!  attempt 1: parts of an upload ──► journal.json beside them, every second          then it dies
//!  attempt 2: reads the journal, makes a readable object of those parts, and copies from it: what is known has a
//!             digest already, and the store can copy it itself
//! ```
//! Each attempt writes in a place of its own, so an attempt that only seemed dead cannot spoil the next one's files: to
//! make an object of its parts ends its upload. A journal is gone before its artifact's row is written: files beside
//! a journal belong to no row.

use std::time::Duration;

use inheritune_domain::artifact::{ArtifactKind, SegmentDigest};
use inheritune_domain::id::{JobId, Sha256Digest};
use serde::{Deserialize, Serialize};

use super::ROOT;
use crate::StoreError;
use crate::rows::corrupt;
use inheritune_objects::{Chunk, Finished, Objects, Segment};

/// Its name; no file of an artifact may be called so.
pub(super) const JOURNAL_FILE: &str = "journal.json";
/// Largest one that is read.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// A kill costs what was done since the last save.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(1);

/// What an attempt has finished.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    files: Vec<JournalFile>,
}

/// What is finished of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JournalFile {
    name: String,
    /// Digest of what it is made of.
    plan: Sha256Digest,
    /// Has parts while they are not an object yet; a file that can be read under its name has none.
    finished: Finished,
}

/// The journal of an attempt that is over, or should be.
#[derive(Debug)]
pub(super) struct EarlierAttempt {
    location: String,
    journal: Journal,
}

impl Journal {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Notes what is finished of a file. The last file noted is the one in the making.
    pub(super) fn note(&mut self, name: &str, plan: Sha256Digest, finished: Finished) {
        self.files.retain(|file| file.name != name);
        self.files.push(JournalFile { name: name.to_owned(), plan, finished });
    }

    /// Whether it tells of an upload of the file `name`.
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

/// The journals that other attempts of `job` left, `own` place aside.
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
            Err(error) => tracing::warn!(location, %error, "what an earlier attempt finished is done again"),
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

/// The segments of the file `name`, those that an earlier attempt finished taken from there, with the number of their
/// bytes. Made by the same plan they are the same, byte for byte.
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
        let stretch = objects.stretch(location, name, size_bytes, at..end)?;
        *segment = Segment { chunks: vec![Chunk::Copied(stretch)].into(), sha256: Some(*sha256) };
        at = end;
    }
    Ok((segments, at))
}

/// Deletes all that an attempt left, parts of broken-off uploads that its journal tells of included.
pub(super) async fn delete_place(objects: &Objects, location: &str) -> Result<(), StoreError> {
    let journal = Journal::load(objects, location).await.unwrap_or_else(|error| {
        tracing::warn!(location, %error, "parts of an upload may stay until the bucket's lifecycle rule");
        None
    });
    for file in journal.iter().flat_map(|journal| &journal.files) {
        if let Some(parts) = &file.finished.parts
            && let Err(error) = objects.abort(location, &file.name, parts).await
        {
            // Most likely it is over: another attempt made an object of it.
            tracing::debug!(location, file = file.name, %error, "an upload was not aborted");
        }
    }
    Ok(objects.delete(location).await?)
}

/// As [`delete_place`], by a caller to whom it does not matter: the sweep will have what is left.
pub(super) async fn try_delete_place(objects: &Objects, location: &str) {
    if let Err(error) = delete_place(objects, location).await {
        tracing::warn!(location, %error, "files that belong to no artifact were not deleted; the sweep will");
    }
}
