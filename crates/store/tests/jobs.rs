//! The job tables: every call, the order of claims, fences, retries, lists.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use inheritune_domain::id::{JobId, LeaseToken, RunId};
use inheritune_domain::job::{
    Counts, Directive, FailureClass, JobRecord, JobStatus, MAX_CRASHES, MAX_DEATHS, Progress, RetryPolicy,
};
use inheritune_domain::spec::JobKind;
use inheritune_store::jobs::{JobFilter, Lease, LeaseKey, NewJob, Page};
use inheritune_store::notify::Topic;
use inheritune_store::{Store, StoreError};
use sqlx::Row as _;
use support::{LEASE, claim, let_lease_run_out, new_job, outcome, store, submit_and_claim, try_claim, worker};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

async fn status(store: &Store, id: JobId) -> JobStatus {
    store.job(id).await.unwrap().status
}

/// Returns `(attempt, how it ended, error)` of every claim.
async fn attempts(store: &Store, id: JobId) -> Vec<(i32, Option<String>, Option<String>)> {
    let rows = sqlx::query("SELECT attempt, ended, error FROM job_attempts WHERE job_id = $1 ORDER BY attempt")
        .bind(id.0)
        .fetch_all(store.pool())
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Returns the time from the job's last change to its earliest next claim, by the database's clock.
async fn backoff(store: &Store, id: JobId) -> Duration {
    let query = "SELECT (extract(epoch FROM q.not_before - j.updated_at) * 1000)::float8
                 FROM job_queue q JOIN jobs j ON j.id = q.job_id WHERE j.id = $1";
    let wait_ms: f64 = sqlx::query_scalar(query).bind(id.0).fetch_one(store.pool()).await.unwrap();
    Duration::from_secs_f64(wait_ms.round() / 1000.0)
}

fn lost(result: Result<impl std::fmt::Debug, StoreError>) {
    assert!(matches!(result, Err(StoreError::LeaseLost(_))), "{result:?}");
}

fn wrong_state(result: Result<impl std::fmt::Debug, StoreError>) {
    assert!(matches!(result, Err(StoreError::WrongState(_))), "{result:?}");
}

#[tokio::test]
async fn a_job_is_submitted_claimed_and_completed() {
    let store = store().await;
    let new = new_job(JobKind::Train);
    let job = store.submit_job(&new, None).await.unwrap();
    assert_eq!((&job.label, &job.spec, job.status), (&new.label, &new.spec, JobStatus::Queued));
    assert_eq!((job.attempts, job.started_at, job.worker), (0, None, None));

    let worker = worker();
    let leases = store.claim_jobs(worker, &[JobKind::Train], 5, LEASE).await.unwrap();
    let [lease] = leases.as_slice() else { panic!("{leases:?}") };
    assert_eq!((lease.key.job, &lease.spec, lease.attempt, lease.run), (job.id, &new.spec, 1, None));
    assert_eq!(lease.label, new.label);
    let job = store.job(job.id).await.unwrap();
    assert_eq!((job.status, job.attempts, job.worker), (JobStatus::Running, 1, Some(worker)));
    assert!(job.started_at.is_some() && job.finished_at.is_none());

    let progress = Progress { done: 5, total: 10, unit: "tokens".into(), per_second: 2.5, ..Progress::default() };
    assert_eq!(store.heartbeat(lease.key, Some(&progress), LEASE).await.unwrap(), Directive::Run);
    assert_eq!(store.job(job.id).await.unwrap().progress, progress);
    // A heartbeat without progress keeps the last one.
    store.heartbeat(lease.key, None, LEASE).await.unwrap();
    assert_eq!(store.job(job.id).await.unwrap().progress, progress);

    let done = outcome(JobKind::Train, 0.0);
    store.complete_job(lease.key, &done).await.unwrap();
    let job = store.job(job.id).await.unwrap();
    assert_eq!((job.status, job.outcome, job.error), (JobStatus::Succeeded, Some(done), None));
    assert_eq!(job.progress, progress);
    assert!(job.finished_at.is_some());
    assert_eq!(attempts(&store, job.id).await, [(1, Some("succeeded".into()), None)]);
    assert!(try_claim(&store).await.is_none());
}

#[tokio::test]
async fn the_highest_priority_goes_first_then_the_oldest() {
    let store = store().await;
    let mut expected = Vec::new();
    for priority in [0, 5, -3, 5, 0] {
        let job = store.submit_job(&NewJob { priority, ..new_job(JobKind::Slice) }, None).await.unwrap();
        expected.push((-priority, expected.len(), job.id));
    }
    expected.sort();
    let expected: Vec<JobId> = expected.into_iter().map(|(_, _, id)| id).collect();
    let first = claim(&store).await;
    let rest = store.claim_jobs(worker(), &JobKind::ALL, 10, LEASE).await.unwrap();
    let claimed: Vec<JobId> = [&first].into_iter().chain(&rest).map(|lease| lease.key.job).collect();
    assert_eq!(claimed, expected);
    let tokens: Vec<LeaseToken> = rest.iter().map(|lease| lease.key.token).collect();
    assert!(tokens.iter().all(|token| *token > first.key.token), "fences grow: {tokens:?}");
}

#[tokio::test]
async fn a_claim_takes_only_the_kinds_asked_for_and_no_more_than_the_limit() {
    let store = store().await;
    for kind in [JobKind::Train, JobKind::Tokenize, JobKind::Evaluate, JobKind::Train] {
        store.submit_job(&new_job(kind), None).await.unwrap();
    }
    assert!(store.claim_jobs(worker(), &[JobKind::Slice], 9, LEASE).await.unwrap().is_empty());
    assert!(store.claim_jobs(worker(), &JobKind::ALL, 0, LEASE).await.unwrap().is_empty());
    let two = store.claim_jobs(worker(), &[JobKind::Train, JobKind::Tokenize], 2, LEASE).await.unwrap();
    let kinds: Vec<JobKind> = two.iter().map(|lease| lease.spec.kind()).collect();
    assert_eq!(kinds, [JobKind::Train, JobKind::Tokenize]);
}

#[tokio::test]
async fn failures_wait_longer_and_longer_and_then_are_final() {
    let store = store().await;
    let retry = RetryPolicy { max_attempts: 4, backoff_ms: 60_000, backoff_max_ms: 150_000 };
    let job = store.submit_job(&NewJob { retry, ..new_job(JobKind::Train) }, None).await.unwrap();
    for (attempt, wait_s) in [(1, 60), (2, 120), (3, 150)] {
        let lease = claim(&store).await;
        assert_eq!(lease.attempt, attempt);
        store.fail_job(lease.key, FailureClass::Retryable, &format!("disk full {attempt}")).await.unwrap();
        assert_eq!(backoff(&store, job.id).await, Duration::from_secs(wait_s));
        assert!(try_claim(&store).await.is_none(), "claimed during the backoff");
        let job = store.job(job.id).await.unwrap();
        assert_eq!((job.status, job.error), (JobStatus::Queued, Some(format!("disk full {attempt}"))));
        sqlx::query("UPDATE job_queue SET not_before = now()").execute(store.pool()).await.unwrap();
    }
    let lease = claim(&store).await;
    store.fail_job(lease.key, FailureClass::Retryable, "disk full 4").await.unwrap();
    let job = store.job(job.id).await.unwrap();
    let error = "disk full 4 (gave up after 4 failed attempts)";
    assert_eq!((job.status, job.error.as_deref(), job.attempts), (JobStatus::Failed, Some(error), 4));
    assert!(try_claim(&store).await.is_none());
    let kept = attempts(&store, job.id).await;
    assert_eq!(
        kept.iter().map(|(n, ended, _)| (*n, ended.as_deref())).collect::<Vec<_>>(),
        [(1, Some("failed")), (2, Some("failed")), (3, Some("failed")), (4, Some("failed"))]
    );
    assert_eq!(kept[0].2.as_deref(), Some("disk full 1"));
}

#[tokio::test]
async fn a_permanent_failure_is_final_at_once_and_a_success_forgets_errors() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Slice).await;
    store.fail_job(lease.key, FailureClass::Permanent, "no such\0tensor").await.unwrap();
    let job = store.job(lease.key.job).await.unwrap();
    assert_eq!((job.status, job.error.as_deref()), (JobStatus::Failed, Some("no such\u{fffd}tensor")));

    let lease = submit_and_claim(&store, JobKind::Slice).await;
    store.fail_job(lease.key, FailureClass::Retryable, "once").await.unwrap();
    let again = claim(&store).await;
    assert_eq!((again.key.job, again.attempt), (lease.key.job, 2));
    store.complete_job(again.key, &outcome(JobKind::Slice, 0.0)).await.unwrap();
    let job = store.job(lease.key.job).await.unwrap();
    assert_eq!((job.status, job.error, job.attempts), (JobStatus::Succeeded, None, 2));
}

