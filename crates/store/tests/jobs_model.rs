//! `JobLife::advance` is the specification: random histories happen to it and to the tables, and both must agree after
//! every step. Stale workers' writes that are accepted: none.
//!
//! `INHERITUNE_HISTORIES` sets how many histories are played.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::time::Duration;

use inheritune_domain::id::{JobId, LeaseToken, WorkerId};
use inheritune_domain::job::{
    Directive, FailureClass, InvalidJobEvent, JobEvent, JobLife, JobState, JobStatus, RetryPolicy,
};
use inheritune_domain::spec::JobKind;
use inheritune_store::jobs::{LeaseKey, NewJob};
use inheritune_store::{Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::Row as _;
use time::OffsetDateTime;

const HISTORIES: u32 = 200;
const MANY_HISTORIES: u32 = 10_000;
const LEASE: Duration = Duration::from_secs(1_000);
/// How far the model's clock, which stands still between steps, may lag behind the database's.
const LAG: time::Duration = time::Duration::seconds(60);

/// What happens next. All spans are far longer than a history takes, and both clocks only ever run ahead, so a span
/// that is over for one is over for the other.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    Heartbeat(Fence),
    Complete(Fence),
    Fail(Fence, FailureClass),
    Release(Fence),
    Expire,
    Request(Directive),
    Wait { seconds: i64 },
}

/// Whose token a worker's write carries.
#[derive(Debug, Clone, Copy)]
enum Fence {
    Newest,
    /// Counted back from the newest: workers that lost their lease long ago.
    Older(usize),
    Invented,
}

fn step() -> impl Strategy<Value = Step> {
    let fence =
        || prop_oneof![6 => Just(Fence::Newest), 3 => (1..4_usize).prop_map(Fence::Older), 1 => Just(Fence::Invented)];
    let class = prop_oneof![4 => Just(FailureClass::Retryable), 1 => Just(FailureClass::Permanent)];
    let directive = prop_oneof![3 => Just(Directive::Pause), 4 => Just(Directive::Run), 1 => Just(Directive::Cancel)];
    let seconds = prop_oneof![Just(200), Just(500), Just(1_000), Just(3_000)];
    prop_oneof![
        8 => Just(Step::Claim),
        4 => fence().prop_map(Step::Heartbeat),
        1 => fence().prop_map(Step::Complete),
        3 => (fence(), class).prop_map(|(fence, class)| Step::Fail(fence, class)),
        3 => fence().prop_map(Step::Release),
        4 => Just(Step::Expire),
        5 => directive.prop_map(Step::Request),
        5 => seconds.prop_map(|seconds| Step::Wait { seconds }),
    ]
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    (1..6_u32, prop_oneof![Just(0), Just(300_000)], Just(1_000_000))
        .prop_map(|(max_attempts, backoff_ms, backoff_max_ms)| RetryPolicy { max_attempts, backoff_ms, backoff_max_ms })
}

#[derive(Default)]
struct Counts {
    steps: Cell<u64>,
    stale_refused: Cell<u64>,
}

/// One job, in the tables and as the specification has it.
struct Play<'a> {
    store: &'a Store,
    counts: &'a Counts,
    job: JobId,
    now: OffsetDateTime,
    life: JobLife,
    tokens: Vec<LeaseToken>,
}

#[test]
fn the_tables_do_what_the_state_machine_says() {
    check(std::env::var("INHERITUNE_HISTORIES").map_or(HISTORIES, |n| n.parse().unwrap()));
}

#[test]
#[ignore = "minutes long; run by make test-slow"]
fn the_tables_do_what_the_state_machine_says_in_ten_thousand_histories() {
    check(MANY_HISTORIES);
}

fn check(histories: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(support::store());
    let counts = Counts::default();
    let mut runner = TestRunner::new(Config { cases: histories, failure_persistence: None, ..Config::default() });
    let history = (retry(), prop::collection::vec(step(), 1..30));
    let played = runner.run(&history, |(retry, steps)| {
        runtime.block_on(async {
            let mut play = Play::new(&store, &counts, retry).await;
            for step in steps {
                play.step(step).await;
                play.compare(step).await;
            }
        });
        Ok(())
    });
    if let Err(e) = played {
        panic!("{e}");
    }
    println!(
        "{histories} histories, {} steps, {} writes of stale workers refused, 0 accepted",
        counts.steps.get(),
        counts.stale_refused.get()
    );
}

