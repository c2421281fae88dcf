//! The gRPC services. They translate requests to store calls and results to replies; they make no
//! decisions.

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

/// Maximum number of concurrent watches per process.
const MAX_WATCHES: usize = 4096;
/// How many of a run's newest jobs a watch reads. A run has one unfinished job at a time, so this
/// many jobs may end between two reads.
const RECENT_JOBS: u32 = 32;
/// Number of list entries that are held in memory at once in full.
const PIECE: u32 = 50;

/// Full names of the services of [`services`].
pub const SERVICE_NAMES: [&str; 3] =
    ["inheritune.v1.RunService", "inheritune.v1.JobService", "inheritune.v1.ArtifactService"];

/// Returns the services of this crate. They reject runs and jobs that exceed
/// `ceilings`. Watches end on `stop`.
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

/// State shared by the services.
#[derive(Clone)]
struct Shared {
    store: Store,
    ceilings: Ceilings,
    stop: CancellationToken,
    rounds: Arc<OnceCell<Rounds>>,
    watches: Arc<Semaphore>,
}

/// What a watch holds for its lifetime.
struct WatchGrant {
    store: Store,
    rounds: Rounds,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Shared {
    /// Returns a store that links new rows to the trace of this call.
    fn store_in_trace(&self) -> Store {
        self.store.in_trace(traces::current().as_deref())
    }

    /// Grants a watch, or fails if there are too many.
    async fn watch(&self) -> Result<WatchGrant, Status> {
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            status::resource_exhausted(
                "watches",
                &format!("this service serves at most {MAX_WATCHES} concurrent watches"),
            )
        })?;
        // All watches share one listener, which the first watch starts.
        let rounds = self.rounds.get_or_try_init(|| async {
            let wakeups = self.store.listen().await?;
            Ok(Rounds::begin(self.store.clone(), wakeups, self.stop.clone()))
        });
        let rounds = rounds.await.map_err(|e: StoreError| store_status(&e))?.clone();
        Ok(WatchGrant { store: self.store.clone(), rounds, stop: self.stop.clone(), _permit: permit })
    }
}

/// Returns the run's newest jobs, oldest first.
async fn recent_jobs(store: &Store, run: RunId) -> Result<Vec<v1::Job>, StoreError> {
    let filter = JobFilter { run: Some(run), ..JobFilter::default() };
    let listed = store.list_jobs(&filter, &Page { size: RECENT_JOBS, token: None }).await?;
    Ok(listed.items.iter().rev().map(v1::Job::from).collect())
}

/// Converts the page of a request to the store's type.
fn page(page: convert::page::Page) -> Page {
    Page { size: page.size, token: page.token }
}

/// Reads a page in pieces. Returns as many entries as were requested or as fit into a reply, and
/// the next page token. `list` reads entries, and `message` converts each entry.
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

/// Returns the status of a store error that no single field of the request caused.
fn store_status(error: &StoreError) -> Status {
    inheritune_runtime::store_status::store_status(error, "request")
}