#[tokio::test]
async fn a_job_given_back_loses_no_attempt() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let id = lease.key.job;
    let mut lease = lease;
    for attempt in 1..=5 {
        assert_eq!(lease.attempt, attempt);
        store.release_job(lease.key, "shutting down").await.unwrap();
        let job = store.job(id).await.unwrap();
        assert_eq!((job.status, job.error), (JobStatus::Queued, None));
        lease = claim(&store).await;
    }
    assert_eq!(attempts(&store, id).await[4], (5, Some("released".into()), Some("shutting down".into())));
    assert_eq!(attempts(&store, id).await[5], (6, None, None));
}

#[tokio::test]
async fn silent_workers_lose_their_jobs() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    assert_eq!(store.expire_leases().await.unwrap(), 0, "the lease holds");
    let_lease_run_out(&store, &lease).await;
    assert_eq!(store.expire_leases().await.unwrap(), 1);
    assert_eq!(store.expire_leases().await.unwrap(), 0);
    let job = store.job(lease.key.job).await.unwrap();
    assert_eq!(job.status, JobStatus::Queued);
    let error = job.error.unwrap();
    assert!(error.contains("stopped responding in attempt 1"), "{error}");
    assert_eq!(attempts(&store, job.id).await[0].1.as_deref(), Some("expired"));
    assert_eq!((job.counts.failed, job.counts.lost), (0, 1), "a death is not a failure");
}

