//! Jobs that are submitted without a run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, JobId};
use inheritune_domain::job::{JobRecord, JobStatus, RetryPolicy};
use inheritune_domain::spec::{JobOutcome, JobSpec, TokenizeSpec, TokenizerSource};
use inheritune_store::jobs::NewJob;

use crate::cluster::Cluster;
use crate::support::{LIMIT, root, write_corpus};

pub async fn submit(cluster: &Cluster, spec: JobSpec) -> JobId {
    let retry = RetryPolicy { backoff_ms: 4_000, ..RetryPolicy::default() };
    let job = NewJob { label: "fault".to_owned(), spec, priority: 0, retry, run: None };
    cluster.store.submit_job(&job, None).await.unwrap().id
}

/// Like [`submit`], but with only one attempt, so that the first failure is final.
pub async fn submit_for_one_failure(cluster: &Cluster, spec: JobSpec) -> JobId {
    let retry = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    let job = NewJob { label: "fault".to_owned(), spec, priority: 0, retry, run: None };
    cluster.store.submit_job(&job, None).await.unwrap().id
}

/// Waits until `reached`. Panics if the job ends before that.
pub async fn wait(cluster: &mut Cluster, job: JobId, reached: impl Fn(&JobRecord) -> bool) -> JobRecord {
    let started = Instant::now();
    loop {
        let record = cluster.store.job(job).await.unwrap();
        if reached(&record) {
            return record;
        }
        cluster.check_all_run();
        assert!(started.elapsed() < LIMIT && !record.status.is_final(), "{record:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A GPT-2 with a tokenizer of 512 tokens.
pub fn model() -> Location {
    let path = root().join("crates/evaluator/tests/golden/models/tiny-gpt2");
    Location::Uri(format!("file://{}", path.display()))
}

/// A tokenize job for the small corpus.
pub fn tokenize(cluster: &Cluster) -> JobSpec {
    let corpus = write_corpus(cluster.dir.path());
    JobSpec::Tokenize(TokenizeSpec {
        sources: vec![Location::Uri(format!("file://{}", corpus.display()))],
        tokenizer: TokenizerSource::From(model()),
        validation_fraction: 0.1,
        text_column: None,
        max_bad_rows: 0,
    })
}

/// Lets a trainer of the cluster create a token set. Returns it and the path of its largest file.
pub async fn token_set(cluster: &mut Cluster) -> (ArtifactId, PathBuf) {
    let spec = tokenize(cluster);
    let job = submit(cluster, spec).await;
    let record = wait(cluster, job, |job| job.status == JobStatus::Succeeded).await;
    let Some(JobOutcome::Tokenized(tokenized)) = record.outcome else { panic!("{record:?}") };
    let query = "SELECT location FROM artifacts WHERE id = $1";
    let location: String =
        sqlx::query_scalar(query).bind(tokenized.tokens.0).fetch_one(cluster.store.pool()).await.unwrap();
    let files = std::fs::read_dir(cluster.dir.path().join("objects").join(location)).unwrap();
    let largest = files.map(|file| file.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len());
    (tokenized.tokens, largest.unwrap())
}