impl<'a> Play<'a> {
    async fn new(store: &'a Store, counts: &'a Counts, retry: RetryPolicy) -> Self {
        // What the history before this one left would be claimed, too.
        sqlx::query("DELETE FROM jobs").execute(store.pool()).await.unwrap();
        let job = store.submit_job(&NewJob { retry, ..support::new_job(JobKind::Train) }, None).await.unwrap().id;
        let now = OffsetDateTime::now_utc();
        Self { store, counts, job, now, life: JobLife::new(now, retry), tokens: Vec::new() }
    }

    async fn step(&mut self, step: Step) {
        self.counts.steps.set(self.counts.steps.get() + 1);
        match step {
            Step::Claim => self.claim().await,
            Step::Heartbeat(fence) => {
                let key = self.key(fence);
                let event = JobEvent::Heartbeat { token: key.token, lease: lease() };
                let result = self.store.heartbeat(key, None, LEASE).await;
                let told = self.worker_wrote(event, result);
                if let (Some(told), JobState::Leased { directive, .. }) = (told, self.life.state) {
                    assert_eq!(told, directive);
                }
            }
            Step::Complete(fence) => {
                let key = self.key(fence);
                let result = self.store.complete_job(key, &support::outcome(JobKind::Train, 0.0)).await;
                self.worker_wrote(JobEvent::Complete { token: key.token }, result);
            }
            Step::Fail(fence, class) => {
                let key = self.key(fence);
                let result = self.store.fail_job(key, class, "failed").await;
                self.worker_wrote(JobEvent::Fail { token: key.token, class }, result);
            }
            Step::Release(fence) => {
                let key = self.key(fence);
                let result = self.store.release_job(key, "given back").await;
                self.worker_wrote(JobEvent::Release { token: key.token }, result);
            }
            Step::Expire => {
                let expired = self.store.expire_leases().await.unwrap();
                match self.life.advance(self.now, JobEvent::Expire) {
                    Ok(life) => {
                        assert_eq!(expired, 1);
                        self.life = life;
                    }
                    Err(_) => assert_eq!(expired, 0),
                }
            }
            Step::Request(directive) => self.request(directive).await,
            Step::Wait { seconds } => {
                self.now += time::Duration::seconds(seconds);
                // The database's clock cannot be moved, so all that it is compared with is.
                let query = "UPDATE job_queue SET lease_until = lease_until - $1 * interval '1 second',
                             not_before = not_before - $1 * interval '1 second'";
                sqlx::query(query).bind(seconds as f64).execute(self.store.pool()).await.unwrap();
            }
        }
    }

    async fn claim(&mut self) {
        let worker = support::worker();
        let claimed = self.store.claim_jobs(worker, &JobKind::ALL, 2, LEASE).await.unwrap();
        assert!(claimed.len() <= 1, "a job was claimed twice");
        // Of a refused claim the token does not matter.
        let token = claimed.first().map_or(LeaseToken(0), |lease| lease.key.token);
        match self.life.advance(self.now, JobEvent::Claim { token, worker, lease: lease() }) {
            Ok(life) => {
                let lease = claimed.first().expect("a claimable job was not claimed");
                assert!(self.tokens.last().is_none_or(|last| *last < token), "fences must grow");
                self.tokens.push(token);
                assert_eq!((lease.key.job, lease.attempt as usize), (self.job, self.tokens.len()));
                self.life = life;
            }
            Err(_) => assert!(claimed.is_empty(), "claimed in state {:?}", self.life.state),
        }
    }

    async fn request(&mut self, directive: Directive) {
        let event = match directive {
            Directive::Run => JobEvent::RequestResume,
            Directive::Pause => JobEvent::RequestPause,
            Directive::Cancel => JobEvent::RequestCancel,
        };
        match (self.store.request_job(self.job, directive).await, self.life.advance(self.now, event)) {
            (Ok(job), Ok(life)) => {
                assert_eq!(job.status, life.state.status());
                self.life = life;
            }
            (Err(StoreError::WrongState(_)), Err(InvalidJobEvent::WrongState)) => {}
            (tables, model) => panic!("{directive:?}: the tables say {tables:?}, the model {model:?}"),
        }
    }