#[tokio::test]
async fn s1_a_job_that_kills_its_workers_is_given_up() {
    let store = store().await;
    let retry = RetryPolicy { max_attempts: 100, backoff_ms: 0, backoff_max_ms: 0 };
    let job = store.submit_job(&NewJob { retry, ..new_job(JobKind::Train) }, None).await.unwrap();
    for death in 1..=MAX_DEATHS {
        assert_eq!(status(&store, job.id).await, JobStatus::Queued, "before death {death}");
        let_lease_run_out(&store, &claim(&store).await).await;
        store.expire_leases().await.unwrap();
    }
    let lost = store.job(job.id).await.unwrap();
    let error = lost.error.unwrap();
    assert_eq!((lost.status, lost.counts.lost, lost.counts.failed), (JobStatus::Failed, MAX_DEATHS, 0));
    assert!(error.starts_with("killed its worker 10 times in a row"), "{error}");
    assert!(error.contains(&format!("inheritune job retry {}", job.id)), "{error}");

    let job = store.submit_job(&NewJob { retry, ..new_job(JobKind::Train) }, None).await.unwrap();
    store.fail_job(claim(&store).await.key, FailureClass::Crashed, "SIGSEGV").await.unwrap();
    store.fail_job(claim(&store).await.key, FailureClass::Crashed, "SIGABRT").await.unwrap();
    let crashed = store.job(job.id).await.unwrap();
    assert_eq!((crashed.status, crashed.counts.crashed), (JobStatus::Failed, MAX_CRASHES));
    assert!(crashed.error.unwrap().contains("The last error: SIGABRT"));
    let ended: Vec<Option<String>> = attempts(&store, job.id).await.into_iter().map(|(_, ended, _)| ended).collect();
    assert_eq!(ended, [Some("crashed".to_owned()), Some("crashed".to_owned())]);

    let again = store.retry_job(job.id).await.unwrap();
    assert_eq!((again.status, again.counts, again.finished_at), (JobStatus::Queued, Counts::default(), None));
    let lease = claim(&store).await;
    assert_eq!((lease.key.job, lease.attempt), (job.id, 3));
    wrong_state(store.retry_job(job.id).await);
    store.complete_job(lease.key, &outcome(JobKind::Train, 1.0)).await.unwrap();
    wrong_state(store.retry_job(job.id).await);
}

