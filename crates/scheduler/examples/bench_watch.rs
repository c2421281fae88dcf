//! Measures how soon many watches learn of a change. Opens
//! `WatchJob` streams on a scheduler, pauses and resumes the jobs, and measures the time from each request to the update on each stream. `make
//! bench` runs it against a scheduler process.
//!
//! `bench_watch ADDRESS STREAMS JOBS CHANGES`: the STREAMS are spread over JOBS jobs, each of which
//! changes CHANGES times. There must be no workers. The last line is JSON.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use inheritune_api::client::{Client, Server};
use inheritune_api::v1;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Streams per connection; servers allow about 200.
const STREAMS_OF_CONNECTION: usize = 100;
/// Longest wait for an update.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, streams, jobs, changes] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_watch ADDRESS STREAMS JOBS CHANGES")
    };
    let (streams, jobs, changes): (usize, usize, usize) = (streams.parse()?, jobs.parse()?, changes.parse()?);
    let server = Server { address: address.clone(), ..Server::default() };
    let owner = Client::connect(&server).await?;
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(submit(&owner).await?);
    }

    let (news, mut heard) = mpsc::unbounded_channel();
    let mut watches = JoinSet::new();
    let mut client = owner.clone();
    for stream in 0..streams {
        if stream % STREAMS_OF_CONNECTION == 0 {
            client = Client::connect(&server).await?;
        }
        let (client, id, news) = (client.clone(), ids[stream % jobs].clone(), news.clone());
        watches.spawn(watch(client, id, stream % jobs, news));
    }
    for _ in 0..streams {
        tokio::time::timeout(PATIENCE, heard.recv()).await?.context("the watches ended")?;
    }

    let mut delays = Vec::new();
    for change in 0..changes {
        let mut asked = Vec::new();
        for id in &ids {
            asked.push(Instant::now());
            turn(&owner, id, change).await?;
        }
        let wanted = if change % 2 == 0 { v1::JobStatus::Paused } else { v1::JobStatus::Queued };
        let mut missing = streams;
        while missing > 0 {
            let news = tokio::time::timeout(PATIENCE, heard.recv()).await;
            let (job, status, at): (usize, v1::JobStatus, Instant) =
                news.with_context(|| format!("{missing} streams got no update"))?.context("the watches ended")?;
            if status == wanted {
                delays.push(at.duration_since(asked[job]).as_secs_f64() * 1000.0);
                missing -= 1;
            }
        }
    }
    watches.abort_all();
    println!("{}", json!({ "streams": streams, "jobs": jobs, "news": delays.len(), "delay_ms": percentiles(delays) }));
    Ok(())
}

async fn submit(client: &Client) -> anyhow::Result<String> {
    let tokenizer = v1::tokenize_spec::Tokenizer::Train(v1::TrainTokenizer { vocab_size: 512 });
    let sources = vec!["file:///corpus.txt".to_owned()];
    let spec = v1::TokenizeSpec { sources, tokenizer: Some(tokenizer), ..Default::default() };
    let spec = v1::JobSpec { spec: Some(v1::job_spec::Spec::Tokenize(spec)) };
    let request = v1::SubmitJobRequest { spec: Some(spec), ..Default::default() };
    let job = client.jobs().submit_job(request).await?.into_inner().job;
    Ok(job.context("no job in the response")?.id)
}

async fn turn(client: &Client, id: &str, change: usize) -> anyhow::Result<()> {
    let id = id.to_owned();
    if change.is_multiple_of(2) {
        client.jobs().pause_job(v1::PauseJobRequest { id }).await?;
    } else {
        client.jobs().resume_job(v1::ResumeJobRequest { id }).await?;
    }
    Ok(())
}

async fn watch(
    client: Client,
    id: String,
    job: usize,
    news: mpsc::UnboundedSender<(usize, v1::JobStatus, Instant)>,
) -> anyhow::Result<()> {
    let request = v1::WatchJobRequest { id, ..Default::default() };
    let mut stream = client.jobs().watch_job(request).await?.into_inner();
    while let Some(response) = stream.next().await {
        let now = response?.job.context("no job in the update")?;
        news.send((job, now.status(), Instant::now()))?;
    }
    Ok(())
}

fn percentiles(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
    json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99) })
}
