//! Artifacts: immutable sets of files, each published by one row.
//!
//! ```text
//!  artifacts/{kind}/{job}/{lease token}-{n}/…              the files, then
//!  artifacts/{kind}/{job}/{lease token}-{n}/manifest.json  the list of files and digests, then
//!  artifacts                                               the row, only if the lease still holds
//! ```
//! A key is written once, by one attempt. During the attempt, `journal.json` beside the files
//! records what is finished, so that the job's next attempt can resume from there. Files without a
//! row are garbage, which [`Store::sweep_orphans`] removes. A registered external artifact is only
//! a row: its files stay where they are and are never deleted.

mod journal;
mod sweep;
mod writer;

use std::io;

use inheritune_domain::artifact::{Artifact, ArtifactKind, FileDigest, Location, Manifest};
use inheritune_domain::id::{ArtifactId, JobId, RunId, Sha256Digest};
use uuid::Uuid;

use crate::jobs::{Page, Paged};
use crate::rows::{self, Request, corrupt, not_found};
use crate::{Store, StoreError};
use inheritune_objects::{Folder, FolderFile};

pub use writer::{ArtifactWriter, FileWriter};

/// Folder of all artifacts in the object store.
const ROOT: &str = "artifacts";
/// File that lists the files of an artifact. The name is reserved.
const MANIFEST_FILE: &str = "manifest.json";
/// Size limit of a manifest.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Counter of bytes that this process published, with the label `kind`.
pub const PUBLISHED_BYTES: &str = "inheritune_published_bytes_total";

/// A filter for artifacts. Every field that is set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArtifactFilter {
    /// Only artifacts of this kind.
    pub kind: Option<ArtifactKind>,
    /// Only artifacts of this run.
    pub run: Option<RunId>,
    /// Only artifacts of this job.
    pub job: Option<JobId>,
}

/// One file of an artifact and its download URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactFile {
    /// Name relative to the artifact.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Digest, if it is known.
    pub digest: Option<FileDigest>,
    /// `file://` for a local folder; `https://` for S3, signed and valid for one hour; `memory://`
    /// for a store in memory, which other processes cannot read.
    pub download_url: String,
}