#[tokio::test]
async fn r2_what_is_missing_outside_is_waited_for_and_seen() {
    let store = store().await;
    let retry = RetryPolicy { max_attempts: 1, backoff_ms: 0, backoff_max_ms: 0 };
    let job = store.submit_job(&NewJob { retry, ..new_job(JobKind::Slice) }, None).await.unwrap();
    for wait in 1..=20 {
        store.fail_job(claim(&store).await.key, FailureClass::Unavailable, "disk full").await.unwrap();
        let waiting = store.job(job.id).await.unwrap();
        assert_eq!((waiting.status, waiting.error.as_deref()), (JobStatus::Queued, Some("disk full")));
        assert_eq!((waiting.counts.failed, waiting.counts.waits), (0, wait));
        assert!(waiting.counts.waiting_since.is_some());
        assert!(backoff(&store, job.id).await <= Duration::from_secs(30));
        sqlx::query("UPDATE job_queue SET not_before = now()").execute(store.pool()).await.unwrap();
    }
    let seen =
        sqlx::query("SELECT failed_attempts, waits, ended FROM ops.job_attempts WHERE job_id = $1 AND attempt = 20");
    let seen = seen.bind(job.id.0).fetch_one(store.pool()).await.unwrap();
    assert_eq!((seen.get::<i32, _>(0), seen.get::<i32, _>(1), seen.get::<&str, _>(2)), (0, 20, "unavailable"));
    let hour = Duration::from_secs(3600);
    assert_eq!(store.give_up_waiting(hour).await.unwrap(), 0);
    sqlx::query("UPDATE job_queue SET waiting_since = now() - interval '1 hour'").execute(store.pool()).await.unwrap();
    assert_eq!(store.give_up_waiting(hour).await.unwrap(), 1);
    let given_up = store.job(job.id).await.unwrap();
    let error = given_up.error.unwrap();
    assert_eq!(given_up.status, JobStatus::Failed);
    assert!(
        error.starts_with("gave up after 3600 s of waiting and 20 attempts") && error.ends_with("disk full"),
        "{error}"
    );
    assert_eq!(store.retry_job(job.id).await.unwrap().counts, Counts::default());
}

#[tokio::test]
async fn many_leases_that_run_out_at_once_are_all_taken_back_once() {
    let store = store().await;
    for _ in 0..100 {
        store.submit_job(&new_job(JobKind::Train), None).await.unwrap();
    }
    assert_eq!(store.claim_jobs(worker(), &JobKind::ALL, 100, Duration::ZERO).await.unwrap().len(), 100);
    let mut reapers = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        reapers.spawn(async move { store.expire_leases().await.unwrap() });
    }
    assert_eq!(reapers.join_all().await.into_iter().sum::<u64>(), 100);
    let failed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE lost_attempts = 1").fetch_one(store.pool()).await.unwrap();
    assert_eq!(failed, 100);
}

#[tokio::test]
async fn pause_resume_and_cancel_obey_at_once_when_nobody_holds_the_job() {
    let store = store().await;
    let id = store.submit_job(&new_job(JobKind::Train), None).await.unwrap().id;
    assert_eq!(store.request_job(id, Directive::Pause).await.unwrap().status, JobStatus::Paused);
    assert_eq!(store.request_job(id, Directive::Pause).await.unwrap().status, JobStatus::Paused);
    assert!(try_claim(&store).await.is_none());
    assert_eq!(store.request_job(id, Directive::Run).await.unwrap().status, JobStatus::Queued);
    assert_eq!(store.request_job(id, Directive::Run).await.unwrap().status, JobStatus::Queued);
    assert_eq!(store.request_job(id, Directive::Cancel).await.unwrap().status, JobStatus::Cancelled);
    assert_eq!(store.request_job(id, Directive::Cancel).await.unwrap().status, JobStatus::Cancelled);
    wrong_state(store.request_job(id, Directive::Pause).await);
    wrong_state(store.request_job(id, Directive::Run).await);
    let nothing = store.request_job(JobId(Uuid::new_v4()), Directive::Pause).await;
    assert!(matches!(nothing, Err(StoreError::NotFound { kind: "job", .. })), "{nothing:?}");
}

