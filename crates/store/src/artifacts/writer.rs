//! Creation of an artifact: first the files, then the manifest, then the row.

mod file;
mod names;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use inheritune_domain::artifact::{Artifact, ArtifactKind, FileDigest, Manifest, ManifestFile, SegmentDigest};
use inheritune_domain::id::{ArtifactId, Sha256Digest};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::journal::{EarlierAttempt, JOURNAL_FILE, Journal, earlier_attempts, reuse, try_delete_place};
use super::{MANIFEST_FILE, PUBLISHED_BYTES, ROOT, file_count};
use crate::jobs::LeaseKey;
use crate::rows;
use crate::{Store, StoreError};
use inheritune_objects::{Finished, Objects, Segment, Upload, WrittenBytes, plan_digest};

pub use file::FileWriter;
use names::check_name;

/// Bytes per read of a local file.
const READ_BYTES: usize = 4 << 20;
/// Timeout of the cleanup after a dropped writer.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

/// An unfinished artifact. It is not visible before [`ArtifactWriter::publish`]. Dropping the
/// writer deletes its files in the background while the process runs, except assembled parts, from
/// which the job's next attempt resumes. [`Store::sweep_orphans`] deletes the rest. Other parts of
/// interrupted uploads to S3 cannot be listed, so the bucket needs a lifecycle rule that aborts
/// incomplete uploads.
pub struct ArtifactWriter {
    store: Store,
    lease: LeaseKey,
    kind: ArtifactKind,
    id: ArtifactId,
    location: String,
    files: Vec<ManifestFile>,
    /// Names that a [`FileWriter`] has used, finished or not, because a key is written only once.
    names: Vec<String>,
    /// Files whose writers were dropped before they finished.
    broken_off: Vec<(String, Upload)>,
    /// What is finished of assembled files, as saved beside them.
    journal: Journal,
    /// What other attempts of the job have finished; `None` before it is loaded.
    earlier: Option<Vec<EarlierAttempt>>,
    /// Whether the drop has nothing to clean up: the artifact is published, abandoned or suspended.
    settled: bool,
}

impl Store {
    /// Starts an artifact. Nothing is written yet.
    pub fn begin_artifact(&self, kind: ArtifactKind, lease: LeaseKey) -> ArtifactWriter {
        let id = Uuid::now_v7();
        // The random end of the id, because one lease may create several artifacts of a kind.
        let n = &id.simple().to_string()[24..];
        ArtifactWriter {
            store: self.clone(),
            lease,
            kind,
            id: ArtifactId(id),
            location: format!("{ROOT}/{}/{}/{}-{n}", kind.as_str(), lease.job, lease.token),
            files: Vec::new(),
            names: Vec::new(),
            broken_off: Vec::new(),
            journal: Journal::default(),
            earlier: None,
            settled: false,
        }
    }

    /// Writes the row, if `lease` still holds. This is not a method of the writer, because the
    /// writer cannot be shared between threads.
    async fn publish_row(&self, lease: LeaseKey, mut artifact: Artifact, files: i32) -> Result<Artifact, StoreError> {
        let mut tx = self.pool.begin().await?;
        // The share lock blocks the reaper until the row is committed.
        let held = sqlx::query!(
            "-- artifacts.fence
             SELECT j.run_id
             FROM job_queue q
             JOIN jobs j ON j.id = q.job_id
             WHERE q.job_id = $1 AND q.lease_token = $2 AND q.lease_until > now()
             FOR SHARE OF q",
            lease.job.0,
            lease.token.0,
        )
        .fetch_optional(&mut *tx)
        .await?;
        let held = held.ok_or(StoreError::LeaseLost(lease.job))?;
        artifact.run = held.run_id.map(Into::into);
        artifact.created_at = sqlx::query_scalar!(
            "-- artifacts.publish
             INSERT INTO artifacts (id, kind, location, manifest_sha256, size_bytes, file_count, job_id, run_id, lease_token,
                                    step, metadata)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             RETURNING created_at",
            artifact.id.0,
            artifact.kind.as_str(),
            artifact.location,
            artifact.manifest_sha256.as_ref().map(|digest| &digest.0[..]),
            rows::signed(artifact.size_bytes),
            files,
            lease.job.0,
            held.run_id,
            lease.token.0,
            artifact.step.map(rows::signed),
            artifact.metadata,
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(artifact)
    }
}

impl ArtifactWriter {
    /// Adds a small file.
    ///
    /// # Errors
    /// [`StoreError::Location`] if the name is invalid or already used; errors of the object store.
    pub async fn put_bytes(&mut self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let mut file = self.create(name).await?;
        file.write(bytes).await?;
        file.finish().await?;
        Ok(())
    }

