#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const LEASE: Duration = Duration::seconds(5);
const TOKEN: LeaseToken = LeaseToken(7);
const STALE: LeaseToken = LeaseToken(6);
const WORKER: WorkerId = WorkerId(Uuid::nil());

fn leased(directive: Directive, lease_until: OffsetDateTime) -> JobState {
    JobState::Leased { token: TOKEN, worker: WORKER, lease_until, directive }
}

fn states() -> Vec<(&'static str, JobState)> {
    let later = NOW + LEASE;
    vec![
        ("queued", JobState::Queued { not_before: NOW }),
        ("backing off", JobState::Queued { not_before: later }),
        ("leased", leased(Directive::Run, later)),
        ("pausing", leased(Directive::Pause, later)),
        ("cancelling", leased(Directive::Cancel, later)),
        ("lease ran out", leased(Directive::Run, NOW)),
        ("pausing, ran out", leased(Directive::Pause, NOW)),
        ("cancelling, ran out", leased(Directive::Cancel, NOW)),
        ("paused", JobState::Paused),
        ("succeeded", JobState::Succeeded),
        ("failed", JobState::Failed),
        ("cancelled", JobState::Cancelled),
    ]
}

fn events() -> Vec<(&'static str, JobEvent)> {
    let fail = |class| JobEvent::Fail { token: TOKEN, class, advanced: false };
    vec![
        ("claim", JobEvent::Claim { token: TOKEN, worker: WORKER, lease: LEASE }),
        ("heartbeat", JobEvent::Heartbeat { token: TOKEN, lease: LEASE }),
        ("stale heartbeat", JobEvent::Heartbeat { token: STALE, lease: LEASE }),
        ("complete", JobEvent::Complete { token: TOKEN }),
        ("stale complete", JobEvent::Complete { token: STALE }),
        ("fail retryable", fail(FailureClass::Retryable)),
        ("fail permanent", fail(FailureClass::Permanent)),
        ("unavailable", fail(FailureClass::Unavailable)),
        ("crash", fail(FailureClass::Crashed)),
        ("killed", fail(FailureClass::Killed)),
        ("stale fail", JobEvent::Fail { token: STALE, class: FailureClass::Retryable, advanced: false }),
        ("release", JobEvent::Release { token: TOKEN, advanced: false }),
        ("stale release", JobEvent::Release { token: STALE, advanced: false }),
        ("expire", JobEvent::Expire { advanced: false }),
        ("give up waiting", JobEvent::GiveUpWaiting { limit: Duration::ZERO }),
        ("retry", JobEvent::RequestRetry),
        ("pause", JobEvent::RequestPause),
        ("resume", JobEvent::RequestResume),
        ("cancel", JobEvent::RequestCancel),
    ]
}

fn show(result: Result<JobLife, InvalidJobEvent>) -> String {
    match result {
        Ok(life) => {
            let status = life.state.status().as_str();
            match life.state {
                JobState::Queued { not_before } if not_before > NOW => format!("{status} in {}", not_before - NOW),
                _ => status.to_owned(),
            }
        }
        Err(InvalidJobEvent::StaleLease) => "(stale)".to_owned(),
        Err(InvalidJobEvent::WrongState) => "-".to_owned(),
    }
}

fn check(counts: Counts, expected: Expect) {
    let retry = RetryPolicy { max_attempts: 3, backoff_ms: 500, backoff_max_ms: 60_000 };
    let mut table = String::new();
    for (state_name, state) in states() {
        for (event_name, event) in events() {
            let life = JobLife { state, counts, retry };
            let outcome = show(life.advance(NOW, event));
            if outcome != "-" && outcome != "(stale)" {
                table.push_str(&format!("{state_name:<20} {event_name:<15} {outcome}\n"));
            }
        }
    }
    expected.assert_eq(&table);
}

