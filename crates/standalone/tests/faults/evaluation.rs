//! kill -9 of the evaluator in the middle of benchmarks: finished units are not measured again.

use std::time::Duration;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::JobId;
use inheritune_domain::job::RetryPolicy;
use inheritune_domain::spec::{EvaluateSpec, EvaluationTask, JobOutcome, JobSpec};
use inheritune_store::jobs::NewJob;
use sqlx::Row as _;

use crate::cluster::{Cluster, Setup};
use crate::support::{LIMIT, root};

const BENCHMARKS: [&str; 9] =
    ["arc_easy", "boolq", "hellaswag", "logiqa", "mmlu_anatomy", "piqa", "sciq", "truthfulqa_mc2", "winogrande"];

fn spec() -> EvaluateSpec {
    let golden = root().join("crates/evaluator/tests/golden");
    let at = |name: &str| Location::Uri(format!("file://{}", golden.join(name).display()));
    let task = |name: &&str| EvaluationTask::Benchmark { name: (*name).to_owned(), data: at("data"), limit: None };
    EvaluateSpec::new(at("models/tiny-llama"), BENCHMARKS.iter().map(task).collect())
}

async fn submit(cluster: &Cluster) -> JobId {
    let job = NewJob {
        label: "benchmarks".to_owned(),
        spec: JobSpec::Evaluate(spec()),
        priority: 0,
        retry: RetryPolicy::default(),
        run: None,
    };
    cluster.store.submit_job(&job, None).await.unwrap().id
}

/// Waits until a job has ended. Returns the lines of its scores and the number of its attempts.
async fn scores(cluster: &mut Cluster, job: JobId) -> (Vec<u8>, u32) {
    let started = std::time::Instant::now();
    let record = loop {
        let record = cluster.store.job(job).await.unwrap();
        if record.status.is_final() {
            break record;
        }
        cluster.check_all_run();
        assert!(started.elapsed() < LIMIT, "{record:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let Some(JobOutcome::Evaluated(evaluated)) = record.outcome else { panic!("{:?}", record.error) };
    let folder = cluster.store.open(&Location::Artifact(evaluated.scores_artifact)).await.unwrap();
    (folder.read("scores.jsonl", 1 << 24).await.unwrap().to_vec(), record.attempts)
}

/// Returns the finished units, and which worker finished them and when.
async fn finished_units(cluster: &Cluster, job: JobId) -> Vec<(i32, String)> {
    let query = "SELECT unit, format('%s %s %s %s', worker_id, claimed_at, finished_at, md5(answers)) AS how
                 FROM evaluation_units WHERE job_id = $1 AND finished_at IS NOT NULL ORDER BY unit";
    let rows = sqlx::query(query).bind(job.0).fetch_all(cluster.store.pool()).await.unwrap();
    rows.iter().map(|row| (row.get("unit"), row.get("how"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_evaluator_goes_on_where_it_was() {
    let services = vec!["scheduler", "evaluator"];
    let worker = "heartbeat_ms = 500\nlease_ms = 2000";
    let mut cluster = Cluster::start(Setup { services, worker, ..Setup::default() }).await;
    let job = submit(&cluster).await;
    let (calm, _) = scores(&mut cluster, job).await;
    let all = finished_units(&cluster, job).await.len();
    assert!(all > 3, "only {all} units");
    // Repeat if the machine is so fast that the evaluation ends before it is killed.
    for _ in 0..20 {
        let job = submit(&cluster).await;
        while finished_units(&cluster, job).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cluster.kill_9("evaluator");
        let before = finished_units(&cluster, job).await;
        cluster.start_service("evaluator");
        let (stormy, attempts) = scores(&mut cluster, job).await;
        let after = finished_units(&cluster, job).await;
        if before.len() == all {
            continue;
        }
        assert!(stormy == calm, "the scores differ");
        assert_eq!((attempts, after.len()), (2, all));
        for unit in &before {
            assert!(after.contains(unit), "unit {} was measured again", unit.0);
        }
        eprintln!(
            "killed with {} of {all} units finished: none measured again, scores equal byte for byte",
            before.len()
        );
        return;
    }
    panic!("the evaluation always ended before the evaluator was killed");
}
