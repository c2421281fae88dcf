//! Compares the tables with their specification, `JobLife::advance`: random histories are applied
//! to both, which must agree after every step. No write of a stale worker may be accepted.
//!
//! `INHERITUNE_HISTORIES` sets the number of histories.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::time::Duration;

use inheritune_domain::id::{JobId, LeaseToken, WorkerId};
use inheritune_domain::job::{
    Counts, Directive, FailureClass, InvalidJobEvent, JobEvent, JobLife, JobState, JobStatus, RetryPolicy,
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
/// Number of jobs in one history.
const JOBS: usize = 3;
const LEASE: Duration = Duration::from_secs(1_000);
/// Longest lag of the model's clock, which advances only in steps, behind the database's.
const LAG: time::Duration = time::Duration::seconds(60);

/// One step of a history. All durations are much longer than the run time of a history, and both
/// clocks only move forward, so that a duration that is over for one clock is over for the other.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim {
        limit: usize,
    },
    One(usize, Write),
    /// Completions in one call, possibly several of the same job.
    CompleteAll([(usize, Fence); 3]),
    Expire,
    /// The holder publishes a training state, which need not be newer than others, or finishes an
    /// evaluation unit.
    Advance(usize, Advance),
    GiveUpWaiting {
        limit_seconds: u32,
    },
    Retry(usize),
    Request(usize, Directive),
    Wait {
        seconds: i64,
    },
}

#[derive(Debug, Clone, Copy)]
enum Advance {
    State { step: i64 },
    Unit,
}

/// A write of a worker to one job.
#[derive(Debug, Clone, Copy)]
enum Write {
    Heartbeat(Fence),
    Complete(Fence),
    Fail(Fence, FailureClass),
    Release(Fence),
}

/// The lease token of a write.
#[derive(Debug, Clone, Copy)]
enum Fence {
    Newest,
    /// Counted back from the newest one: workers that lost their lease long ago.
    Older(usize),
    Invented,
}

fn step() -> impl Strategy<Value = Step> {
    let fence =
        || prop_oneof![6 => Just(Fence::Newest), 3 => (1..4_usize).prop_map(Fence::Older), 1 => Just(Fence::Invented)];
    let class = prop_oneof![
        4 => Just(FailureClass::Retryable),
        1 => Just(FailureClass::Permanent),
        3 => Just(FailureClass::Unavailable),
        2 => Just(FailureClass::Crashed),
        3 => Just(FailureClass::Killed),
    ];
    let advance = prop_oneof![3 => (0..6_i64).prop_map(|step| Advance::State { step }), 1 => Just(Advance::Unit)];
    let directive = prop_oneof![3 => Just(Directive::Pause), 4 => Just(Directive::Run), 1 => Just(Directive::Cancel)];
    let seconds = prop_oneof![Just(200), Just(500), Just(1_000), Just(3_000)];
    let write = prop_oneof![
        4 => fence().prop_map(Write::Heartbeat),
        1 => fence().prop_map(Write::Complete),
        4 => (fence(), class).prop_map(|(fence, class)| Write::Fail(fence, class)),
        3 => fence().prop_map(Write::Release),
    ];
    let completions = [(0..JOBS, fence()), (0..JOBS, fence()), (0..JOBS, fence())];
    prop_oneof![
        8 => (1..=JOBS + 1).prop_map(|limit| Step::Claim { limit }),
        11 => (0..JOBS, write).prop_map(|(job, write)| Step::One(job, write)),
        1 => completions.prop_map(Step::CompleteAll),
        4 => Just(Step::Expire),
        3 => (0..JOBS, advance).prop_map(|(job, advance)| Step::Advance(job, advance)),
        1 => prop_oneof![Just(300), Just(2_500)].prop_map(|limit_seconds| Step::GiveUpWaiting { limit_seconds }),
        2 => (0..JOBS).prop_map(Step::Retry),
        5 => (0..JOBS, directive).prop_map(|(job, directive)| Step::Request(job, directive)),
        5 => seconds.prop_map(|seconds| Step::Wait { seconds }),
    ]
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    (1..6_u32, prop_oneof![Just(0), Just(300_000)], Just(1_000_000))
        .prop_map(|(max_attempts, backoff_ms, backoff_max_ms)| RetryPolicy { max_attempts, backoff_ms, backoff_max_ms })
}

