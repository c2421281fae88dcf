//! `ArtifactService`.

use inheritune_api::convert::artifact::{ListedArtifacts, NewArtifact};
use inheritune_api::v1::artifact_service_server::ArtifactService;
use inheritune_api::{convert, status, v1};
use inheritune_domain::id::ArtifactId;
use inheritune_store::artifacts::{ArtifactFile, ArtifactFilter};
use tonic::{Request, Response, Status};

use super::{Shared, fitting, page, store_status};

/// `ArtifactService` over the store.
pub(super) struct Artifacts {
    shared: Shared,
}

impl Artifacts {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    async fn pin(&self, id: &str, pinned: bool) -> Result<v1::Artifact, Status> {
        let pinned = self.shared.store.pin_artifact(artifact_id(id)?, pinned).await;
        Ok((&pinned.map_err(|e| store_status(&e))?).into())
    }
}

#[tonic::async_trait]
impl ArtifactService for Artifacts {
    async fn register_artifact(
        &self,
        request: Request<v1::RegisterArtifactRequest>,
    ) -> Result<Response<v1::RegisterArtifactResponse>, Status> {
        let NewArtifact { kind, uri, metadata, request_id } =
            request.get_ref().try_into().map_err(|e| status::invalid_argument(&e))?;
        let registered = self.shared.store.register_artifact(kind, &uri, metadata, request_id).await;
        let artifact = registered.map_err(|e| inheritune_runtime::store_status::store_status(&e, "uri"))?;
        Ok(Response::new(v1::RegisterArtifactResponse { artifact: Some((&artifact).into()) }))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::GetArtifactResponse>, Status> {
        let id = artifact_id(&request.get_ref().id)?;
        let store = &self.shared.store;
        let artifact = store.artifact(id).await.map_err(|e| store_status(&e))?;
        let files = store.artifact_files(id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::GetArtifactResponse {
            artifact: Some((&artifact).into()),
            files: files.into_iter().map(file).collect(),
        }))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let ListedArtifacts { kind, run, job, page: asked } =
            request.get_ref().try_into().map_err(|e| status::invalid_argument(&e))?;
        let filter = ArtifactFilter { kind, run, job };
        let list = |page| {
            let filter = filter.clone();
            async move { self.shared.store.list_artifacts(&filter, &page).await }
        };
        let (artifacts, next_page_token) = fitting(page(asked), list, |artifact| v1::Artifact::from(artifact)).await?;
        Ok(Response::new(v1::ListArtifactsResponse { artifacts, next_page_token }))
    }

    async fn pin_artifact(
        &self,
        request: Request<v1::PinArtifactRequest>,
    ) -> Result<Response<v1::PinArtifactResponse>, Status> {
        let artifact = Some(self.pin(&request.get_ref().id, true).await?);
        Ok(Response::new(v1::PinArtifactResponse { artifact }))
    }

    async fn unpin_artifact(
        &self,
        request: Request<v1::UnpinArtifactRequest>,
    ) -> Result<Response<v1::UnpinArtifactResponse>, Status> {
        let artifact = Some(self.pin(&request.get_ref().id, false).await?);
        Ok(Response::new(v1::UnpinArtifactResponse { artifact }))
    }

    async fn delete_artifact(
        &self,
        request: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::DeleteArtifactResponse>, Status> {
        let id = artifact_id(&request.get_ref().id)?;
        self.shared.store.delete_artifact(id).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::DeleteArtifactResponse {}))
    }
}

fn artifact_id(id: &str) -> Result<ArtifactId, Status> {
    convert::id("id", id).map_err(|e| status::invalid_argument(&e))
}

fn file(file: ArtifactFile) -> v1::ArtifactFile {
    let (sha256, segments) = convert::artifact::digest(file.digest.as_ref());
    v1::ArtifactFile { name: file.name, size_bytes: file.size_bytes, sha256, segments, download_url: file.download_url }
}
