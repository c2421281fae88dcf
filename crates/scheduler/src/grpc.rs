//! The gRPC services: requests in, store calls, replies out. Nothing is decided here.

mod artifacts;
mod jobs;
mod runs;
mod watch;

use std::sync::Arc;

use inheritune_api::status;
use inheritune_api::v1::artifact_service_server::ArtifactServiceServer;
use inheritune_api::v1::job_service_server::JobServiceServer;
use inheritune_api::v1::run_service_server::RunServiceServer;
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::telemetry::traces;
use inheritune_store::jobs::Page;
use inheritune_store::notify::Wakeups;
use inheritune_store::{Store, StoreError};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Watches at once in one process.
const MAX_WATCHES: usize = 256;

/// Full names of what [`services`] serves.
pub const SERVICE_NAMES: [&str; 3] =
    ["inheritune.v1.RunService", "inheritune.v1.JobService", "inheritune.v1.ArtifactService"];

/// What this crate serves. Watches end on `stop`.
pub fn services(store: &Store, stop: &CancellationToken) -> GrpcServices {
    let shared = Shared {
        store: store.clone(),
        stop: stop.clone(),
        wakeups: Arc::new(OnceCell::new()),
        watches: Arc::new(Semaphore::new(MAX_WATCHES)),
    };
    let routes = tonic::service::Routes::new(RunServiceServer::new(runs::Runs::new(shared.clone())))
        .add_service(JobServiceServer::new(jobs::Jobs::new(shared.clone())))
        .add_service(ArtifactServiceServer::new(artifacts::Artifacts::new(shared)));
    GrpcServices { routes, names: SERVICE_NAMES.to_vec() }
}

/// What the services share.
#[derive(Clone)]
struct Shared {
    store: Store,
    stop: CancellationToken,
    wakeups: Arc<OnceCell<Wakeups>>,
    watches: Arc<Semaphore>,
}

/// What a watch holds as long as it lasts.
struct WatchGrant {
    wakeups: Wakeups,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Shared {
    /// The store for what this call creates.
    fn store_in_trace(&self) -> Store {
        self.store.in_trace(traces::current().as_deref())
    }

    /// Grants a watch, or says that there are too many.
    async fn watch(&self) -> Result<WatchGrant, Status> {
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            status::resource_exhausted("watches", &format!("this service serves at most {MAX_WATCHES} watches at once"))
        })?;
        // One listener for all watches, from the first one on.
        let wakeups = self.wakeups.get_or_try_init(|| self.store.listen()).await.map_err(|e| store_status(&e))?;
        Ok(WatchGrant { wakeups: wakeups.clone(), stop: self.stop.clone(), _permit: permit })
    }
}

/// The page that a request asks for.
fn page(size: i32, token: &str) -> Result<Page, Status> {
    let size = inheritune_api::convert::page::page_size(size).map_err(|e| status::invalid_argument(&e))?;
    Ok(Page { size, token: inheritune_api::convert::page::page_token(token) })
}

/// What a failed store call means to a caller, where no single field of the request is to blame.
fn store_status(error: &StoreError) -> Status {
    inheritune_runtime::store_status::store_status(error, "request")
}
