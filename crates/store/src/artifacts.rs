//! Artifacts.
use std::path::Path;

use bytes::Bytes;
use inheritune_domain::artifact::{Artifact, ArtifactKind, Location, ManifestFile};
use inheritune_domain::id::{ArtifactId, JobId, RunId, Sha256Digest};
use uuid::Uuid;

use crate::jobs::{LeaseKey, Page, Paged};
use crate::objects::Folder;
use crate::{Store, StoreError};

/// Which artifacts are wanted; every field that is set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArtifactFilter {
    /// Of this kind.
    pub kind: Option<ArtifactKind>,
    /// Of this run.
    pub run: Option<RunId>,
    /// Made by this job.
    pub job: Option<JobId>,
}

/// One file of an artifact, and where a client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactFile {
    /// Name relative to the artifact.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Digest, where it is known.
    pub sha256: Option<Sha256Digest>,
    /// `file://` or signed `https://`.
    pub download_url: String,
}

/// An artifact in the making.
pub struct ArtifactWriter {
    _store: Store,
    _lease: LeaseKey,
    _kind: ArtifactKind,
}

/// One file of an artifact in the making.
pub struct FileWriter<'a> {
    _artifact: &'a mut ArtifactWriter,
}

#[allow(clippy::todo)]
impl Store {
    /// Starts an artifact.
    pub fn begin_artifact(&self, kind: ArtifactKind, lease: LeaseKey) -> ArtifactWriter {
        ArtifactWriter { _store: self.clone(), _lease: lease, _kind: kind }
    }
    /// One artifact.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn artifact(&self, _id: ArtifactId) -> Result<Artifact, StoreError> {
        todo!()
    }
    /// Artifacts, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_artifacts(&self, _filter: &ArtifactFilter, _page: &Page) -> Result<Paged<Artifact>, StoreError> {
        todo!()
    }
    /// Registers a folder from outside.
    ///
    /// # Errors
    /// [`StoreError::Location`], [`StoreError::RequestIdReused`].
    pub async fn register_artifact(
        &self,
        _kind: ArtifactKind,
        _uri: &str,
        _metadata: serde_json::Value,
        _request_id: Option<Uuid>,
    ) -> Result<Artifact, StoreError> {
        todo!()
    }
    /// The files of an artifact.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`].
    pub async fn artifact_files(&self, _id: ArtifactId) -> Result<Vec<ArtifactFile>, StoreError> {
        todo!()
    }
    /// A job's training states, newest step first.
    ///
    /// # Errors
    /// The database's.
    pub async fn training_states(&self, _job: JobId) -> Result<Vec<Artifact>, StoreError> {
        todo!()
    }
    /// Deletes an artifact.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_artifact(&self, _id: ArtifactId) -> Result<(), StoreError> {
        todo!()
    }
    /// Opens an artifact or an allowed URI.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`], [`StoreError::Location`].
    pub async fn open(&self, _location: &Location) -> Result<Folder, StoreError> {
        todo!()
    }
}

#[allow(clippy::todo)]
impl ArtifactWriter {
    /// Adds a small file.
    ///
    /// # Errors
    /// The object store's.
    pub async fn put_bytes(&mut self, _name: &str, _bytes: Bytes) -> Result<(), StoreError> {
        todo!()
    }
    /// Adds a local file.
    ///
    /// # Errors
    /// The file's or the object store's.
    pub async fn put_file(&mut self, _name: &str, _path: &Path) -> Result<(), StoreError> {
        todo!()
    }
    /// Starts a file.
    ///
    /// # Errors
    /// The name is not allowed or taken.
    pub async fn create(&mut self, _name: &str) -> Result<FileWriter<'_>, StoreError> {
        todo!()
    }
    /// Uploads the manifest, then writes the row.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn publish(self, _step: Option<u64>, _metadata: serde_json::Value) -> Result<Artifact, StoreError> {
        todo!()
    }
    /// Deletes what was uploaded.
    ///
    /// # Errors
    /// The object store's.
    pub async fn abandon(self) -> Result<(), StoreError> {
        todo!()
    }
}

#[allow(clippy::todo)]
impl FileWriter<'_> {
    /// Adds bytes.
    ///
    /// # Errors
    /// The object store's.
    pub async fn write(&mut self, _bytes: Bytes) -> Result<(), StoreError> {
        todo!()
    }
    /// Ends the file.
    ///
    /// # Errors
    /// The object store's.
    pub async fn finish(self) -> Result<ManifestFile, StoreError> {
        todo!()
    }
}
