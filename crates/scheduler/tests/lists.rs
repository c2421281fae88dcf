//! Lists over a real connection: they fit into the replies that clients accept, however large the
//! specs are.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use inheritune_api::v1;
use inheritune_api::v1::job_service_client::JobServiceClient;
use inheritune_api::v1::run_service_client::RunServiceClient;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::WorkerId;
use inheritune_domain::job::{MetricPoint, RetryPolicy};
use inheritune_domain::spec::{Ceilings, JobKind, JobSpec, RunSpec, TokenizeSpec, TokenizerSource};
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::security::Security;
use inheritune_runtime::serve::{bind, serve};
use inheritune_store::jobs::NewJob;
use inheritune_store::{Store, StoreConfig};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use uuid::Uuid;

/// Number of sources of a spec, which is then about 600 kB.
const SOURCES: usize = 4_000;

struct House {
    // The order matters: Postgres stops before its folder is removed.
    postgres: LocalPostgres,
    _dir: tempfile::TempDir,
    store: Store,
    address: SocketAddr,
    stop: CancellationToken,
}

impl House {
    async fn build() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
        let config = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects };
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let services = inheritune_scheduler::services(&store, Ceilings::default(), &stop);
        tokio::spawn(serve(listener, services, Security::default(), stop.clone()));
        Self { postgres, _dir: dir, store, address, stop }
    }

    /// A channel with default settings, which accepts replies of up to 4 MiB.
    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        drop(self.store);
        self.postgres.stop().await.unwrap();
    }
}

fn sources() -> Vec<String> {
    (0..SOURCES).map(|n| format!("file:///data/{n:0>130}.jsonl")).collect()
}

fn run_spec(name: &str, sources: &[String]) -> RunSpec {
    serde_json::from_value(json!({
        "name": name,
        "recipe": "full-data",
        "corpus": { "sources": sources, "tokenizer": { "train": { "vocab_size": 512 } } },
        "reference": { "architecture": {
            "family": "gpt2", "n_layers": 5, "d_model": 32, "n_heads": 4, "max_positions": 64,
        } },
        "target": { "start_layers": 2, "grow_by": 2 },
        "training": { "block_size": 64, "micro_batch": 4, "steps": 100, "lr_max": 0.001 },
    }))
    .unwrap()
}