#[tokio::test]
async fn a_resume_does_not_shorten_a_backoff_but_after_a_pause_there_is_none() {
    let store = store().await;
    let retry = RetryPolicy { max_attempts: 3, backoff_ms: 60_000, backoff_max_ms: 60_000 };
    let id = store.submit_job(&NewJob { retry, ..new_job(JobKind::Train) }, None).await.unwrap().id;
    store.fail_job(claim(&store).await.key, FailureClass::Retryable, "once").await.unwrap();
    store.request_job(id, Directive::Run).await.unwrap();
    assert!(try_claim(&store).await.is_none());
    store.request_job(id, Directive::Pause).await.unwrap();
    let resumed = store.request_job(id, Directive::Run).await.unwrap();
    assert_eq!(resumed.error.as_deref(), Some("once"));
    assert!(try_claim(&store).await.is_some());
}

#[tokio::test]
async fn a_holder_is_told_at_its_heartbeat_and_obeys_by_giving_back() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let id = lease.key.job;
    assert_eq!(store.request_job(id, Directive::Pause).await.unwrap().status, JobStatus::Pausing);
    assert_eq!(store.heartbeat(lease.key, None, LEASE).await.unwrap(), Directive::Pause);
    assert_eq!(store.request_job(id, Directive::Run).await.unwrap().status, JobStatus::Running);
    assert_eq!(store.heartbeat(lease.key, None, LEASE).await.unwrap(), Directive::Run);
    store.request_job(id, Directive::Pause).await.unwrap();
    store.release_job(lease.key, "paused").await.unwrap();
    assert_eq!(status(&store, id).await, JobStatus::Paused);

    store.request_job(id, Directive::Run).await.unwrap();
    let lease = claim(&store).await;
    assert_eq!(store.request_job(id, Directive::Cancel).await.unwrap().status, JobStatus::Cancelling);
    assert_eq!(store.heartbeat(lease.key, None, LEASE).await.unwrap(), Directive::Cancel);
    wrong_state(store.request_job(id, Directive::Run).await);
    wrong_state(store.request_job(id, Directive::Pause).await);
    store.release_job(lease.key, "cancelled").await.unwrap();
    assert_eq!(status(&store, id).await, JobStatus::Cancelled);
}

#[tokio::test]
async fn a_silent_worker_does_not_keep_a_pause_or_a_cancel_from_happening() {
    let store = store().await;
    for (directive, expected) in [(Directive::Pause, JobStatus::Paused), (Directive::Cancel, JobStatus::Cancelled)] {
        let lease = submit_and_claim(&store, JobKind::Train).await;
        store.request_job(lease.key.job, directive).await.unwrap();
        let_lease_run_out(&store, &lease).await;
        store.expire_leases().await.unwrap();
        assert_eq!(status(&store, lease.key.job).await, expected);
    }
}

#[tokio::test]
async fn what_was_done_before_a_cancel_arrived_counts() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Slice).await;
    store.request_job(lease.key.job, Directive::Cancel).await.unwrap();
    store.complete_job(lease.key, &outcome(JobKind::Slice, 0.0)).await.unwrap();
    assert_eq!(status(&store, lease.key.job).await, JobStatus::Succeeded);
}

