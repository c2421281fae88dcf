//! One file of an unfinished artifact.

use bytes::Bytes;
use inheritune_domain::artifact::{FileDigest, ManifestFile, SegmentDigest};
use inheritune_domain::id::Sha256Digest;
use sha2::{Digest as _, Sha256};

use super::super::journal::SAVE_EVERY;
use super::ArtifactWriter;
use crate::StoreError;
use inheritune_objects::{Segment, Upload, WrittenBytes, assemble_in_order};

/// One file of an unfinished artifact. Dropping it before [`FileWriter::finish`] discards the file.
pub struct FileWriter<'a> {
    artifact: &'a mut ArtifactWriter,
    name: String,
    upload: Option<Upload>,
    hasher: Sha256,
    size_bytes: u64,
}

impl<'a> FileWriter<'a> {
    /// Starts the file `name`, which the caller has reserved.
    pub(super) fn new(artifact: &'a mut ArtifactWriter, name: &str) -> Result<Self, StoreError> {
        let upload = Some(artifact.objects().upload(&artifact.location, name)?);
        Ok(Self { artifact, name: name.to_owned(), upload, hasher: Sha256::new(), size_bytes: 0 })
    }

    /// Appends bytes. Waits while too many are in flight.
    ///
    /// # Errors
    /// Errors of the object store. The file cannot be finished afterwards.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let upload = self.upload.as_mut().ok_or_else(|| broken(&self.name))?;
        self.hasher.update(&bytes);
        self.size_bytes += bytes.len() as u64;
        let written = upload.write(bytes).await;
        if written.is_err() {
            self.break_off();
        }
        Ok(written?)
    }

    /// Assembles the whole file from `segments` with the plan digest `plan`. If the future is
    /// dropped, the artifact keeps the upload, and the journal records what is finished.
    pub(super) async fn assemble(
        mut self,
        segments: Vec<Segment>,
        plan: Sha256Digest,
        written: &WrittenBytes,
    ) -> Result<Vec<SegmentDigest>, StoreError> {
        let Self { artifact, name, upload, .. } = &mut self;
        let upload = upload.as_mut().ok_or_else(|| broken(name))?;
        let progress = upload.progress();
        let digests = {
            let mut assembling = std::pin::pin!(assemble_in_order(upload, segments, written));
            loop {
                let finished = tokio::select! {
                    biased;
                    digests = &mut assembling => break digests?,
                    () = tokio::time::sleep(SAVE_EVERY) => progress.finished(),
                };
                if finished.parts.as_ref().is_some_and(|parts| !parts.parts.is_empty()) {
                    artifact.journal.note(name, plan, finished);
                    artifact.save_journal().await;
                }
            }
        };
        let upload = self.upload.take().ok_or_else(|| broken(&self.name))?;
        upload.finish().await?;
        Ok(digests)
    }

    fn break_off(&mut self) {
        self.artifact.broken_off.extend(self.upload.take().map(|upload| (self.name.clone(), upload)));
    }

    /// Finishes the file and adds it to the artifact.
    ///
    /// # Errors
    /// Errors of the object store.
    pub async fn finish(mut self) -> Result<ManifestFile, StoreError> {
        let upload = self.upload.take().ok_or_else(|| broken(&self.name))?;
        upload.finish().await?;
        let sha256 = Sha256Digest(std::mem::take(&mut self.hasher).finalize().into());
        let digest = FileDigest::Whole(sha256);
        let file = ManifestFile { name: self.name.clone(), size_bytes: self.size_bytes, digest };
        self.artifact.files.push(file.clone());
        Ok(file)
    }
}

impl Drop for FileWriter<'_> {
    fn drop(&mut self) {
        self.break_off();
    }
}

fn broken(name: &str) -> StoreError {
    StoreError::WrongState(format!("{name} cannot be continued: an earlier write failed"))
}
