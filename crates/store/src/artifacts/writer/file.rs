//! One file of an artifact in the making.

use bytes::Bytes;
use inheritune_domain::artifact::{FileDigest, ManifestFile, SegmentDigest};
use inheritune_domain::id::Sha256Digest;
use sha2::{Digest as _, Sha256};

use super::super::journal::SAVE_EVERY;
use super::ArtifactWriter;
use crate::StoreError;
use inheritune_objects::{Segment, Upload, WrittenBytes, assemble_in_order};

/// One file of an artifact in the making. Dropped before [`FileWriter::finish`], it leaves no file.
pub struct FileWriter<'a> {
    artifact: &'a mut ArtifactWriter,
    name: String,
    upload: Option<Upload>,
    hasher: Sha256,
    size_bytes: u64,
}

impl<'a> FileWriter<'a> {
    /// Starts the file `name`, which is nobody else's.
    pub(super) fn new(artifact: &'a mut ArtifactWriter, name: &str) -> Result<Self, StoreError> {
        let upload = Some(artifact.objects().upload(&artifact.location, name)?);
        Ok(Self { artifact, name: name.to_owned(), upload, hasher: Sha256::new(), size_bytes: 0 })
    }

    /// Adds bytes; waits while too many are on their way.
    ///
    /// # Errors
    /// The object store's; the file cannot be finished then.
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

    /// The whole file out of `segments`, by the plan `plan`. The artifact has the upload should this be given up, and the
    /// journal what is finished of it.
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

    /// Ends the file.
    ///
    /// # Errors
    /// The object store's.
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
    StoreError::WrongState(format!("{name} cannot go on: a part of it was not written"))
}
