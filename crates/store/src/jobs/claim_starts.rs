//! Where claims begin to look.
//!
//! A claimed job leaves a dead entry at the front of the index of claimable jobs, which every later claim has to pass
//! until Postgres may remove it, and it may not as long as any transaction (a dashboard, a dump) has a snapshot from
//! before. Where many are dead, a process therefore remembers how far the front was dead, begins there, and looks from
//! the very front for a small part of its time only. What is put back at the front waits for that, some seconds at
//! most. Where few are dead, as mostly, every claim begins at the front.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use inheritune_domain::spec::JobKind;

/// Dead rows of the queue from which on its front is avoided.
const CROWDED: i64 = 20_000;
/// Time between two counts of dead rows.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// After a look from the front, this many times what it took goes by before the next.
const SPARE: u32 = 20;
/// Longest time without a look from the front.
const MAX_SPARE: Duration = Duration::from_secs(5);

/// A place in the order of claims: negated priority, then sequence.
pub(super) type Place = (i32, i64);

/// The front.
pub(super) const FRONT: Place = (i32::MIN, i64::MIN);

/// What this process knows; all of it may be forgotten.
#[derive(Default)]
pub(crate) struct ClaimStarts(Mutex<Known>);

#[derive(Default)]
struct Known {
    counted: Option<Instant>,
    crowded: bool,
    kinds: HashMap<JobKind, Start>,
}

struct Start {
    place: Place,
    /// When a claim last looked from the front, and how long it took.
    looked: Instant,
    took: Duration,
}

impl ClaimStarts {
    /// Whether it is time to count the dead rows; says yes to one caller.
    pub(super) fn is_count_due(&self) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = known.counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY);
        if due {
            known.counted = Some(Instant::now());
        }
        due
    }

    pub(super) fn counted(&self, dead_rows: i64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.crowded = dead_rows >= CROWDED;
        if !known.crowded {
            known.kinds.clear();
        }
    }

    /// Where a claim of `kind` is to begin.
    pub(super) fn begin(&self, kind: JobKind) -> Place {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.crowded {
            return FRONT;
        }
        match known.kinds.get_mut(&kind) {
            Some(start) if start.looked.elapsed() < (start.took * SPARE).min(MAX_SPARE) => start.place,
            Some(start) => {
                // The others go on as before while this one looks.
                start.looked = Instant::now();
                FRONT
            }
            None => FRONT,
        }
    }

    /// A claim of `kind` that began at `from` found its first job at `first`.
    pub(super) fn found(&self, kind: JobKind, from: Place, (first, took): (Place, Duration)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.crowded {
            return;
        }
        let start = known.kinds.entry(kind).or_insert(Start { place: first, looked: Instant::now(), took });
        if from == FRONT {
            (start.looked, start.took) = (Instant::now(), took);
            start.place = first;
        } else {
            start.place = start.place.max(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: JobKind = JobKind::Train;

    fn found(starts: &ClaimStarts, from: Place, first: Place, took: Duration) {
        starts.found(KIND, from, (first, took));
    }

    #[test]
    fn a_front_with_few_dead_rows_is_never_avoided() {
        let starts = ClaimStarts::default();
        starts.counted(CROWDED - 1);
        found(&starts, FRONT, (0, 7), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), FRONT);
    }

    #[test]
    fn a_crowded_front_is_looked_at_now_and_then() {
        let starts = ClaimStarts::default();
        starts.counted(CROWDED);
        assert_eq!(starts.begin(KIND), FRONT);
        // A look that takes no time may be had at any time.
        found(&starts, FRONT, (0, 7), Duration::ZERO);
        assert_eq!(starts.begin(KIND), FRONT);
        found(&starts, FRONT, (0, 7), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), (0, 7));
        // Claims go on from there, whichever answers first.
        found(&starts, (0, 7), (0, 9), Duration::ZERO);
        found(&starts, (0, 7), (0, 8), Duration::ZERO);
        assert_eq!(starts.begin(KIND), (0, 9));
        // A look from the front finds what was put back there.
        found(&starts, FRONT, (-1, 3), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), (-1, 3));
        assert_eq!(starts.begin(JobKind::Slice), FRONT);
        starts.counted(0);
        starts.counted(CROWDED);
        assert_eq!(starts.begin(KIND), FRONT);
    }

    #[test]
    fn one_caller_looks_while_the_others_go_on() {
        let starts = ClaimStarts::default();
        starts.counted(CROWDED);
        found(&starts, FRONT, (0, 7), Duration::from_millis(1));
        // The spare time of so short a look is over soon.
        std::thread::sleep(Duration::from_millis(1) * (SPARE + 5));
        assert_eq!(starts.begin(KIND), FRONT);
        found(&starts, FRONT, (0, 8), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), (0, 8));
        assert!(starts.is_count_due());
        assert!(!starts.is_count_due());
    }
}