/// Checks that every write of a worker with `key` is rejected.
async fn refused_everywhere(store: &Store, key: LeaseKey) {
    let before = store.job(key.job).await.unwrap();
    let point = inheritune_domain::job::MetricPoint { step: 1, tokens_seen: 1, name: "train_loss".into(), value: 1.0 };
    lost(store.heartbeat(key, Some(&Progress { done: 99, ..Progress::default() }), LEASE).await);
    lost(store.complete_job(key, &outcome(JobKind::Train, 0.0)).await);
    lost(store.fail_job(key, FailureClass::Permanent, "stale").await);
    lost(store.fail_job(key, FailureClass::Retryable, "stale").await);
    lost(store.release_job(key, "stale").await);
    lost(store.add_metrics(key, &[point]).await);
    assert_eq!(store.job(key.job).await.unwrap(), before);
    assert!(store.metrics(key.job, &[], None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stale_fence_is_refused_everywhere() {
    let store = store().await;
    let first = submit_and_claim(&store, JobKind::Train).await;
    // The lease has expired, but the job was not taken back yet.
    let_lease_run_out(&store, &first).await;
    refused_everywhere(&store, first.key).await;
    // The job was taken back.
    store.expire_leases().await.unwrap();
    refused_everywhere(&store, first.key).await;
    // Another worker claimed the job.
    let second = claim(&store).await;
    assert_eq!(second.key.job, first.key.job);
    refused_everywhere(&store, first.key).await;
    // A token that was never assigned.
    refused_everywhere(&store, LeaseKey { token: LeaseToken(second.key.token.0 + 1000), ..second.key }).await;
    // The job is over.
    store.complete_job(second.key, &outcome(JobKind::Train, 0.0)).await.unwrap();
    refused_everywhere(&store, first.key).await;
    refused_everywhere(&store, second.key).await;
    lost(store.heartbeat(LeaseKey { job: JobId(Uuid::new_v4()), ..second.key }, None, LEASE).await);
}

#[tokio::test]
async fn concurrent_workers_never_get_the_same_job() {
    const JOBS: usize = 300;
    const WORKERS: usize = 24;
    let store = store().await;
    for _ in 0..JOBS {
        store.submit_job(&new_job(JobKind::Evaluate), None).await.unwrap();
    }
    let mut workers = JoinSet::new();
    for n in 0..WORKERS {
        let store = store.clone();
        workers.spawn(async move {
            let me = worker();
            let mut got: Vec<Lease> = Vec::new();
            loop {
                let leases = store.claim_jobs(me, &JobKind::ALL, 1 + (n % 3) as u32, LEASE).await.unwrap();
                if leases.is_empty() {
                    return got;
                }
                for lease in &leases {
                    store.complete_job(lease.key, &outcome(JobKind::Evaluate, 1.0)).await.unwrap();
                }
                got.extend(leases);
            }
        });
    }
    let got: Vec<Lease> = workers.join_all().await.into_iter().flatten().collect();
    let jobs: HashSet<JobId> = got.iter().map(|lease| lease.key.job).collect();
    let tokens: HashSet<LeaseToken> = got.iter().map(|lease| lease.key.token).collect();
    assert_eq!((got.len(), jobs.len(), tokens.len()), (JOBS, JOBS, JOBS));
}

#[tokio::test]
async fn of_many_that_end_one_lease_at_once_one_wins() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let mut ends = JoinSet::new();
    for n in 0..12 {
        let (store, key) = (store.clone(), lease.key);
        ends.spawn(async move {
            match n % 3 {
                0 => store.complete_job(key, &outcome(JobKind::Train, 0.0)).await,
                1 => store.fail_job(key, FailureClass::Retryable, "no").await,
                _ => store.release_job(key, "no").await,
            }
        });
    }
    let (won, refused): (Vec<_>, Vec<_>) = ends.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), refused.len()), (1, 11));
    refused.into_iter().for_each(lost);
    assert_eq!(attempts(&store, lease.key.job).await.len(), 1);
}

#[tokio::test]
async fn a_request_id_makes_nothing_twice() {
    let store = store().await;
    let id = Some(Uuid::new_v4());
    let job = store.submit_job(&new_job(JobKind::Train), id).await.unwrap();
    assert_eq!(store.submit_job(&new_job(JobKind::Train), id).await.unwrap(), job);
    let other = store.submit_job(&new_job(JobKind::Slice), id).await;
    assert!(matches!(other, Err(StoreError::RequestIdReused(reused)) if Some(reused) == id), "{other:?}");
    let run = store.create_run(&support::run_spec("r"), id).await;
    assert!(matches!(run, Err(StoreError::RequestIdReused(_))), "{run:?}");

    let id = Some(Uuid::new_v4());
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        calls.spawn(async move { store.submit_job(&new_job(JobKind::Train), id).await.unwrap().id });
    }
    let made: HashSet<JobId> = calls.join_all().await.into_iter().collect();
    assert_eq!(made.len(), 1);
    let all = store.list_jobs(&JobFilter::default(), &Page { size: 10, token: None }).await.unwrap();
    assert_eq!(all.items.len(), 2);
}

