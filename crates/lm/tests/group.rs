//! Process groups that sum tensors. Threads stand in for processes, each with its own connections.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use inheritune_lm::group::{Group, Patience, Rendezvous};

const PATIENCE: Patience = Patience { join: Duration::from_secs(20), exchange: Duration::from_secs(20) };

/// Runs `work` on every rank of a group of `size`.
fn together(size: u32, patience: Patience, work: impl Fn(u32, Group) + Send + Copy + 'static) {
    let rendezvous = Rendezvous::open(PATIENCE.join).unwrap();
    let port = rendezvous.port();
    let others: Vec<_> = (1..size)
        .map(|rank| {
            std::thread::spawn(move || {
                let rendezvous = Rendezvous::reach(port, PATIENCE.join).unwrap();
                work(rank, Group::join(rendezvous, (rank, size), patience).unwrap());
            })
        })
        .collect();
    work(0, Group::join(rendezvous, (0, size), patience).unwrap());
    others.into_iter().for_each(|other| other.join().unwrap());
}

#[test]
fn numbers_are_added_up_over_all() {
    together(3, PATIENCE, |rank, group| {
        for round in 0..5 {
            let found = group.sum(&[f64::from(rank), f64::from(round), 1.0]).unwrap();
            assert_eq!(found, [3.0, 3.0 * f64::from(round), 3.0]);
        }
        assert!(group.sum(&[if rank == 1 { f64::NAN } else { 1.0 }]).unwrap()[0].is_nan());
    });
}

#[test]
fn an_exchange_is_waited_for_longer_than_a_start() {
    let patience = Patience { join: Duration::from_secs(2), ..PATIENCE };
    together(2, patience, |rank, group| {
        if rank == 0 {
            // For example while rank 0 measures.
            std::thread::sleep(Duration::from_secs(3));
        }
        assert_eq!(group.sum(&[1.0]).unwrap(), [2.0]);
    });
}

#[test]
fn who_does_not_come_or_leaves_is_an_error_in_time() {
    let started = Instant::now();
    let patience = Patience { join: Duration::from_secs(1), ..PATIENCE };
    let alone = Rendezvous::open(patience.join).unwrap();
    assert!(Group::join(alone, (0, 2), patience).is_err());
    // A port without a listener.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(Rendezvous::reach(closed, patience.join).is_err());
    together(2, PATIENCE, |rank, group| {
        if rank == 1 {
            drop(group);
        } else {
            assert!(group.sum(&[1.0]).is_err());
        }
    });
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}