    /// Adds a local file of any size.
    ///
    /// # Errors
    /// [`StoreError::Location`] if the name is invalid or already used; [`StoreError::File`];
    /// errors of the object store.
    pub async fn put_file(&mut self, name: &str, path: &Path) -> Result<(), StoreError> {
        let failed = |source| StoreError::File { path: path.display().to_string(), source };
        let mut local = tokio::fs::File::open(path).await.map_err(failed)?;
        local.set_max_buf_size(READ_BYTES);
        let mut file = self.create(name).await?;
        loop {
            let mut bytes = BytesMut::with_capacity(READ_BYTES);
            if local.read_buf(&mut bytes).await.map_err(failed)? == 0 {
                break;
            }
            file.write(bytes.freeze()).await?;
        }
        file.finish().await?;
        Ok(())
    }

    /// Adds a file assembled from `segments`, in this order, and returns their digests. Most
    /// segments are ranges of other files, which are copied in the fastest way that both stores
    /// allow. `written` counts the bytes. Work on the same file that an earlier attempt of the job
    /// finished is reused.
    ///
    /// # Errors
    /// [`StoreError::Location`] if the name is invalid or already used; [`StoreError::Corrupt`] if
    /// a source is too short or changes; errors of the object store.
    pub async fn assemble(
        &mut self,
        name: &str,
        segments: Vec<Segment>,
        written: &WrittenBytes,
    ) -> Result<Vec<SegmentDigest>, StoreError> {
        self.take_name(name)?;
        let plan = plan_digest(&segments);
        let segments = self.reuse_earlier((name, plan), segments).await?;
        let segments = match self.objects().local_file(&self.location, name)? {
            Some(file) => file.assemble(segments, written).await?,
            None => FileWriter::new(self, name)?.assemble(segments, plan, written).await?,
        };
        self.journal.note(name, plan, Finished { segments: segments.clone(), parts: None });
        self.save_journal().await;
        let size_bytes = segments.iter().map(|segment| segment.size_bytes).sum();
        let digest = FileDigest::Segments(segments.clone());
        self.files.push(ManifestFile { name: name.to_owned(), size_bytes, digest });
        Ok(segments)
    }

    /// Starts a file that is written piece by piece.
    ///
    /// # Errors
    /// [`StoreError::Location`] if the name is invalid or already used.
    pub async fn create(&mut self, name: &str) -> Result<FileWriter<'_>, StoreError> {
        self.take_name(name)?;
        FileWriter::new(self, name)
    }

    /// Replaces the segments that an earlier attempt has finished with copies from there.
    async fn reuse_earlier(
        &mut self,
        (name, plan): (&str, Sha256Digest),
        segments: Vec<Segment>,
    ) -> Result<Vec<Segment>, StoreError> {
        let earlier = match &mut self.earlier {
            Some(earlier) => earlier,
            none => {
                let made = (self.kind, self.lease.job);
                none.insert(earlier_attempts(&self.store.objects, made, &self.location).await?)
            }
        };
        let (segments, bytes) = reuse(&self.store.objects, earlier, (name, plan), segments).await?;
        if bytes > 0 {
            tracing::info!(file = name, bytes, "resuming from the work of an earlier attempt");
        }
        Ok(segments)
    }

    /// Saves the journal. Only logs errors, because without a journal the next attempt just repeats
    /// more work.
    async fn save_journal(&mut self) {
        if let Err(error) = self.journal.save(self.objects(), &self.location).await {
            tracing::warn!(location = self.location, %error, "cannot save the journal");
        }
    }