#[tokio::test]
async fn a_failed_submission_leaves_its_request_id_free() {
    let store = store().await;
    let id = Some(Uuid::new_v4());
    let orphan = NewJob { run: Some(RunId(Uuid::new_v4())), ..new_job(JobKind::Train) };
    let failed = store.submit_job(&orphan, id).await;
    assert!(matches!(failed, Err(StoreError::NotFound { kind: "run", .. })), "{failed:?}");
    store.submit_job(&new_job(JobKind::Train), id).await.unwrap();
}

#[tokio::test]
async fn waiting_workers_are_woken() {
    let store = store().await;
    let mut waiting = store.listen().await.unwrap();
    let mut deaf = store.listen().await.unwrap();
    // A change before the first wait is not lost.
    let job = store.submit_job(&new_job(JobKind::Train), None).await.unwrap();
    let started = Instant::now();
    waiting.changed(Topic::Jobs, Duration::from_secs(20)).await;
    waiting.changed(Topic::Updates, Duration::from_secs(20)).await;
    assert!(started.elapsed() < Duration::from_secs(10), "not woken");
    // Without a change, the wait times out.
    let started = Instant::now();
    waiting.changed(Topic::Runs, Duration::from_millis(200)).await;
    assert!(started.elapsed() >= Duration::from_millis(200), "woken without a change");

    let submit = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.request_job(job.id, Directive::Pause).await.unwrap();
    };
    let started = Instant::now();
    tokio::join!(submit, waiting.changed(Topic::Updates, Duration::from_secs(20)));
    assert!(started.elapsed() < Duration::from_secs(10), "not woken");
    // Every waiter gets its own wakeup.
    deaf.changed(Topic::Updates, Duration::from_secs(20)).await;
    assert!(started.elapsed() < Duration::from_secs(10), "not woken");
}