    /// Compares what a worker was answered; what it got when the write counted.
    fn worker_wrote<T: std::fmt::Debug>(&mut self, event: JobEvent, result: Result<T, StoreError>) -> Option<T> {
        match (result, self.life.advance(self.now, event)) {
            (Ok(got), Ok(life)) => {
                self.life = life;
                Some(got)
            }
            (Err(StoreError::LeaseLost(job)), Err(InvalidJobEvent::StaleLease)) => {
                assert_eq!(job, self.job);
                self.counts.stale_refused.set(self.counts.stale_refused.get() + 1);
                None
            }
            (tables, model) => panic!("{event:?}: the tables say {tables:?}, the model {model:?}"),
        }
    }

    fn key(&self, fence: Fence) -> LeaseKey {
        let newest = self.tokens.last().copied().unwrap_or(LeaseToken(0));
        let token = match fence {
            Fence::Newest => newest,
            Fence::Older(back) => self.tokens.iter().rev().nth(back).copied().unwrap_or(LeaseToken(0)),
            Fence::Invented => LeaseToken(newest.0 + 1_000_000),
        };
        LeaseKey { job: self.job, token }
    }

    async fn compare(&self, step: Step) {
        let query = "SELECT now(), q.state, q.not_before, q.lease_token, q.lease_until, q.worker_id, q.directive,
                            j.final_status, j.failed_attempts, j.attempts, job_status(j.final_status, q.state, q.directive),
                            (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id),
                            (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id AND a.ended IS NULL),
                            (SELECT max(a.lease_token) FROM job_attempts a WHERE a.job_id = j.id AND a.ended IS NULL)
                     FROM jobs j LEFT JOIN job_queue q ON q.job_id = j.id WHERE j.id = $1";
        let row = sqlx::query(query).bind(self.job.0).fetch_one(self.store.pool()).await.unwrap();
        let at = |time: OffsetDateTime| self.now + (time - row.get::<OffsetDateTime, _>(0));
        let state = match row.get::<Option<&str>, _>(1) {
            Some("queued") => JobState::Queued { not_before: at(row.get(2)) },
            Some("leased") => JobState::Leased {
                token: LeaseToken(row.get(3)),
                worker: WorkerId(row.get(5)),
                lease_until: at(row.get(4)),
                directive: match row.get(6) {
                    "run" => Directive::Run,
                    "pause" => Directive::Pause,
                    "cancel" => Directive::Cancel,
                    other => panic!("{other}"),
                },
            },
            Some("paused") => JobState::Paused,
            None => match JobStatus::parse(row.get(7)) {
                Some(JobStatus::Succeeded) => JobState::Succeeded,
                Some(JobStatus::Failed) => JobState::Failed,
                Some(JobStatus::Cancelled) => JobState::Cancelled,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert!(agree(state, self.life.state), "after {step:?}: tables {state:?}, model {:?}", self.life.state);
        assert_eq!(row.get::<i32, _>(8) as u32, self.life.failed_attempts, "after {step:?}: failed attempts");
        assert_eq!(row.get::<&str, _>(10), self.life.state.status().as_str(), "after {step:?}: status");
        // Every attempt is kept, and the one that is open is the lease's.
        let claims = self.tokens.len();
        assert_eq!((row.get::<i32, _>(9) as usize, row.get::<i64, _>(11) as usize), (claims, claims));
        let open = match self.life.state {
            JobState::Leased { token, .. } => Some(token.0),
            _ => None,
        };
        assert_eq!((row.get::<i64, _>(12), row.get::<Option<i64>, _>(13)), (i64::from(open.is_some()), open));
    }
}

fn lease() -> time::Duration {
    LEASE.try_into().unwrap()
}

/// Equal, times within [`LAG`].
fn agree(a: JobState, b: JobState) -> bool {
    let near = |a: OffsetDateTime, b: OffsetDateTime| (a - b).abs() < LAG;
    match (a, b) {
        (JobState::Queued { not_before: a }, JobState::Queued { not_before: b }) => near(a, b),
        (
            JobState::Leased { token, worker, lease_until, directive },
            JobState::Leased { token: b_token, worker: b_worker, lease_until: b_until, directive: b_directive },
        ) => (token, worker, directive) == (b_token, b_worker, b_directive) && near(lease_until, b_until),
        (a, b) => a == b,
    }
}
