//! Metric points: fences, repeated points, filters.
#![allow(clippy::unwrap_used)]

mod support;

use inheritune_domain::job::MetricPoint;
use inheritune_domain::spec::JobKind;
use inheritune_store::StoreError;
use support::{let_lease_run_out, store, submit_and_claim};

fn point(name: &str, step: u64, value: f64) -> MetricPoint {
    MetricPoint { step, tokens_seen: step * 256, name: name.to_owned(), value }
}

#[tokio::test]
async fn points_come_back_by_step_and_name() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let points = [point("train_loss", 20, 4.0), point("train_loss", 10, 5.0), point("learning_rate", 10, 1e-3)];
    store.add_metrics(lease.key, &points).await.unwrap();
    store.add_metrics(lease.key, &[]).await.unwrap();
    let job = lease.key.job;
    let all = store.metrics(job, &[], None).await.unwrap();
    assert_eq!(all, [points[2].clone(), points[1].clone(), points[0].clone()]);
    assert_eq!(store.metrics(job, &["train_loss"], None).await.unwrap(), [points[1].clone(), points[0].clone()]);
    assert_eq!(store.metrics(job, &["train_loss", "learning_rate"], None).await.unwrap(), all);
    assert_eq!(store.metrics(job, &[], Some(10)).await.unwrap(), [points[0].clone()]);
    assert!(store.metrics(job, &["nothing"], None).await.unwrap().is_empty());
    let other = submit_and_claim(&store, JobKind::Train).await;
    assert!(store.metrics(other.key.job, &[], None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_resumed_job_overwrites_the_steps_it_does_again() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    store.add_metrics(lease.key, &[point("train_loss", 10, 5.0), point("train_loss", 20, 4.0)]).await.unwrap();
    // Within one call, the last point of a step counts.
    let again = [point("train_loss", 20, 3.5), point("train_loss", 30, 3.0), point("train_loss", 30, 2.9)];
    store.add_metrics(lease.key, &again).await.unwrap();
    let values: Vec<f64> = store.metrics(lease.key.job, &[], None).await.unwrap().iter().map(|p| p.value).collect();
    assert_eq!(values, [5.0, 3.5, 2.9]);
}

#[tokio::test]
async fn a_stale_worker_writes_no_points() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    store.add_metrics(lease.key, &[point("train_loss", 10, 5.0)]).await.unwrap();
    let_lease_run_out(&store, &lease).await;
    let refused = store.add_metrics(lease.key, &[point("train_loss", 10, 1.0), point("train_loss", 20, 1.0)]).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost(_))), "{refused:?}");
    assert_eq!(store.metrics(lease.key.job, &[], None).await.unwrap(), [point("train_loss", 10, 5.0)]);
}

#[tokio::test]
async fn many_points_at_once_and_values_that_are_no_numbers() {
    let store = store().await;
    let lease = submit_and_claim(&store, JobKind::Train).await;
    let points: Vec<MetricPoint> = (0..12_000).map(|step| point("train_loss", step, step as f64)).collect();
    store.add_metrics(lease.key, &points).await.unwrap();
    assert_eq!(store.metrics(lease.key.job, &[], None).await.unwrap(), points);
    // A curve may show where training diverged.
    store.add_metrics(lease.key, &[point("broken", 1, f64::NAN), point("broken", 2, f64::INFINITY)]).await.unwrap();
    let broken = store.metrics(lease.key.job, &["broken"], None).await.unwrap();
    assert!(broken[0].value.is_nan() && broken[1].value == f64::INFINITY);
}