    /// Checks and reserves a file name, because a key is written only once.
    fn take_name(&mut self, name: &str) -> Result<(), StoreError> {
        check_name(name, &self.names)
            .map_err(|problem| StoreError::Location { location: format!("{}/{name}", self.location), problem })?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Uploads the manifest and then writes the row if the lease still holds, which makes the
    /// artifact visible.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`]: no row was written and the files are deleted. Other errors of the
    /// database or the object store.
    pub async fn publish(mut self, step: Option<u64>, metadata: serde_json::Value) -> Result<Artifact, StoreError> {
        self.abort_broken_off().await;
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest { files: std::mem::take(&mut self.files) };
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| rows::corrupt(MANIFEST_FILE, e))?;
        let manifest_sha256 = Sha256Digest::of(&bytes);
        self.objects().put(&self.location, MANIFEST_FILE, bytes.into()).await?;
        if !self.journal.is_empty() {
            // Files beside a journal must not belong to a row.
            self.objects().delete_file(&self.location, JOURNAL_FILE).await?;
            self.journal = Journal::default();
        }
        let artifact = Artifact {
            id: self.id,
            kind: self.kind,
            location: self.location.clone(),
            manifest_sha256: Some(manifest_sha256),
            size_bytes: manifest.size_bytes(),
            job: Some(self.lease.job),
            run: None,
            step,
            metadata,
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            pinned: false,
        };
        let store = self.store.clone();
        let inserted = store.publish_row(self.lease, artifact, file_count(manifest.files.len())).await;
        match &inserted {
            Err(StoreError::LeaseLost(_)) => try_delete_place(&self.store.objects, &self.location).await,
            // This attempt held the lease, so all earlier attempts are over.
            Ok(artifact) => {
                metrics::counter!(PUBLISHED_BYTES, "kind" => artifact.kind.as_str()).increment(artifact.size_bytes);
                for earlier in self.earlier.iter().flatten() {
                    try_delete_place(&self.store.objects, earlier.location()).await;
                }
            }
            // If the reply was lost, the commit may have succeeded. Keep the files; if it failed,
            // the sweep deletes them.
            Err(_) => {}
        }
        self.settled = true;
        inserted
    }

    /// Deletes everything that was uploaded.
    ///
    /// # Errors
    /// Errors of the object store.
    pub async fn abandon(mut self) -> Result<(), StoreError> {
        self.abort_broken_off().await;
        self.objects().delete(&self.location).await?;
        self.settled = true;
        Ok(())
    }

    /// Leaves the finished parts of assembled files to the job's next attempt. If there are none,
    /// deletes everything that was uploaded.
    ///
    /// # Errors
    /// Errors of the object store.
    pub async fn suspend(mut self) -> Result<(), StoreError> {
        if self.journal.is_empty() {
            return self.abandon().await;
        }
        self.keep_journaled();
        self.abort_broken_off().await;
        self.settled = true;
        Ok(())
    }

    /// Excludes the uploads in the journal from the cleanup.
    fn keep_journaled(&mut self) {
        self.broken_off.retain(|(name, _)| !self.journal.has(name));
    }

    async fn abort_broken_off(&mut self) {
        abort(std::mem::take(&mut self.broken_off), &self.location).await;
    }

    fn objects(&self) -> &Objects {
        &self.store.objects
    }
}

async fn abort(uploads: Vec<(String, Upload)>, location: &str) {
    for (name, upload) in uploads {
        if let Err(error) = upload.abort().await {
            tracing::warn!(location, name, %error, "cannot abort an upload; the bucket's lifecycle rule will");
        }
    }
}

impl Drop for ArtifactWriter {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        // Nothing was started, or nothing is left to clean up.
        if self.settled || self.names.is_empty() {
            return;
        }
        let (objects, location) = (Arc::clone(&self.store.objects), self.location.clone());
        self.keep_journaled();
        let (broken_off, left) = (std::mem::take(&mut self.broken_off), !self.journal.is_empty());
        let cleanup = {
            let objects = Arc::clone(&objects);
            async move {
                abort(broken_off, &location).await;
                // Keep the files in the journal for the next attempt.
                if !left {
                    try_delete_place(&objects, &location).await;
                }
            }
        };
        // Without this writer the artifact can never get a row. The cleanup has a timeout, because
        // nothing waits for it.
        objects.cleanups().spawn_on(tokio::time::timeout(CLEANUP_LIMIT, cleanup), &runtime);
    }
}
