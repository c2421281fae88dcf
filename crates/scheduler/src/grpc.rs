//! The gRPC services: requests in, store calls, replies out. Nothing is decided here.

mod artifacts;
mod jobs;
mod runs;
mod rounds;
mod watch;

use std::sync::Arc;

use inheritune_api::convert::page::Room;
use inheritune_api::v1::artifact_service_server::ArtifactServiceServer;
use inheritune_api::v1::job_service_server::JobServiceServer;
use inheritune_api::v1::run_service_server::RunServiceServer;
use inheritune_api::{convert, status, v1};
use inheritune_domain::id::RunId;
use inheritune_domain::spec::Ceilings;
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::telemetry::traces;
use inheritune_store::jobs::{JobFilter, Page, Paged};
use inheritune_store::{Store, StoreError};
use rounds::Rounds;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Watches at once in one process.
const MAX_WATCHES: usize = 4096;
/// A run's newest jobs that are looked at: it has one unfinished job at a time, and this many may end between looks.
const RECENT_JOBS: u32 = 32;
/// Entries of a list that are in memory at once with all that they have.
const PIECE: u32 = 50;

/// Full names of what [`services`] serves.
pub const SERVICE_NAMES: [&str; 3] =
    ["inheritune.v1.RunService", "inheritune.v1.JobService", "inheritune.v1.ArtifactService"];

/// What this crate serves; what is beyond `ceilings` is refused. Watches end on `stop`.
pub fn services(store: &Store, ceilings: Ceilings, stop: &CancellationToken) -> GrpcServices {
    let shared = Shared {
        store: store.clone(),
        ceilings,
        stop: stop.clone(),
        rounds: Arc::new(OnceCell::new()),
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
    ceilings: Ceilings,
    stop: CancellationToken,
    rounds: Arc<OnceCell<Rounds>>,
    watches: Arc<Semaphore>,
}

/// What a watch holds as long as it lasts.
struct WatchGrant {
    store: Store,
    rounds: Rounds,
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
        let rounds = self.rounds.get_or_try_init(|| async {
            let wakeups = self.store.listen().await?;
            Ok(Rounds::begin(self.store.clone(), wakeups, self.stop.clone()))
        });
        let rounds = rounds.await.map_err(|e: StoreError| store_status(&e))?.clone();
        Ok(WatchGrant { store: self.store.clone(), rounds, stop: self.stop.clone(), _permit: permit })
    }
}

/// The run's newest jobs, oldest first.
async fn recent_jobs(store: &Store, run: RunId) -> Result<Vec<v1::Job>, StoreError> {
    let filter = JobFilter { run: Some(run), ..JobFilter::default() };
    let listed = store.list_jobs(&filter, &Page { size: RECENT_JOBS, token: None }).await?;
    Ok(listed.items.iter().rev().map(v1::Job::from).collect())
}

/// The page that a request asks for, in the store's words.
fn page(page: convert::page::Page) -> Page {
    Page { size: page.size, token: page.token }
}

/// A page in pieces: as many entries as were asked for, or as fit into a reply. `list` reads entries, `message` is what each
/// becomes.
async fn fitting<T, M: prost::Message, F: Future<Output = Result<Paged<T>, StoreError>>>(
    page: Page,
    list: impl Fn(Page) -> F,
    message: impl Fn(&T) -> M,
) -> Result<(Vec<M>, String), Status> {
    let (mut room, mut messages, mut token) = (Room::after(0), Vec::new(), page.token);
    let mut sent = String::new();
    loop {
        let wanted = page.size.saturating_sub(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        let piece = Page { size: wanted.min(PIECE), token };
        let listed = list(piece).await.map_err(|e| store_status(&e))?;
        for (item, after) in listed.items.iter().zip(listed.after) {
            let message = message(item);
            if !room.takes(&message) {
                return Ok((messages, sent));
            }
            messages.push(message);
            sent = after;
        }
        match listed.next {
            Some(next) if wanted > PIECE => token = Some(next),
            next => return Ok((messages, next.unwrap_or_default())),
        }
    }
}

/// What a failed store call means to a caller, where no single field of the request is to blame.
fn store_status(error: &StoreError) -> Status {
    inheritune_runtime::store_status::store_status(error, "request")
}
