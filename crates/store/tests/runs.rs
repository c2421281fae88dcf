//! Runs: the inbox and the driver's transaction.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use expect_test::expect;
use inheritune_domain::id::{LayerCount, LeaseToken, RunId};
use inheritune_domain::job::{Directive, FailureClass, JobRecord, JobStatus};
use inheritune_domain::run::RunEvent;
use inheritune_domain::spec::{JobKind, JobOutcome};
use inheritune_store::jobs::{JobFilter, Lease, LeaseKey, Page};
use inheritune_store::{Store, StoreError};
use support::{claim, outcome, run_spec, store, try_claim};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Drives runs until nothing is left to do. Returns the runs that advanced.
async fn drive(store: &Store) -> Vec<RunId> {
    let mut driven = Vec::new();
    while let Some(run) = store.drive_one_run().await.unwrap() {
        driven.push(run);
    }
    driven
}

async fn status(store: &Store, run: RunId) -> JobStatus {
    store.run(run).await.unwrap().run.status()
}

/// Returns the run's jobs, oldest first.
async fn jobs(store: &Store, run: RunId) -> Vec<JobRecord> {
    let filter = JobFilter { run: Some(run), ..JobFilter::default() };
    let mut jobs = store.list_jobs(&filter, &Page { size: 1000, token: None }).await.unwrap().items;
    jobs.reverse();
    jobs
}

async fn notes(store: &Store, run: RunId) -> Vec<String> {
    store.run_notes(run, 0).await.unwrap().into_iter().map(|note| note.text).collect()
}

async fn inbox(store: &Store) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM run_inbox").fetch_one(store.pool()).await.unwrap()
}

async fn complete(store: &Store, lease: &Lease, loss: f64) {
    let reference = lease.label.contains("reference");
    let outcome = match outcome(lease.spec.kind(), loss) {
        JobOutcome::Evaluated(mut evaluated) if reference => {
            evaluated.config = evaluated.config.with_layers(LayerCount(5));
            JobOutcome::Evaluated(evaluated)
        }
        outcome => outcome,
    };
    store.complete_job(lease.key, &outcome).await.unwrap();
}

/// Creates a run whose first job is queued.
async fn begun(store: &Store) -> RunId {
    let run = store.create_run(&run_spec("r"), None).await.unwrap().id;
    assert_eq!(drive(store).await, [run]);
    run
}

