//! Evaluation units: one worker at a time claims a unit, which is free again when the lease
//! expires, and results are kept.
#![allow(clippy::unwrap_used)]

mod support;

use inheritune_domain::id::Sha256Digest;
use inheritune_domain::job::Directive;
use inheritune_domain::spec::JobKind;
use inheritune_store::evaluation_units::{FinishedUnit, NewUnit};
use inheritune_store::jobs::LeaseKey;
use inheritune_store::{Store, StoreError};
use support::{let_lease_run_out, new_job, store, submit_and_claim};

/// Returns three units of ten documents. Units with a different `flavour` have different questions.
fn units(flavour: u8) -> Vec<NewUnit> {
    (0..3_u64)
        .map(|unit| NewUnit {
            task: "piqa".to_owned(),
            items: unit * 10..unit * 10 + 10,
            digest: Sha256Digest::of(&[flavour, unit as u8]),
        })
        .collect()
}

async fn taken(store: &Store, lease: LeaseKey, of: LeaseKey) -> Option<u32> {
    store.claim_unit(lease, of.job).await.unwrap().map(|(unit, _)| unit)
}

fn answered(unit: u32, bytes: &[u8]) -> FinishedUnit {
    FinishedUnit { unit, found: Ok(bytes.to_vec()) }
}

#[tokio::test]
async fn each_part_is_one_worker_s_until_it_is_measured() {
    let store = store().await;
    let leader = submit_and_claim(&store, JobKind::Evaluate).await.key;
    let helper = submit_and_claim(&store, JobKind::Evaluate).await.key;
    assert_eq!(taken(&store, leader, leader).await, None);
    store.register_units(leader, &units(0)).await.unwrap();
    let (unit, digest) = store.claim_unit(leader, leader.job).await.unwrap().unwrap();
    assert_eq!((unit, digest), (0, units(0)[0].digest));
    assert_eq!(taken(&store, helper, leader).await, Some(1));
    assert_eq!(taken(&store, leader, leader).await, Some(2));
    assert_eq!(taken(&store, helper, leader).await, None);

    // The helper cannot finish this unit, and no unit is finished twice.
    let refused = store.finish_unit(helper, leader.job, 0, Ok(b"x")).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost(job)) if job == helper.job));
    store.finish_unit(leader, leader.job, 0, Ok(b"zero")).await.unwrap();
    assert!(store.finish_unit(leader, leader.job, 0, Ok(b"again")).await.is_err());
    store.finish_unit(helper, leader.job, 1, Err("row 12 is bad")).await.unwrap();
    let failed = FinishedUnit { unit: 1, found: Err("row 12 is bad".to_owned()) };
    assert_eq!(store.finished_units(leader.job, &[]).await.unwrap(), [answered(0, b"zero"), failed]);
    assert_eq!(store.finished_units(leader.job, &[1]).await.unwrap(), [answered(0, b"zero")]);
    let query = "SELECT string_agg(concat_ws(' ', unit, status, error), ', ' ORDER BY unit) FROM ops.evaluation_units";
    let shown: String = sqlx::query_scalar(query).fetch_one(store.pool()).await.unwrap();
    assert_eq!(shown, "0 SUCCEEDED, 1 FAILED row 12 is bad, 2 RUNNING");
}

#[tokio::test]
async fn a_lost_lease_frees_its_part_and_writes_nothing() {
    let store = store().await;
    let leader = submit_and_claim(&store, JobKind::Evaluate).await.key;
    store.register_units(leader, &units(0)).await.unwrap();
    let lease = submit_and_claim(&store, JobKind::Evaluate).await;
    let helper = lease.key;
    assert_eq!(taken(&store, helper, leader).await, Some(0));
    let_lease_run_out(&store, &lease).await;
    assert!(matches!(store.finish_unit(helper, leader.job, 0, Ok(b"late")).await, Err(StoreError::LeaseLost(_))));
    assert!(matches!(store.claim_unit(helper, leader.job).await, Err(StoreError::LeaseLost(_))));
    assert!(matches!(store.register_units(helper, &units(0)).await, Err(StoreError::LeaseLost(_))));
    assert_eq!(taken(&store, leader, leader).await, Some(0));
    assert!(store.finished_units(leader.job, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn another_attempt_keeps_what_still_asks_the_same() {
    let store = store().await;
    let leader = submit_and_claim(&store, JobKind::Evaluate).await.key;
    store.register_units(leader, &units(0)).await.unwrap();
    for unit in 0..2 {
        assert_eq!(taken(&store, leader, leader).await, Some(unit));
        store.finish_unit(leader, leader.job, unit, Ok(&[unit as u8])).await.unwrap();
    }
    store.register_units(leader, &units(0)).await.unwrap();
    assert_eq!(store.finished_units(leader.job, &[]).await.unwrap().len(), 2);
    // The second unit has changed, and the third one is gone.
    let changed = vec![units(0)[0].clone(), units(1)[1].clone()];
    store.register_units(leader, &changed).await.unwrap();
    assert_eq!(store.finished_units(leader.job, &[]).await.unwrap(), [answered(0, &[0])]);
    assert_eq!(store.claim_unit(leader, leader.job).await.unwrap(), Some((1, changed[1].digest)));
    assert_eq!(taken(&store, leader, leader).await, None);
}

#[tokio::test]
async fn a_job_that_is_told_to_stop_gives_no_more_parts() {
    let store = store().await;
    let leader = submit_and_claim(&store, JobKind::Evaluate).await.key;
    let helper = submit_and_claim(&store, JobKind::Evaluate).await.key;
    store.register_units(leader, &units(0)).await.unwrap();
    assert_eq!(taken(&store, helper, leader).await, Some(0));
    store.request_job(leader.job, Directive::Cancel).await.unwrap();
    assert_eq!(taken(&store, helper, leader).await, None);
}

#[tokio::test]
async fn only_a_job_that_nobody_took_is_withdrawn() {
    let store = store().await;
    let waiting = store.submit_job(&new_job(JobKind::Evaluate), None).await.unwrap().id;
    assert!(store.is_unclaimed(waiting).await.unwrap());
    assert!(store.withdraw_job(waiting).await.unwrap());
    assert!(matches!(store.job(waiting).await, Err(StoreError::NotFound { .. })));
    assert!(!store.withdraw_job(waiting).await.unwrap() && !store.is_unclaimed(waiting).await.unwrap());
    let held = submit_and_claim(&store, JobKind::Evaluate).await.key;
    assert!(!store.is_unclaimed(held.job).await.unwrap());
    assert!(!store.withdraw_job(held.job).await.unwrap());
    store.release_job(held, "shutdown").await.unwrap();
    assert!(!store.withdraw_job(held.job).await.unwrap(), "a job that was claimed before cannot be withdrawn");
}