impl Store {
    /// Returns one artifact.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if the artifact was deleted.
    pub async fn artifact(&self, id: ArtifactId) -> Result<Artifact, StoreError> {
        let row = sqlx::query_as!(
            ArtifactRow,
            "-- artifacts.get
             SELECT id, seq, kind, location, manifest_sha256, size_bytes, job_id, run_id, step, metadata, created_at,
                    deleted_at, pinned
             FROM artifacts WHERE id = $1",
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        match row {
            Some(row) if row.deleted_at.is_some() => Err(not_found("artifact", format!("{id} (deleted)"))),
            Some(row) => row.artifact(),
            None => Err(not_found("artifact", id)),
        }
    }

    /// Lists artifacts that are not deleted, newest first.
    ///
    /// # Errors
    /// [`StoreError::Location`] for an invalid page token.
    pub async fn list_artifacts(&self, filter: &ArtifactFilter, page: &Page) -> Result<Paged<Artifact>, StoreError> {
        let mut tx = self.begin_list().await?;
        let found = sqlx::query_as!(
            ArtifactRow,
            "-- artifacts.list
             SELECT id, seq, kind, location, manifest_sha256, size_bytes, job_id, run_id, step, metadata, created_at,
                    deleted_at, pinned
             FROM artifacts
             WHERE deleted_at IS NULL
               AND ($1::text IS NULL OR kind = $1)
               AND ($2::uuid IS NULL OR run_id = $2)
               AND ($3::uuid IS NULL OR job_id = $3)
               AND ($4::bigint IS NULL OR seq < $4)
             ORDER BY seq DESC
             LIMIT $5",
            filter.kind.map(ArtifactKind::as_str),
            filter.run.map(|id| id.0),
            filter.job.map(|id| id.0),
            rows::after_seq(page)?,
            rows::row_limit(page),
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        let found: Result<_, StoreError> = found.into_iter().map(|row| Ok((row.seq, row.artifact()?))).collect();
        Ok(rows::paged(page, found?))
    }

    /// Registers the folder or file at `uri` as an artifact. The files stay where they are. If
    /// `request_id` was already used for the same registration, returns the existing artifact.
    ///
    /// # Errors
    /// [`StoreError::Location`] if this service may not read the URI; [`StoreError::NotFound`] if
    /// nothing exists there; [`StoreError::RequestIdReused`] if the id was used for a different
    /// registration.
    pub async fn register_artifact(
        &self,
        kind: ArtifactKind,
        uri: &str,
        metadata: serde_json::Value,
        request_id: Option<Uuid>,
    ) -> Result<Artifact, StoreError> {
        let request = Request::new(request_id, "artifact", &(kind, uri, &metadata))?;
        // Open before the transaction, which must not wait for a disk. An error counts only if this
        // is not a repeated request, because the files of an earlier one may be gone.
        let folder = self.objects.open_uri(None, uri).await;
        let id = ArtifactId(Uuid::now_v7());
        let mut tx = self.pool.begin().await?;
        if let Some(before) = request.made_before(&mut tx, id.0).await? {
            drop(tx);
            return self.artifact(ArtifactId(before)).await;
        }
        let folder = folder?;
        sqlx::query!(
            "-- artifacts.register
             INSERT INTO artifacts (id, kind, location, size_bytes, file_count, metadata)
             VALUES ($1, $2, $3, $4, $5, $6)",
            id.0,
            kind.as_str(),
            uri,
            rows::signed(folder.size_bytes()),
            file_count(folder.files().len()),
            metadata,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.artifact(id).await
    }

    /// Returns the files of an artifact with their download URLs, sorted by name.
    ///
    /// # Errors
    /// The errors of [`Store::open`].
    pub async fn artifact_files(&self, id: ArtifactId) -> Result<Vec<ArtifactFile>, StoreError> {
        let folder = self.open(&Location::Artifact(id)).await?;
        let urls = folder.download_urls().await?;
        let file = |(file, download_url): (&FolderFile, String)| ArtifactFile {
            name: file.name.clone(),
            size_bytes: file.size_bytes,
            digest: file.digest.clone(),
            download_url,
        };
        Ok(folder.files().iter().zip(urls).map(file).collect())
    }

    /// Returns the training states of a job that are not deleted, newest step first.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn training_states(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        let found = sqlx::query_as!(
            ArtifactRow,
            "-- artifacts.training_states
             SELECT id, seq, kind, location, manifest_sha256, size_bytes, job_id, run_id, step, metadata, created_at,
                    deleted_at, pinned
             FROM artifacts
             WHERE job_id = $1 AND kind = 'training_state' AND deleted_at IS NULL
             ORDER BY step DESC NULLS LAST, seq DESC",
            job.0,
        )
        .fetch_all(&self.pool)
        .await?;
        found.into_iter().map(ArtifactRow::artifact).collect()
    }

    /// Pins an artifact, which protects it from deletion, or unpins it. Does nothing if it is
    /// already in the requested state.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if the artifact was deleted.
    pub async fn pin_artifact(&self, id: ArtifactId, pinned: bool) -> Result<Artifact, StoreError> {
        sqlx::query!(
            "-- artifacts.pin
             UPDATE artifacts SET pinned = $2 WHERE id = $1 AND deleted_at IS NULL",
            id.0,
            pinned,
        )
        .execute(&self.pool)
        .await?;
        self.artifact(id).await
    }

    /// Deletes an artifact: marks its row, then deletes its files. Repeating the call is allowed,
    /// and deletes files that an interrupted call left behind. Never deletes the files of a
    /// registered external artifact.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] if the artifact is pinned; errors of
    /// the object store, after which the row is already marked and the caller repeats the call.
    pub async fn delete_artifact(&self, id: ArtifactId) -> Result<(), StoreError> {
        let deleted = sqlx::query!(
            r#"-- artifacts.delete
             UPDATE artifacts SET deleted_at = coalesce(deleted_at, now()) WHERE id = $1 AND NOT pinned
             RETURNING location, job_id IS NOT NULL AS "ours!""#,
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(deleted) = deleted else {
            self.artifact(id).await?;
            return Err(StoreError::WrongState(format!("artifact {id} is pinned; unpin it first")));
        };
        if deleted.ours {
            self.objects.delete(&deleted.location).await?;
        }
        Ok(())
    }

    /// Opens an artifact, or a URI that this service may read. The URI of a single file opens as a
    /// folder with one file. Reads only the list of files.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] for an artifact whose manifest is missing
    /// or damaged; [`StoreError::Location`] for a URI that this service may not read.
    pub async fn open(&self, location: &Location) -> Result<Folder, StoreError> {
        match location {
            Location::Artifact(id) => {
                let artifact = self.artifact(*id).await?;
                match artifact.manifest_sha256 {
                    Some(sha256) => self.open_own(location, &artifact.location, sha256).await,
                    None => Ok(self.objects.open_uri(Some(location.to_string()), &artifact.location).await?),
                }
            }
            Location::Uri(uri) => Ok(self.objects.open_uri(None, uri).await?),
        }
    }

    async fn open_own(&self, location: &Location, place: &str, sha256: Sha256Digest) -> Result<Folder, StoreError> {
        let name = format!("{location}/{MANIFEST_FILE}");
        let bytes = self.objects.read(place, MANIFEST_FILE, MAX_MANIFEST_BYTES).await?;
        let bytes = match (bytes, self.objects.unmounted(ROOT)) {
            (Some(bytes), _) => bytes,
            (None, Some(path)) => {
                let source =
                    io::Error::new(io::ErrorKind::NotConnected, "does not exist: is the object store's disk mounted?");
                return Err(StoreError::File { path: path.display().to_string(), source });
            }
            (None, None) => return Err(corrupt(&name, format!("is missing in {place}"))),
        };
        let actual = Sha256Digest::of(&bytes);
        if actual != sha256 {
            return Err(corrupt(&name, format!("is damaged: its SHA-256 is {actual}, but its row says {sha256}")));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| corrupt(&name, e))?;
        if !manifest.is_consistent() {
            return Err(corrupt(&name, "has a file whose segments do not add up to its size"));
        }
        let files = manifest.files.into_iter().map(|file| FolderFile {
            name: file.name,
            size_bytes: file.size_bytes,
            digest: Some(file.digest),
        });
        Ok(self.objects.folder(location.to_string(), place, files.collect())?)
    }
}

fn file_count(files: usize) -> i32 {
    i32::try_from(files).unwrap_or(i32::MAX)
}

struct ArtifactRow {
    id: Uuid,
    seq: i64,
    kind: String,
    location: String,
    manifest_sha256: Option<Vec<u8>>,
    size_bytes: i64,
    job_id: Option<Uuid>,
    run_id: Option<Uuid>,
    step: Option<i64>,
    metadata: serde_json::Value,
    created_at: time::OffsetDateTime,
    deleted_at: Option<time::OffsetDateTime>,
    pinned: bool,
}

impl ArtifactRow {
    fn artifact(self) -> Result<Artifact, StoreError> {
        let digest = |bytes: Vec<u8>| {
            let bytes = <[u8; 32]>::try_from(bytes);
            bytes
                .map(Sha256Digest)
                .map_err(|_| corrupt(format!("artifacts.manifest_sha256 of {}", self.id), "is not a SHA-256 digest"))
        };
        Ok(Artifact {
            id: ArtifactId(self.id),
            kind: rows::known(ArtifactKind::parse(&self.kind), "artifacts.kind", &self.kind)?,
            location: self.location,
            manifest_sha256: self.manifest_sha256.map(digest).transpose()?,
            size_bytes: rows::unsigned(self.size_bytes),
            job: self.job_id.map(JobId),
            run: self.run_id.map(RunId),
            step: self.step.map(rows::unsigned),
            metadata: self.metadata,
            created_at: self.created_at,
            pinned: self.pinned,
        })
    }
}