#[tokio::test]
async fn a_run_goes_from_its_creation_to_its_end() {
    let store = store().await;
    let created = store.create_run(&run_spec("small"), None).await.unwrap();
    let run = created.id;
    assert_eq!((created.run.status(), created.version, created.finished_at), (JobStatus::Queued, 1, None));
    assert!(jobs(&store, run).await.is_empty() && notes(&store, run).await.is_empty());
    let mut losses = [3.0, 3.2, 2.9].into_iter();
    let mut log = String::new();
    while !drive(&store).await.is_empty() {
        let Some(lease) = try_claim(&store).await else { break };
        assert_eq!(lease.run, Some(run));
        assert!(try_claim(&store).await.is_none(), "a run has one job at a time");
        log += &format!("{} | {}\n", store.run(run).await.unwrap().run.describe_state(), lease.label);
        let loss = if lease.spec.kind() == JobKind::Evaluate { losses.next().unwrap() } else { 0.0 };
        complete(&store, &lease, loss).await;
    }
    expect![[r#"
        tokenizing | tokenize the corpus
        slicing (reference) | reference: slice
        training (reference) | reference: train
        benchmarking the reference | benchmark the reference
        slicing (round 1: 2 layers inherited) | round 1: 2 layers inherited: slice
        training (round 1: 2 layers inherited) | round 1: 2 layers inherited: train
        evaluating (round 1: 2 layers inherited) | round 1: 2 layers inherited: evaluate
        slicing (round 2: 4 layers inherited) | round 2: 4 layers inherited: slice
        training (round 2: 4 layers inherited) | round 2: 4 layers inherited: train
        evaluating (round 2: 4 layers inherited) | round 2: 4 layers inherited: evaluate
    "#]]
    .assert_eq(&log);
    expect![[r#"
        tokenized: 10000 training and 1000 validation tokens, vocabulary 512
        reference: validation loss 3.0000 ± 0.0100 nats
        round 1: inherit 2 layers
        round 1: 2 layers inherited: validation loss 3.2000 ± 0.0100 nats
        not matched yet: grow to 4 layers
        round 2: inherit 4 layers
        round 2: 4 layers inherited: validation loss 2.9000 ± 0.0100 nats
        matched: 2.9000 is at most the reference's 3.0000 + 0
        finished
    "#]]
    .assert_eq(&(notes(&store, run).await.join("\n") + "\n"));
    let record = store.run(run).await.unwrap();
    assert_eq!(record.run.status(), JobStatus::Succeeded);
    assert!(record.finished_at.is_some() && record.version > 5);
    assert!(drive(&store).await.is_empty() && inbox(&store).await == 0);
}

#[tokio::test]
async fn many_drivers_submit_every_job_once() {
    const RUNS: usize = 12;
    let store = store().await;
    for n in 0..RUNS {
        store.create_run(&run_spec(&format!("run {n}")), None).await.unwrap();
    }
    for round in 1..=3 {
        let mut drivers = JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            drivers.spawn(async move { drive(&store).await });
        }
        let driven: Vec<RunId> = drivers.join_all().await.into_iter().flatten().collect();
        assert_eq!(driven.iter().collect::<HashSet<_>>().len(), RUNS);
        assert_eq!(driven.len(), RUNS, "an event was folded twice");
        let all = store.list_jobs(&JobFilter::default(), &Page { size: 1000, token: None }).await.unwrap().items;
        assert_eq!(all.len(), RUNS * round);
        let mut held = HashSet::new();
        while let Some(lease) = try_claim(&store).await {
            assert!(held.insert(lease.run), "a run has one job at a time");
            complete(&store, &lease, 3.0).await;
        }
        assert_eq!(held.len(), RUNS);
    }
}

#[tokio::test]
async fn a_pause_reaches_the_job_and_what_follows_it() {
    let store = store().await;
    let run = begun(&store).await;
    store.post_run_event(run, &RunEvent::PauseRequested).await.unwrap();
    assert_eq!(status(&store, run).await, JobStatus::Running, "the driver acts, not the call");
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Paused);
    let paused = jobs(&store, run).await.remove(0);
    assert_eq!(paused.status, JobStatus::Paused);
    assert!(try_claim(&store).await.is_none());
    let refused = store.request_job(paused.id, Directive::Run).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("inheritune run resume {run}")), "{refused}");

    store.post_run_event(run, &RunEvent::ResumeRequested).await.unwrap();
    drive(&store).await;
    let lease = claim(&store).await;
    store.post_run_event(run, &RunEvent::PauseRequested).await.unwrap();
    drive(&store).await;
    assert_eq!(jobs(&store, run).await[0].status, JobStatus::Pausing);
    // The job finishes before it pauses. The next job is paused instead.
    complete(&store, &lease, 0.0).await;
    drive(&store).await;
    let statuses: Vec<JobStatus> = jobs(&store, run).await.iter().map(|job| job.status).collect();
    assert_eq!(statuses, [JobStatus::Succeeded, JobStatus::Paused]);
    store.post_run_event(run, &RunEvent::ResumeRequested).await.unwrap();
    drive(&store).await;
    assert!(try_claim(&store).await.is_some());
    assert_eq!(status(&store, run).await, JobStatus::Running);
}

#[tokio::test]
async fn a_cancel_reaches_the_job_and_ends_the_run_when_the_job_has_ended() {
    let store = store().await;
    let run = begun(&store).await;
    let lease = claim(&store).await;
    store.post_run_event(run, &RunEvent::CancelRequested).await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Cancelling);
    assert_eq!(store.heartbeat(lease.key, None, support::LEASE).await.unwrap(), Directive::Cancel);
    store.release_job(lease.key, "cancelled").await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Cancelled);
    assert!(store.run(run).await.unwrap().finished_at.is_some());
    // A second cancel is harmless; anything else comes too late.
    store.post_run_event(run, &RunEvent::CancelRequested).await.unwrap();
    let late = store.post_run_event(run, &RunEvent::PauseRequested).await;
    assert!(matches!(late, Err(StoreError::WrongState(_))), "{late:?}");
    assert_eq!(inbox(&store).await, 0);

    // The driver itself cancels an unclaimed job.
    let run = begun(&store).await;
    store.post_run_event(run, &RunEvent::CancelRequested).await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Cancelled);
    assert_eq!(jobs(&store, run).await[0].status, JobStatus::Cancelled);
    // A run that has not started yet never starts.
    let run = store.create_run(&run_spec("r"), None).await.unwrap().id;
    store.post_run_event(run, &RunEvent::CancelRequested).await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Cancelled);
}

