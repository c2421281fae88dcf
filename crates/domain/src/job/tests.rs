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
    let fail = |class| JobEvent::Fail { token: TOKEN, class };
    vec![
        ("claim", JobEvent::Claim { token: TOKEN, worker: WORKER, lease: LEASE }),
        ("heartbeat", JobEvent::Heartbeat { token: TOKEN, lease: LEASE }),
        ("stale heartbeat", JobEvent::Heartbeat { token: STALE, lease: LEASE }),
        ("complete", JobEvent::Complete { token: TOKEN }),
        ("stale complete", JobEvent::Complete { token: STALE }),
        ("fail retryable", fail(FailureClass::Retryable)),
        ("fail permanent", fail(FailureClass::Permanent)),
        ("stale fail", JobEvent::Fail { token: STALE, class: FailureClass::Retryable }),
        ("release", JobEvent::Release { token: TOKEN }),
        ("stale release", JobEvent::Release { token: STALE }),
        ("expire", JobEvent::Expire),
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

fn check(failed_attempts: u32, expected: Expect) {
    let retry = RetryPolicy { max_attempts: 3, backoff_ms: 500, backoff_max_ms: 60_000 };
    let mut table = String::new();
    for (state_name, state) in states() {
        for (event_name, event) in events() {
            let life = JobLife { state, failed_attempts, retry };
            let outcome = show(life.advance(NOW, event));
            if outcome != "-" && outcome != "(stale)" {
                table.push_str(&format!("{state_name:<20} {event_name:<15} {outcome}\n"));
            }
        }
    }
    expected.assert_eq(&table);
}

/// Every (state, event) pair; a pair that is not listed is refused.
#[test]
fn every_pair() {
    check(
        0,
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
        leased               release         QUEUED
        leased               pause           PAUSING
        leased               resume          RUNNING
        leased               cancel          CANCELLING
        pausing              heartbeat       PAUSING
        pausing              complete        SUCCEEDED
        pausing              fail retryable  PAUSED
        pausing              fail permanent  FAILED
        pausing              release         PAUSED
        pausing              pause           PAUSING
        pausing              resume          RUNNING
        pausing              cancel          CANCELLING
        cancelling           heartbeat       CANCELLING
        cancelling           complete        SUCCEEDED
        cancelling           fail retryable  CANCELLED
        cancelling           fail permanent  FAILED
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
        cancelled            cancel          CANCELLED
    "#]],
    );
}

#[test]
fn last_attempt() {
    check(
        2,
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
        leased               fail retryable  FAILED
        leased               fail permanent  FAILED
        leased               release         QUEUED
        leased               pause           PAUSING
        leased               resume          RUNNING
        leased               cancel          CANCELLING
        pausing              heartbeat       PAUSING
        pausing              complete        SUCCEEDED
        pausing              fail retryable  FAILED
        pausing              fail permanent  FAILED
        pausing              release         PAUSED
        pausing              pause           PAUSING
        pausing              resume          RUNNING
        pausing              cancel          CANCELLING
        cancelling           heartbeat       CANCELLING
        cancelling           complete        SUCCEEDED
        cancelling           fail retryable  CANCELLED
        cancelling           fail permanent  FAILED
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
        cancelled            cancel          CANCELLED
    "#]],
    );
}

/// The tables above leave out what is refused: why it is refused depends on the event alone.
#[test]
fn refusals_say_whether_the_lease_was_lost() {
    for (state_name, state) in states() {
        for (event_name, event) in events() {
            let Err(error) = (JobLife { state, failed_attempts: 0, retry: RetryPolicy::default() }).advance(NOW, event)
            else {
                continue;
            };
            let expected = match event {
                JobEvent::Heartbeat { .. }
                | JobEvent::Complete { .. }
                | JobEvent::Fail { .. }
                | JobEvent::Release { .. } => InvalidJobEvent::StaleLease,
                JobEvent::Claim { .. }
                | JobEvent::Expire
                | JobEvent::RequestPause
                | JobEvent::RequestResume
                | JobEvent::RequestCancel => InvalidJobEvent::WrongState,
            };
            assert_eq!(error, expected, "{state_name}, {event_name}");
        }
    }
}

/// A state or an event that is added fails to compile here, and then fails until the tables have it.
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
            JobEvent::Expire => 6,
            JobEvent::RequestPause => 7,
            JobEvent::RequestResume => 8,
            JobEvent::RequestCancel => 9,
        })
        .collect();
    assert_eq!(events, (0..10).collect());
}

#[test]
fn backoff_doubles_to_its_limit() {
    let retry = RetryPolicy::default();
    let waits: Vec<i128> = [1, 2, 3, 4, 8, 9, 40, u32::MAX].map(|n| retry.backoff(n).whole_milliseconds()).to_vec();
    assert_eq!(waits, [500, 1000, 2000, 4000, 60_000, 60_000, 60_000, 60_000]);
}

fn any_event() -> impl Strategy<Value = JobEvent> {
    let token = (0..4i64).prop_map(LeaseToken);
    prop_oneof![
        token.clone().prop_map(|token| JobEvent::Claim { token, worker: WORKER, lease: LEASE }),
        token.clone().prop_map(|token| JobEvent::Heartbeat { token, lease: LEASE }),
        token.clone().prop_map(|token| JobEvent::Complete { token }),
        token.clone().prop_map(|token| JobEvent::Fail { token, class: FailureClass::Retryable }),
        token.clone().prop_map(|token| JobEvent::Fail { token, class: FailureClass::Permanent }),
        token.prop_map(|token| JobEvent::Release { token }),
        Just(JobEvent::Expire),
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
                if before.state.is_final() {
                    prop_assert_eq!(after.state, before.state);
                }
                prop_assert!(after.failed_attempts >= before.failed_attempts);
                life = after;
            }
            prop_assert!(life.failed_attempts <= life.retry.max_attempts);
        }
    }

    #[test]
    fn a_stale_token_changes_nothing(wait_s in 0i64..10, event in any_event()) {
        let life = JobLife { state: leased(Directive::Run, NOW + LEASE), failed_attempts: 0, retry: RetryPolicy::default() };
        let now = NOW + Duration::seconds(wait_s);
        let token = match event {
            JobEvent::Heartbeat { token, .. } | JobEvent::Complete { token } | JobEvent::Fail { token, .. } | JobEvent::Release { token } => token,
            _ => return Ok(()),
        };
        if token != TOKEN || now >= NOW + LEASE {
            prop_assert_eq!(life.advance(now, event), Err(InvalidJobEvent::StaleLease));
        }
    }
}