#[tokio::test]
async fn a_listener_hears_again_after_its_connection_was_lost() {
    let store = store().await;
    let mut waiting = store.listen().await.unwrap();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query(kill).execute(store.pool()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The loss itself wakes all waiters, because notifications may have been lost.
    waiting.changed(Topic::Jobs, Duration::from_secs(20)).await;
    assert!(Instant::now() < deadline, "the lost connection was not noticed");
    store.submit_job(&new_job(JobKind::Train), None).await.unwrap();
    waiting.changed(Topic::Jobs, Duration::from_secs(20)).await;
    assert!(Instant::now() < deadline, "not woken");
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let store = store().await;
    let run = store.create_run(&support::run_spec("r"), None).await.unwrap().id;
    let mut ids = Vec::new();
    for n in 0..7 {
        let kind = if n % 2 == 0 { JobKind::Train } else { JobKind::Slice };
        let new = NewJob { run: (n < 3).then_some(run), ..new_job(kind) };
        ids.push(store.submit_job(&new, None).await.unwrap().id);
    }
    ids.reverse();
    store.request_job(ids[0], Directive::Pause).await.unwrap();
    let list = async |filter: JobFilter, size: u32| {
        let mut pages: Vec<Vec<JobRecord>> = Vec::new();
        let mut page = Page { size, token: None };
        loop {
            let paged = store.list_jobs(&filter, &page).await.unwrap();
            pages.push(paged.items);
            match paged.next {
                Some(token) => page.token = Some(token),
                None => return pages,
            }
        }
    };
    let all = list(JobFilter::default(), 3).await;
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(all.concat().iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    assert_eq!(list(JobFilter::default(), 7).await.len(), 1, "a full last page is the last");

    let of = async |filter: JobFilter| list(filter, 2).await.concat().iter().map(|job| job.id).collect::<Vec<_>>();
    assert_eq!(of(JobFilter { run: Some(run), ..JobFilter::default() }).await, ids[4..]);
    assert_eq!(of(JobFilter { kind: Some(JobKind::Slice), ..JobFilter::default() }).await, [ids[1], ids[3], ids[5]]);
    assert_eq!(of(JobFilter { status: Some(JobStatus::Paused), ..JobFilter::default() }).await, [ids[0]]);
    let both = JobFilter { run: Some(run), kind: Some(JobKind::Slice), status: Some(JobStatus::Queued) };
    assert_eq!(of(both).await, [ids[5]]);
    assert!(of(JobFilter { status: Some(JobStatus::Failed), ..JobFilter::default() }).await.is_empty());

    let bad = store.list_jobs(&JobFilter::default(), &Page { size: 1, token: Some("zzz".into()) }).await;
    assert!(matches!(bad, Err(StoreError::Location { .. })), "{bad:?}");
    let nothing = store.job(JobId(Uuid::new_v4())).await;
    assert!(matches!(nothing, Err(StoreError::NotFound { kind: "job", .. })), "{nothing:?}");
}

#[tokio::test]
async fn the_queue_is_counted_by_kind_and_status() {
    let store = store().await;
    for kind in [JobKind::Train, JobKind::Train, JobKind::Slice] {
        store.submit_job(&new_job(kind), None).await.unwrap();
    }
    store.claim_jobs(worker(), &[JobKind::Train], 1, LEASE).await.unwrap();
    let depths = store.queue_depth().await.unwrap();
    assert_eq!(
        depths.iter().map(|depth| (depth.kind, depth.status, depth.jobs)).collect::<Vec<_>>(),
        [
            (JobKind::Slice, JobStatus::Queued, 1),
            (JobKind::Train, JobStatus::Queued, 1),
            (JobKind::Train, JobStatus::Running, 1)
        ]
    );
    assert!(depths.iter().all(|depth| (0.0..3600.0).contains(&depth.oldest_seconds)), "{depths:?}");
}

#[tokio::test]
async fn numbers_that_json_lacks_do_no_harm() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let progress = Progress {
        per_second: f64::INFINITY,
        estimated_remaining_seconds: Some(f64::NAN),
        message: "a\0b".into(),
        ..Progress::default()
    };
    store.heartbeat(lease.key, Some(&progress), LEASE).await.unwrap();
    let read = store.job(lease.key.job).await.unwrap().progress;
    assert_eq!((read.per_second, read.estimated_remaining_seconds, read.message.as_str()), (0.0, None, "a\u{fffd}b"));

    let inheritune_domain::spec::JobOutcome::Trained(mut trained) = outcome(JobKind::Train, 0.0) else {
        unreachable!()
    };
    trained.last_loss_nats = f64::NAN;
    let refused = store.complete_job(lease.key, &inheritune_domain::spec::JobOutcome::Trained(trained)).await;
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    // The worker still holds the job and can report the failure.
    store.fail_job(lease.key, FailureClass::Permanent, "the loss is not a number").await.unwrap();
}

#[tokio::test]
async fn times_are_in_order() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    store.complete_job(lease.key, &outcome(JobKind::Train, 0.0)).await.unwrap();
    let job = store.job(lease.key.job).await.unwrap();
    let times: [OffsetDateTime; 3] = [job.created_at, job.started_at.unwrap(), job.finished_at.unwrap()];
    assert!(times.is_sorted() && job.updated_at >= times[2], "{times:?}");
}

/// Heartbeats continue while a worker reports its result. They must neither block it nor revive a
/// job that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_beside_a_completion_change_nothing() {
    let store = store().await;
    for _ in 0..50 {
        let lease = submit_and_claim(&store, JobKind::Train).await;
        let mut beats = JoinSet::new();
        for _ in 0..4 {
            let store = store.clone();
            beats.spawn(async move {
                loop {
                    if let Err(error) = store.heartbeat(lease.key, None, LEASE).await {
                        return error;
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.complete_job(lease.key, &outcome(JobKind::Train, 0.0)).await.unwrap();
        while let Some(ended) = beats.join_next().await {
            let error = ended.unwrap();
            assert!(matches!(error, StoreError::LeaseLost(_)), "{error}");
        }
        assert_eq!(status(&store, lease.key.job).await, JobStatus::Succeeded);
        let ended = attempts(&store, lease.key.job).await;
        assert_eq!(ended, [(1, Some("succeeded".to_owned()), None)]);
    }
    assert!(store.queue_depth().await.unwrap().is_empty());
}