#[tokio::test]
async fn a_job_that_fails_for_good_fails_its_run_with_the_reason() {
    let store = store().await;
    let run = begun(&store).await;
    let lease = claim(&store).await;
    store.fail_job(lease.key, FailureClass::Permanent, "file:///c.txt: no such file").await.unwrap();
    drive(&store).await;
    let record = store.run(run).await.unwrap();
    assert_eq!(record.run.status(), JobStatus::Failed);
    let text = record.run.describe_state();
    assert!(text.contains("tokenize the corpus: file:///c.txt: no such file"), "{text}");
}

#[tokio::test]
async fn r1_a_failed_run_is_retried_from_its_failed_job() {
    let store = store().await;
    let run = begun(&store).await;
    complete(&store, &claim(&store).await, 0.0).await;
    drive(&store).await;
    complete(&store, &claim(&store).await, 0.0).await;
    drive(&store).await;
    // The training of the reference.
    let lease = claim(&store).await;
    let problem = |result: Result<_, StoreError>| match result {
        Err(StoreError::WrongState(problem)) => problem,
        other => panic!("{other:?}"),
    };
    assert!(problem(store.retry_run(run).await.map(drop)).contains("is RUNNING: only a failed run"));
    store.fail_job(lease.key, FailureClass::Permanent, "the loss is not a number").await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Failed);
    // The job alone cannot be retried, because the run would not be notified of its end.
    assert!(problem(store.retry_job(lease.key.job).await.map(drop)).contains(&format!("inheritune run retry {run}")));

    let retried = store.retry_run(run).await.unwrap();
    assert_eq!((retried.run.status(), retried.finished_at), (JobStatus::Running, None));
    assert_eq!(retried.run.describe_state(), "training (reference)");
    assert!(notes(&store, run).await.contains(&"retried: training (reference)".to_owned()));
    assert!(problem(store.retry_run(run).await.map(drop)).contains("is RUNNING"));
    let again = claim(&store).await;
    assert_eq!((again.key.job, again.attempt), (lease.key.job, 2), "the same job, with what it saved");
    complete(&store, &again, 0.0).await;
    drive(&store).await;
    assert_eq!(store.run(run).await.unwrap().run.describe_state(), "benchmarking the reference");

    // A job that was cancelled without its run.
    store.request_job(claim(&store).await.key.job, Directive::Cancel).await.unwrap();
    let held = jobs(&store, run).await.pop().unwrap();
    let token = sqlx::query_scalar("SELECT lease_token FROM job_queue WHERE job_id = $1");
    let token = LeaseToken(token.bind(held.id.0).fetch_one(store.pool()).await.unwrap());
    store.release_job(LeaseKey { job: held.id, token }, "cancelled").await.unwrap();
    drive(&store).await;
    assert_eq!(status(&store, run).await, JobStatus::Failed);
    assert_eq!(store.retry_run(run).await.unwrap().run.status(), JobStatus::Running);
    assert_eq!(claim(&store).await.key.job, held.id);
}

#[tokio::test]
async fn r1_a_run_that_its_recipe_failed_is_not_retried() {
    let store = store().await;
    let mut spec = run_spec("r");
    (spec.training.steps, spec.training.epochs, spec.training.warmup_steps) = (None, Some(1), 1_000_000);
    let run = store.create_run(&spec, None).await.unwrap().id;
    drive(&store).await;
    complete(&store, &claim(&store).await, 0.0).await;
    drive(&store).await;
    let state = store.run(run).await.unwrap().run.describe_state();
    assert!(state.starts_with("failed: training.warmup_steps: 1000000 do not fit"), "{state}");
    let refused = store.retry_run(run).await.unwrap_err().to_string();
    assert!(refused.contains("failed because of its recipe") && refused.contains("warmup_steps"), "{refused}");
}

