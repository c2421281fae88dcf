//! `ArtifactService`.

use inheritune_api::convert::artifact::NewArtifact;
use inheritune_api::v1::artifact_service_server::ArtifactService;
use inheritune_api::{convert, status, v1};
use inheritune_domain::id::{JobId, RunId};
use inheritune_store::artifacts::{ArtifactFile, ArtifactFilter};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Shared, page, store_status};

/// `ArtifactService` over the store.
pub(super) struct Artifacts {
    shared: Shared,
}

impl Artifacts {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
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
        let id = convert::id("id", &request.get_ref().id).map_err(|e| status::invalid_argument(&e))?;
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
        let request = request.into_inner();
        let filter = ArtifactFilter {
            kind: convert::artifact::kind(request.kind).map_err(|e| status::invalid_argument(&e))?,
            run: optional::<RunId>("run_id", &request.run_id)?,
            job: optional::<JobId>("job_id", &request.job_id)?,
        };
        let page = page(request.page_size, &request.page_token)?;
        let listed = self.shared.store.list_artifacts(&filter, &page).await.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::ListArtifactsResponse {
            artifacts: listed.items.iter().map(v1::Artifact::from).collect(),
            next_page_token: listed.next.unwrap_or_default(),
        }))
    }
}

fn optional<T: From<Uuid>>(field: &str, text: &str) -> Result<Option<T>, Status> {
    match text {
        "" => Ok(None),
        id => convert::id(field, id).map(Some).map_err(|e| status::invalid_argument(&e)),
    }
}

fn file(file: ArtifactFile) -> v1::ArtifactFile {
    let (sha256, segments) = convert::artifact::digest(file.digest.as_ref());
    v1::ArtifactFile { name: file.name, size_bytes: file.size_bytes, sha256, segments, download_url: file.download_url }
}