/// Checks every (state, event) pair. A pair that is not listed is rejected.
#[test]
fn every_pair() {
    check(
        Counts::default(),
        expect![[r#"
            queued               claim           RUNNING
            queued               pause           PAUSED
            queued               resume          QUEUED
            queued               cancel          CANCELLED
            backing off          pause           PAUSED
            backing off          resume          QUEUED in 5s
            backing off          cancel          CANCELLED
            leased               heartbeat       RUNNING
            leased               complete        SUCCEEDED
            leased               fail retryable  QUEUED in 500ms
            leased               fail permanent  FAILED
            leased               unavailable     QUEUED in 500ms
            leased               crash           QUEUED in 500ms
            leased               killed          QUEUED in 500ms
            leased               release         QUEUED
            leased               pause           PAUSING
            leased               resume          RUNNING
            leased               cancel          CANCELLING
            pausing              heartbeat       PAUSING
            pausing              complete        SUCCEEDED
            pausing              fail retryable  PAUSED
            pausing              fail permanent  FAILED
            pausing              unavailable     PAUSED
            pausing              crash           PAUSED
            pausing              killed          PAUSED
            pausing              release         PAUSED
            pausing              pause           PAUSING
            pausing              resume          RUNNING
            pausing              cancel          CANCELLING
            cancelling           heartbeat       CANCELLING
            cancelling           complete        SUCCEEDED
            cancelling           fail retryable  CANCELLED
            cancelling           fail permanent  FAILED
            cancelling           unavailable     CANCELLED
            cancelling           crash           CANCELLED
            cancelling           killed          CANCELLED
            cancelling           release         CANCELLED
            cancelling           cancel          CANCELLING
            lease ran out        expire          QUEUED
            lease ran out        pause           PAUSING
            lease ran out        resume          RUNNING
            lease ran out        cancel          CANCELLING
            pausing, ran out     expire          PAUSED
            pausing, ran out     pause           PAUSING
            pausing, ran out     resume          RUNNING
            pausing, ran out     cancel          CANCELLING
            cancelling, ran out  expire          CANCELLED
            cancelling, ran out  cancel          CANCELLING
            paused               pause           PAUSED
            paused               resume          QUEUED
            paused               cancel          CANCELLED
            failed               retry           QUEUED
            cancelled            retry           QUEUED
            cancelled            cancel          CANCELLED
        "#]],
    );
}

#[test]
fn last_attempt() {
    check(
        Counts { failed: 2, lost: MAX_DEATHS - 2, crashed: 1, waits: 8, waiting_since: Some(NOW) },
        expect![[r#"
            queued               claim           RUNNING
            queued               give up waiting FAILED
            queued               pause           PAUSED
            queued               resume          QUEUED
            queued               cancel          CANCELLED
            backing off          give up waiting FAILED
            backing off          pause           PAUSED
            backing off          resume          QUEUED in 5s
            backing off          cancel          CANCELLED
            leased               heartbeat       RUNNING
            leased               complete        SUCCEEDED
            leased               fail retryable  FAILED
            leased               fail permanent  FAILED
            leased               unavailable     QUEUED in 30s
            leased               crash           FAILED
            leased               killed          FAILED
            leased               release         QUEUED
            leased               pause           PAUSING
            leased               resume          RUNNING
            leased               cancel          CANCELLING
            pausing              heartbeat       PAUSING
            pausing              complete        SUCCEEDED
            pausing              fail retryable  FAILED
            pausing              fail permanent  FAILED
            pausing              unavailable     PAUSED
            pausing              crash           FAILED
            pausing              killed          FAILED
            pausing              release         PAUSED
            pausing              pause           PAUSING
            pausing              resume          RUNNING
            pausing              cancel          CANCELLING
            cancelling           heartbeat       CANCELLING
            cancelling           complete        SUCCEEDED
            cancelling           fail retryable  CANCELLED
            cancelling           fail permanent  FAILED
            cancelling           unavailable     CANCELLED
            cancelling           crash           CANCELLED
            cancelling           killed          CANCELLED
            cancelling           release         CANCELLED
            cancelling           cancel          CANCELLING
            lease ran out        expire          FAILED
            lease ran out        pause           PAUSING
            lease ran out        resume          RUNNING
            lease ran out        cancel          CANCELLING
            pausing, ran out     expire          FAILED
            pausing, ran out     pause           PAUSING
            pausing, ran out     resume          RUNNING
            pausing, ran out     cancel          CANCELLING
            cancelling, ran out  expire          CANCELLED
            cancelling, ran out  cancel          CANCELLING
            paused               pause           PAUSED
            paused               resume          QUEUED
            paused               cancel          CANCELLED
            failed               retry           QUEUED
            cancelled            retry           QUEUED
            cancelled            cancel          CANCELLED
        "#]],
    );
}

/// The tables above leave out rejected events: the reason for the rejection depends only on the
/// event.
#[test]
fn refusals_say_whether_the_lease_was_lost() {
    for (state_name, state) in states() {
        for (event_name, event) in events() {
            let Err(error) =
                (JobLife { state, counts: Counts::default(), retry: RetryPolicy::default() }).advance(NOW, event)
            else {
                continue;
            };
            let expected = match event {
                JobEvent::Heartbeat { .. }
                | JobEvent::Complete { .. }
                | JobEvent::Fail { .. }
                | JobEvent::Release { .. } => InvalidJobEvent::StaleLease,
                JobEvent::Claim { .. }
                | JobEvent::Expire { .. }
                | JobEvent::GiveUpWaiting { .. }
                | JobEvent::RequestRetry
                | JobEvent::RequestPause
                | JobEvent::RequestResume
                | JobEvent::RequestCancel => InvalidJobEvent::WrongState,
            };
            assert_eq!(error, expected, "{state_name}, {event_name}");
        }
    }
}

/// A new state or event does not compile here, and then fails until the tables contain it.
#[test]
fn the_tables_leave_nothing_out() {
    let states: BTreeSet<usize> = states()
        .iter()
        .map(|(_, state)| match state {
            JobState::Queued { .. } => 0,
            JobState::Leased { directive: Directive::Run, .. } => 1,
            JobState::Leased { directive: Directive::Pause, .. } => 2,
            JobState::Leased { directive: Directive::Cancel, .. } => 3,
            JobState::Paused => 4,
            JobState::Succeeded => 5,
            JobState::Failed => 6,
            JobState::Cancelled => 7,
        })
        .collect();
    assert_eq!(states, (0..8).collect());
    let events: BTreeSet<usize> = events()
        .iter()
        .map(|(_, event)| match event {
            JobEvent::Claim { .. } => 0,
            JobEvent::Heartbeat { .. } => 1,
            JobEvent::Complete { .. } => 2,
            JobEvent::Fail { class: FailureClass::Retryable, .. } => 3,
            JobEvent::Fail { class: FailureClass::Permanent, .. } => 4,
            JobEvent::Release { .. } => 5,
            JobEvent::Expire { .. } => 6,
            JobEvent::RequestPause => 7,
            JobEvent::RequestResume => 8,
            JobEvent::RequestCancel => 9,
            JobEvent::Fail { class: FailureClass::Unavailable, .. } => 10,
            JobEvent::Fail { class: FailureClass::Crashed, .. } => 11,
            JobEvent::Fail { class: FailureClass::Killed, .. } => 12,
            JobEvent::GiveUpWaiting { .. } => 13,
            JobEvent::RequestRetry => 14,
        })
        .collect();
    assert_eq!(events, (0..15).collect());
}

#[test]
fn backoff_doubles_to_its_limit() {
    let retry = RetryPolicy::default();
    let waits: Vec<i128> = [1, 2, 3, 4, 8, 9, 40, u32::MAX].map(|n| retry.backoff(n).whole_milliseconds()).to_vec();
    assert_eq!(waits, [500, 1000, 2000, 4000, 60_000, 60_000, 60_000, 60_000]);
}

fn any_event() -> impl Strategy<Value = JobEvent> {
    let token = (0..4i64).prop_map(LeaseToken);
    let class = prop_oneof![
        Just(FailureClass::Retryable),
        Just(FailureClass::Permanent),
        Just(FailureClass::Unavailable),
        Just(FailureClass::Crashed),
        Just(FailureClass::Killed),
    ];
    prop_oneof![
        token.clone().prop_map(|token| JobEvent::Claim { token, worker: WORKER, lease: LEASE }),
        token.clone().prop_map(|token| JobEvent::Heartbeat { token, lease: LEASE }),
        token.clone().prop_map(|token| JobEvent::Complete { token }),
        (token.clone(), class, any::<bool>()).prop_map(|(token, class, advanced)| JobEvent::Fail {
            token,
            class,
            advanced
        }),
        (token, any::<bool>()).prop_map(|(token, advanced)| JobEvent::Release { token, advanced }),
        any::<bool>().prop_map(|advanced| JobEvent::Expire { advanced }),
        (0..20i64).prop_map(|s| JobEvent::GiveUpWaiting { limit: Duration::seconds(s) }),
        Just(JobEvent::RequestRetry),
        Just(JobEvent::RequestPause),
        Just(JobEvent::RequestResume),
        Just(JobEvent::RequestCancel),
    ]
}

proptest! {
    #[test]
    fn final_states_stay_and_attempts_are_bounded(steps in prop::collection::vec((0i64..8, any_event()), 0..60)) {
        let mut now = NOW;
        let mut life = JobLife::new(now, RetryPolicy::default());
        for (wait_s, event) in steps {
            now += Duration::seconds(wait_s);
            let before = life;
            if let Ok(after) = life.advance(now, event) {
                if before.state.is_final() && event != JobEvent::RequestRetry {
                    prop_assert_eq!(after.state, before.state);
                }
                life = after;
            }
            prop_assert!(life.counts.failed <= life.retry.max_attempts);
            prop_assert!(life.counts.crashed <= MAX_CRASHES && life.counts.deaths() <= MAX_DEATHS);
            prop_assert!(!life.counts.is_killer() || life.state.is_final());
        }
    }

    #[test]
    fn a_stale_token_changes_nothing(wait_s in 0i64..10, event in any_event()) {
        let life = JobLife {
            state: leased(Directive::Run, NOW + LEASE),
            counts: Counts::default(),
            retry: RetryPolicy::default(),
        };
        let now = NOW + Duration::seconds(wait_s);
        let token = match event {
            JobEvent::Heartbeat { token, .. }
            | JobEvent::Complete { token }
            | JobEvent::Fail { token, .. }
            | JobEvent::Release { token, .. } => token,
            _ => return Ok(()),
        };
        if token != TOKEN || now >= NOW + LEASE {
            prop_assert_eq!(life.advance(now, event), Err(InvalidJobEvent::StaleLease));
        }
    }
}

/// Claims the job once its wait is over, and ends the attempt with `event`. Also returns the
/// duration of the wait.
fn attempt(life: JobLife, now: &mut OffsetDateTime, event: JobEvent) -> (JobLife, Duration) {
    let JobState::Queued { not_before } = life.state else { panic!("{life:?}") };
    let waited = not_before.max(*now) - *now;
    *now += waited;
    let held = life.advance(*now, JobEvent::Claim { token: TOKEN, worker: WORKER, lease: LEASE }).unwrap();
    if matches!(event, JobEvent::Expire { .. }) {
        *now += LEASE;
    }
    (held.advance(*now, event).unwrap(), waited)
}

#[test]
fn r1_thirty_deaths_of_workers_do_not_fail_a_training_that_gets_on() {
    let (mut life, mut now) = (JobLife::new(NOW, RetryPolicy { max_attempts: 1, ..RetryPolicy::default() }), NOW);
    // Nine of ten workers die before saving anything.
    for death in 0..30 {
        life = attempt(life, &mut now, JobEvent::Expire { advanced: death % 10 == 9 }).0;
        assert_eq!((life.state, life.counts.failed), (JobState::Queued { not_before: now }, 0), "death {death}");
    }
    assert_eq!(life.counts, Counts::default(), "a death after progress is not counted");
}

#[test]
fn r1_failures_count_only_in_a_row() {
    let (mut life, mut now) = (JobLife::new(NOW, RetryPolicy { max_attempts: 2, ..RetryPolicy::default() }), NOW);
    for _ in 0..10 {
        for advanced in [false, true] {
            let failed = JobEvent::Fail { token: TOKEN, class: FailureClass::Retryable, advanced };
            life = attempt(life, &mut now, failed).0;
        }
    }
    let failed = JobEvent::Fail { token: TOKEN, class: FailureClass::Retryable, advanced: false };
    life = attempt(life, &mut now, failed).0;
    assert_eq!(attempt(life, &mut now, failed).0.state, JobState::Failed);
}

#[test]
fn s1_a_job_that_kills_what_runs_it_is_given_up_whatever_its_policy() {
    let retry = RetryPolicy { max_attempts: 100, ..RetryPolicy::default() };
    let ends = |class| JobEvent::Fail { token: TOKEN, class, advanced: false };
    // Failures and waits in between do not reset the count.
    let crash = [ends(FailureClass::Crashed), ends(FailureClass::Retryable), ends(FailureClass::Unavailable)];
    for (events, deaths) in [
        (vec![crash[0], crash[1], crash[2], crash[0]], MAX_CRASHES),
        (vec![JobEvent::Expire { advanced: false }; MAX_DEATHS as usize], MAX_DEATHS),
        (vec![ends(FailureClass::Killed); MAX_DEATHS as usize], MAX_DEATHS),
    ] {
        let (mut life, mut now) = (JobLife::new(NOW, retry), NOW);
        for event in events {
            assert!(matches!(life.state, JobState::Queued { .. }), "{life:?}");
            life = attempt(life, &mut now, event).0;
        }
        assert_eq!((life.state, life.counts.deaths()), (JobState::Failed, deaths));
    }
}

#[test]
fn r2_what_is_missing_outside_is_waited_for_until_the_site_gives_up() {
    let (mut life, mut now) = (JobLife::new(NOW, RetryPolicy { max_attempts: 1, ..RetryPolicy::default() }), NOW);
    let missing = JobEvent::Fail { token: TOKEN, class: FailureClass::Unavailable, advanced: false };
    let limit = Duration::hours(24);
    let mut waits = Vec::new();
    while life.advance(now, JobEvent::GiveUpWaiting { limit }) == Err(InvalidJobEvent::WrongState) {
        let (next, waited) = attempt(life, &mut now, missing);
        life = next;
        waits.push(waited.whole_milliseconds());
    }
    assert_eq!(waits[..9], [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    assert!(now - NOW >= limit && now - NOW < limit + LONGEST_WAIT, "{}", now - NOW);
    assert_eq!((life.counts.failed, life.counts.waits as usize), (0, waits.len()));
    // The owner can act meanwhile, and time spent paused does not count as waiting.
    let paused = life.advance(now, JobEvent::RequestPause).unwrap();
    let resumed = paused.advance(now, JobEvent::RequestResume).unwrap();
    assert_eq!(resumed.advance(now, JobEvent::GiveUpWaiting { limit }), Err(InvalidJobEvent::WrongState));
    assert_eq!(life.advance(now, JobEvent::RequestCancel).unwrap().state, JobState::Cancelled);
    let given_up = life.advance(now, JobEvent::GiveUpWaiting { limit }).unwrap();
    assert_eq!(given_up.state, JobState::Failed);
    assert_eq!(given_up.advance(now, JobEvent::RequestRetry).unwrap(), JobLife::new(now, life.retry));
}

#[test]
fn r2_errors_of_the_system_have_one_meaning() {
    use std::io::{Error, ErrorKind};
    let of = FailureClass::of_io;
    // ENOSPC, EDQUOT, EROFS, EMFILE, ENFILE, EAGAIN, ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ESTALE
    for code in [28, 122, 30, 24, 23, 11, 111, 110, 113, 116] {
        assert_eq!(of(&Error::from_raw_os_error(code)), FailureClass::Unavailable, "{code}");
        let wrapped = Error::other(Error::other(Error::from_raw_os_error(code)));
        assert_eq!(of(&wrapped), FailureClass::Unavailable, "{code}, wrapped");
    }
    // EIO, EACCES
    for code in [5, 13] {
        assert_eq!(of(&Error::from_raw_os_error(code)), FailureClass::Retryable, "{code}");
    }
    assert_eq!(of(&ErrorKind::InvalidData.into()), FailureClass::Permanent);
}