#[derive(Default)]
struct Tally {
    steps: Cell<u64>,
    stale_refused: Cell<u64>,
}

/// Some jobs in the tables and in the model.
struct Play<'a> {
    store: &'a Store,
    tally: &'a Tally,
    now: OffsetDateTime,
    jobs: Vec<Job>,
}

struct Job {
    id: JobId,
    life: JobLife,
    tokens: Vec<LeaseToken>,
    /// Step of its newest training state.
    newest_step: Option<i64>,
    /// Whether its newest attempt made durable progress.
    advanced: bool,
    units: i32,
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
    let tally = Tally::default();
    let mut runner = TestRunner::new(Config { cases: histories, failure_persistence: None, ..Config::default() });
    let history = (retry(), prop::collection::vec(step(), 1..30));
    let played = runner.run(&history, |(retry, steps)| {
        runtime.block_on(async {
            let mut play = Play::new(&store, &tally, retry).await;
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
        tally.steps.get(),
        tally.stale_refused.get()
    );
}

impl<'a> Play<'a> {
    async fn new(store: &'a Store, tally: &'a Tally, retry: RetryPolicy) -> Self {
        // Jobs of the previous history would be claimed too.
        sqlx::query("DELETE FROM jobs").execute(store.pool()).await.unwrap();
        let new = NewJob { retry, ..support::new_job(JobKind::Train) };
        let ids = store.submit_jobs(&vec![new; JOBS]).await.unwrap();
        let now = OffsetDateTime::now_utc();
        let job = |id| Job {
            id,
            life: JobLife::new(now, retry),
            tokens: Vec::new(),
            newest_step: None,
            advanced: false,
            units: 0,
        };
        Self { store, tally, now, jobs: ids.into_iter().map(job).collect() }
    }

    async fn step(&mut self, step: Step) {
        self.tally.steps.set(self.tally.steps.get() + 1);
        match step {
            Step::Claim { limit } => self.claim(limit).await,
            Step::One(job, write) => self.write(job, write).await,
            Step::CompleteAll(completions) => {
                let outcome = support::outcome(JobKind::Train, 0.0);
                let done = completions.map(|(job, fence)| (self.key(job, fence), &outcome));
                let answers = self.store.complete_jobs(&done).await.unwrap();
                assert_eq!(answers.len(), done.len());
                for (((job, _), (key, _)), answer) in completions.into_iter().zip(done).zip(answers) {
                    self.worker_wrote(job, JobEvent::Complete { token: key.token }, answer);
                }
            }
            Step::Expire => {
                let expired = self.store.expire_leases().await.unwrap();
                let mut expected = 0;
                for job in &mut self.jobs {
                    if let Ok(life) = job.life.advance(self.now, JobEvent::Expire { advanced: job.advanced }) {
                        expected += 1;
                        job.life = life;
                    }
                }
                assert_eq!(expired, expected);
            }
            Step::Advance(job, advance) => self.make_progress(job, advance).await,
            Step::GiveUpWaiting { limit_seconds } => {
                let limit = Duration::from_secs(limit_seconds.into());
                let given_up = self.store.give_up_waiting(limit).await.unwrap();
                let event = JobEvent::GiveUpWaiting { limit: limit.try_into().unwrap() };
                let mut expected = 0;
                for job in &mut self.jobs {
                    if let Ok(life) = job.life.advance(self.now, event) {
                        expected += 1;
                        job.life = life;
                    }
                }
                assert_eq!(given_up, expected);
            }
            Step::Retry(job) => {
                let job = &mut self.jobs[job];
                match (self.store.retry_job(job.id).await, job.life.advance(self.now, JobEvent::RequestRetry)) {
                    (Ok(record), Ok(life)) => {
                        assert_eq!((record.status, record.counts), (JobStatus::Queued, Counts::default()));
                        job.life = life;
                    }
                    (Err(StoreError::WrongState(_)), Err(InvalidJobEvent::WrongState)) => {}
                    (tables, model) => panic!("retry: the tables say {tables:?}, the model {model:?}"),
                }
            }
            Step::Request(job, directive) => self.request(job, directive).await,
            Step::Wait { seconds } => {
                self.now += time::Duration::seconds(seconds);
                // The database's clock cannot be moved, so move the times that it is compared with.
                let query = "UPDATE job_queue SET lease_until = lease_until - $1 * interval '1 second',
                             not_before = not_before - $1 * interval '1 second',
                             waiting_since = waiting_since - $1 * interval '1 second'";
                sqlx::query(query).bind(seconds as f64).execute(self.store.pool()).await.unwrap();
            }
        }
    }

    /// Writes the rows of a holder's call, without files.
    async fn make_progress(&mut self, job: usize, advance: Advance) {
        let job = &mut self.jobs[job];
        let JobState::Leased { token, .. } = job.life.state else { return };
        match advance {
            Advance::State { step } => {
                let query =
                    "INSERT INTO artifacts (id, kind, location, manifest_sha256, size_bytes, file_count, job_id,
                                                    lease_token, step, metadata)
                             VALUES (gen_random_uuid(), 'training_state', 'x', sha256('x'), 1, 1, $1, $2, $3, '{}')";
                sqlx::query(query).bind(job.id.0).bind(token.0).bind(step).execute(self.store.pool()).await.unwrap();
                // True if this state, or an earlier one of the same attempt, is newer than all
                // others.
                job.advanced |= job.newest_step.is_none_or(|newest| newest < step);
                job.newest_step = job.newest_step.max(Some(step));
            }
            Advance::Unit => {
                let query = "INSERT INTO evaluation_units (job_id, unit, task, first_item, items, digest, lease_token,
                                                           worker_id, claimed_at, answers, finished_at)
                             VALUES ($1, $2, 'piqa', 0, 1, sha256('x'), $3, gen_random_uuid(), now(), 'x', now())";
                let query = sqlx::query(query).bind(job.id.0).bind(job.units).bind(token.0);
                query.execute(self.store.pool()).await.unwrap();
                job.units += 1;
                job.advanced = true;
            }
        }
    }

    /// Checks that the oldest claimable jobs are claimed in order.
    async fn claim(&mut self, limit: usize) {
        let worker = support::worker();
        let mut claimed = self.store.claim_jobs(worker, &JobKind::ALL, limit as u32, LEASE).await.unwrap().into_iter();
        let mut free = limit;
        for job in &mut self.jobs {
            // The token of a rejected claim does not matter.
            let token = claimed.as_slice().first().map_or(LeaseToken(0), |lease| lease.key.token);
            let event = JobEvent::Claim { token, worker, lease: lease() };
            let Some(life) = job.life.advance(self.now, event).ok().filter(|_| free > 0) else { continue };
            let lease = claimed.next().expect("a claimable job was not claimed");
            assert!(job.tokens.last().is_none_or(|last| *last < token), "fences must grow");
            job.tokens.push(token);
            job.advanced = false;
            assert_eq!((lease.key.job, lease.attempt as usize), (job.id, job.tokens.len()));
            job.life = life;
            free -= 1;
        }
        assert_eq!(claimed.next(), None, "claimed a job that cannot be claimed");
    }

    async fn write(&mut self, job: usize, write: Write) {
        match write {
            Write::Heartbeat(fence) => {
                let key = self.key(job, fence);
                let event = JobEvent::Heartbeat { token: key.token, lease: lease() };
                let result = self.store.heartbeat(key, None, LEASE).await;
                let told = self.worker_wrote(job, event, result);
                if let (Some(told), JobState::Leased { directive, .. }) = (told, self.jobs[job].life.state) {
                    assert_eq!(told, directive);
                }
            }
            Write::Complete(fence) => {
                let key = self.key(job, fence);
                let result = self.store.complete_job(key, &support::outcome(JobKind::Train, 0.0)).await;
                self.worker_wrote(job, JobEvent::Complete { token: key.token }, result);
            }
            Write::Fail(fence, class) => {
                let key = self.key(job, fence);
                let result = self.store.fail_job(key, class, "failed").await;
                let advanced = self.jobs[job].advanced;
                self.worker_wrote(job, JobEvent::Fail { token: key.token, class, advanced }, result);
            }
            Write::Release(fence) => {
                let key = self.key(job, fence);
                let result = self.store.release_job(key, "given back").await;
                let advanced = self.jobs[job].advanced;
                self.worker_wrote(job, JobEvent::Release { token: key.token, advanced }, result);
            }
        }
    }

    async fn request(&mut self, job: usize, directive: Directive) {
        let event = match directive {
            Directive::Run => JobEvent::RequestResume,
            Directive::Pause => JobEvent::RequestPause,
            Directive::Cancel => JobEvent::RequestCancel,
        };
        let job = &mut self.jobs[job];
        match (self.store.request_job(job.id, directive).await, job.life.advance(self.now, event)) {
            (Ok(record), Ok(life)) => {
                assert_eq!(record.status, life.state.status());
                job.life = life;
            }
            (Err(StoreError::WrongState(_)), Err(InvalidJobEvent::WrongState)) => {}
            (tables, model) => panic!("{directive:?}: the tables say {tables:?}, the model {model:?}"),
        }
    }

    /// Compares the result of a worker's write with the model. Returns the value of an accepted
    /// write.
    fn worker_wrote<T: std::fmt::Debug>(
        &mut self,
        job: usize,
        event: JobEvent,
        result: Result<T, StoreError>,
    ) -> Option<T> {
        let job = &mut self.jobs[job];
        match (result, job.life.advance(self.now, event)) {
            (Ok(got), Ok(life)) => {
                job.life = life;
                Some(got)
            }
            (Err(StoreError::LeaseLost(id)), Err(InvalidJobEvent::StaleLease)) => {
                assert_eq!(id, job.id);
                self.tally.stale_refused.set(self.tally.stale_refused.get() + 1);
                None
            }
            (tables, model) => panic!("{event:?}: the tables say {tables:?}, the model {model:?}"),
        }
    }

    fn key(&self, job: usize, fence: Fence) -> LeaseKey {
        let job = &self.jobs[job];
        let newest = job.tokens.last().copied().unwrap_or(LeaseToken(0));
        let token = match fence {
            Fence::Newest => newest,
            Fence::Older(back) => job.tokens.iter().rev().nth(back).copied().unwrap_or(LeaseToken(0)),
            Fence::Invented => LeaseToken(newest.0 + 1_000_000),
        };
        LeaseKey { job: job.id, token }
    }

    async fn compare(&self, step: Step) {
        for job in &self.jobs {
            self.compare_job(job, step).await;
        }
    }

    async fn compare_job(&self, job: &Job, step: Step) {
        let query = "SELECT now(), q.state, q.not_before, q.lease_token, q.lease_until, q.worker_id, q.directive,
                            j.final_status, j.failed_attempts, j.attempts, job_status(j.final_status, q.state, q.directive),
                            (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id),
                            (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id AND a.ended IS NULL),
                            (SELECT max(a.lease_token) FROM job_attempts a WHERE a.job_id = j.id AND a.ended IS NULL),
                            j.lost_attempts, j.crashed_attempts, j.waits, q.waiting_since
                     FROM jobs j LEFT JOIN job_queue q ON q.job_id = j.id WHERE j.id = $1";
        let row = sqlx::query(query).bind(job.id.0).fetch_one(self.store.pool()).await.unwrap();
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
        assert!(agree(state, job.life.state), "after {step:?}: tables {state:?}, model {:?}", job.life.state);
        let count = |column: usize| row.get::<i32, _>(column) as u32;
        let waiting_since = row.get::<Option<OffsetDateTime>, _>(17).map(at);
        let counts =
            Counts { failed: count(8), lost: count(14), crashed: count(15), waits: count(16), waiting_since: None };
        assert_eq!(counts, Counts { waiting_since: None, ..job.life.counts }, "after {step:?}");
        if !job.life.state.is_final() {
            let agreed = match (waiting_since, job.life.counts.waiting_since) {
                (Some(tables), Some(model)) => (tables - model).abs() < LAG,
                (tables, model) => tables == model,
            };
            assert!(agreed, "after {step:?}: {waiting_since:?}, model {:?}", job.life.counts);
        }
        assert_eq!(row.get::<&str, _>(10), job.life.state.status().as_str(), "after {step:?}: status");
        // Every attempt is stored, and the open one belongs to the current lease.
        let claims = job.tokens.len();
        assert_eq!((row.get::<i32, _>(9) as usize, row.get::<i64, _>(11) as usize), (claims, claims));
        let open = match job.life.state {
            JobState::Leased { token, .. } => Some(token.0),
            _ => None,
        };
        assert_eq!((row.get::<i64, _>(12), row.get::<Option<i64>, _>(13)), (i64::from(open.is_some()), open));
    }
}

fn lease() -> time::Duration {
    LEASE.try_into().unwrap()
}

/// Returns whether the states are equal. Times may differ by [`LAG`].
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