#[tokio::test]
async fn an_event_that_cannot_happen_is_noted_and_dropped() {
    let store = store().await;
    let run = begun(&store).await;
    // An outcome of an unexpected kind, and a second creation.
    for event in [RunEvent::JobSucceeded { outcome: outcome(JobKind::Train, 0.0) }, RunEvent::Created] {
        sqlx::query("INSERT INTO run_inbox (run_id, event) VALUES ($1, $2)")
            .bind(run.0)
            .bind(serde_json::to_value(event).unwrap())
            .execute(store.pool())
            .await
            .unwrap();
    }
    drive(&store).await;
    let notes = notes(&store, run).await;
    assert_eq!(notes.iter().filter(|note| note.starts_with("ignored: ")).count(), 2, "{notes:?}");
    assert_eq!((jobs(&store, run).await.len(), inbox(&store).await), (1, 0));
    assert_eq!(status(&store, run).await, JobStatus::Running);
}

#[tokio::test]
async fn a_step_is_written_whole_or_not_at_all_and_an_unreadable_run_stops_no_other() {
    let store = store().await;
    let broken = store.create_run(&run_spec("broken"), None).await.unwrap().id;
    // The creation event before it would submit a job.
    sqlx::query("INSERT INTO run_inbox (run_id, event) VALUES ($1, '{\"event\": \"of a later version\"}')")
        .bind(broken.0)
        .execute(store.pool())
        .await
        .unwrap();
    let good = store.create_run(&run_spec("good"), None).await.unwrap().id;
    assert_eq!(store.drive_one_run().await.unwrap(), Some(good));
    let error = store.drive_one_run().await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    let record = store.run(broken).await.unwrap();
    assert_eq!((record.version, record.run.status()), (1, JobStatus::Queued));
    assert!(jobs(&store, broken).await.is_empty() && notes(&store, broken).await.is_empty());
    assert_eq!((jobs(&store, good).await.len(), inbox(&store).await), (1, 2));
}

#[tokio::test]
async fn a_long_inbox_is_folded_in_order_over_several_steps() {
    let store = store().await;
    let run = begun(&store).await;
    for n in 0..150 {
        let event = if n % 2 == 0 { RunEvent::PauseRequested } else { RunEvent::ResumeRequested };
        store.post_run_event(run, &event).await.unwrap_or_else(|e| panic!("{n}: {e}"));
    }
    assert_eq!(drive(&store).await.len(), 3);
    assert_eq!(status(&store, run).await, JobStatus::Running);
    assert_eq!(jobs(&store, run).await[0].status, JobStatus::Queued);
}

#[tokio::test]
async fn a_request_id_makes_one_run() {
    let store = store().await;
    let id = Some(Uuid::new_v4());
    let run = store.create_run(&run_spec("r"), id).await.unwrap();
    assert_eq!(store.create_run(&run_spec("r"), id).await.unwrap(), run);
    let other = store.create_run(&run_spec("other"), id).await;
    assert!(matches!(other, Err(StoreError::RequestIdReused(_))), "{other:?}");
    assert_eq!(store.list_runs(None, &Page { size: 10, token: None }).await.unwrap().items, [run]);
}

#[tokio::test]
async fn runs_are_listed_newest_first_by_page_and_status() {
    let store = store().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.insert(0, store.create_run(&run_spec(&format!("run {n}")), None).await.unwrap().id);
    }
    let first = store.list_runs(None, &Page { size: 3, token: None }).await.unwrap();
    let second = store.list_runs(None, &Page { size: 3, token: first.next.clone() }).await.unwrap();
    let listed: Vec<RunId> = first.items.iter().chain(&second.items).map(|run| run.id).collect();
    assert_eq!((listed, second.next), (ids.clone(), None));
    store.post_run_event(ids[1], &RunEvent::CancelRequested).await.unwrap();
    drive(&store).await;
    let page = Page { size: 3, token: None };
    let cancelled = store.list_runs(Some(JobStatus::Cancelled), &page).await.unwrap().items;
    assert_eq!(cancelled.iter().map(|run| run.id).collect::<Vec<_>>(), [ids[1]]);
    let nothing = store.run(RunId(Uuid::new_v4())).await;
    assert!(matches!(nothing, Err(StoreError::NotFound { kind: "run", .. })), "{nothing:?}");
}

#[tokio::test]
async fn notes_can_be_followed() {
    let store = store().await;
    let run = begun(&store).await;
    complete(&store, &claim(&store).await, 0.0).await;
    let before = store.run_notes(run, 0).await.unwrap();
    drive(&store).await;
    let last = before.last().map_or(0, |note| note.seq);
    let new = store.run_notes(run, last).await.unwrap();
    assert!(!new.is_empty() && new.iter().all(|note| note.seq > last));
    assert_eq!(store.run_notes(run, 0).await.unwrap().len(), before.len() + new.len());
}