fn job(sources: &[String]) -> NewJob {
    let spec = TokenizeSpec {
        sources: sources.iter().map(|source| Location::Uri(source.clone())).collect(),
        tokenizer: TokenizerSource::Train { vocab_size: 300 },
        validation_fraction: 0.1,
        text_column: None,
        max_bad_rows: 0,
    };
    let retry = RetryPolicy { max_attempts: 1, backoff_ms: 1, backoff_max_ms: 1 };
    NewJob { label: "long".to_owned(), spec: JobSpec::Tokenize(spec), priority: 0, retry, run: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u5_lists_are_summaries_and_fit_into_a_reply() {
    let house = House::build().await;
    let sources = sources();
    let mut expected = Vec::new();
    for n in 0..12 {
        let run = house.store.create_run(&run_spec(&format!("run {n}"), &sources), Some(Uuid::new_v4())).await.unwrap();
        expected.insert(0, run.id.to_string());
        house.store.submit_job(&job(&sources), None).await.unwrap();
    }
    let mut runs = RunServiceClient::new(house.channel().await);
    let mut jobs = JobServiceClient::new(house.channel().await);

    let listed = runs.list_runs(v1::ListRunsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.runs.iter().map(|run| run.id.clone()).collect::<Vec<_>>(), expected);
    assert!(listed.runs.iter().all(|run| run.spec.is_none() && !run.name.is_empty() && !run.state.is_empty()));
    assert_eq!(listed.next_page_token, "");
    let listed = jobs.list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.jobs.len(), 12);
    assert!(listed.jobs.iter().all(|job| job.spec.is_none() && job.kind() == v1::JobKind::Tokenize));
    // A single run has its complete spec.
    let one = runs.get_run(v1::GetRunRequest { id: expected[0].clone() }).await.unwrap().into_inner();
    assert_eq!(one.run.unwrap().spec.unwrap().corpus.unwrap().sources.len(), SOURCES);

    // With specs, each page has as many entries as fit, and each entry is returned once.
    let (mut seen, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = v1::ListRunsRequest { include_spec: true, page_size: 1000, page_token, ..Default::default() };
        let page = runs.list_runs(request).await.unwrap().into_inner();
        assert!(
            page.runs.iter().all(|run| run.spec.as_ref().unwrap().corpus.as_ref().unwrap().sources.len() == SOURCES)
        );
        seen.extend(page.runs.into_iter().map(|run| run.id));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, expected);
    assert!((2..=6).contains(&pages), "{pages} pages");
    let (mut seen, mut page_token) = (0, String::new());
    loop {
        let request = v1::ListJobsRequest { include_spec: true, page_size: 7, page_token, ..Default::default() };
        let page = jobs.list_jobs(request).await.unwrap().into_inner();
        assert!(page.jobs.iter().all(|job| job.spec.is_some()));
        seen += page.jobs.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 12);
    // Page sizes are respected.
    let small = v1::ListRunsRequest { page_size: 5, ..Default::default() };
    let page = runs.list_runs(small.clone()).await.unwrap().into_inner();
    let rest =
        runs.list_runs(v1::ListRunsRequest { page_token: page.next_page_token, ..small }).await.unwrap().into_inner();
    assert_eq!([page.runs.len(), rest.runs.len()], [5, 5]);
    assert_eq!(rest.runs[0].id, expected[5]);
    house.end().await;
}

/// A watch of a run sends jobs and notes in messages that fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u5_a_watch_comes_in_pieces_that_fit() {
    let house = House::build().await;
    let sources = sources();
    let run = house.store.create_run(&run_spec("watched", &sources), None).await.unwrap().id;
    let jobs: Vec<NewJob> = (0..20).map(|_| NewJob { run: Some(run), ..job(&sources) }).collect();
    house.store.submit_jobs(&jobs).await.unwrap();
    let mut runs = RunServiceClient::new(house.channel().await);
    let request = v1::WatchRunRequest { id: run.to_string(), after_note_seq: 0 };
    let mut watched = runs.watch_run(request).await.unwrap().into_inner();
    let mut told = std::collections::HashSet::new();
    while told.len() < 20 {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), watched.message()).await.unwrap();
        let change = next.unwrap().unwrap();
        assert!(change.run.is_some());
        told.extend(change.jobs.into_iter().map(|job| job.id));
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u6_points_have_their_own_time_and_names_are_bounded() {
    let house = House::build().await;
    let id = house.store.submit_job(&job(&["file:///x".to_owned()]), None).await.unwrap().id;
    let lease = std::time::Duration::from_secs(60);
    let worker = WorkerId(Uuid::new_v4());
    let lease = house.store.claim_jobs(worker, &[JobKind::Tokenize], 1, lease).await.unwrap().pop().unwrap();
    let point = |step| MetricPoint { step, tokens_seen: step, name: "train_loss".to_owned(), value: 1.0 };
    house.store.add_metrics(lease.key, &[point(1)]).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    house.store.add_metrics(lease.key, &[point(2)]).await.unwrap();
    let mut jobs = JobServiceClient::new(house.channel().await);
    let request = |name: String| v1::WatchJobRequest { id: id.to_string(), metrics: vec![name], after_step: None };
    let mut watched = jobs.watch_job(request("train_loss".to_owned())).await.unwrap().into_inner();
    let points = watched.message().await.unwrap().unwrap().metric_points;
    let times: Vec<f64> = points
        .iter()
        .map(|point| point.time.as_ref().map(|time| time.seconds as f64 + f64::from(time.nanos) / 1e9).unwrap())
        .collect();
    assert!(times.len() == 2 && times[1] - times[0] >= 1.0 && times[1] - times[0] < 30.0, "{times:?}");
    let long = jobs.watch_job(request("x".repeat(3 * 1024 * 1024))).await.map(|_| ()).unwrap_err();
    assert_eq!(long.code(), tonic::Code::InvalidArgument, "{long:?}");
    house.end().await;
}
