//! Where claims start to search the queue.
//!
//! A claimed job leaves a dead entry at the front of the index of claimable jobs. Every later claim
//! has to skip it until Postgres removes it, which is impossible while any transaction, such as a
//! dashboard or a dump, has an older snapshot. If there are many dead entries, a process remembers
//! how far they reach and starts there. It searches from the very front only for a small share of
//! its time, so a job that returns to the front may wait for a few seconds. Usually there are few
//! dead entries, and every claim starts at the front.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use inheritune_domain::spec::JobKind;

/// Number of dead rows in the queue from which claims avoid its front.
const CROWDED: i64 = 20_000;
/// Time between two counts of dead rows.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Time between two searches from the front, as a multiple of the duration of the first.
const SPARE: u32 = 20;
/// Longest time between two searches from the front.
const MAX_SPARE: Duration = Duration::from_secs(5);

/// A position in the order of claims: negated priority, then sequence number.
pub(super) type Place = (i32, i64);

/// The front of the queue.
pub(super) const FRONT: Place = (i32::MIN, i64::MIN);

/// The start positions that this process remembers. They are only an optimization.
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
    /// When a claim last searched from the front.
    looked: Instant,
    /// How long that claim took.
    took: Duration,
}

impl ClaimStarts {
    /// Returns whether it is time to count the dead rows. Returns `true` to only one caller.
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

    /// Returns the position at which a claim of `kind` starts.
    pub(super) fn begin(&self, kind: JobKind) -> Place {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.crowded {
            return FRONT;
        }
        match known.kinds.get_mut(&kind) {
            Some(start) if start.looked.elapsed() < (start.took * SPARE).min(MAX_SPARE) => start.place,
            Some(start) => {
                // Other callers keep using the old position during this search.
                start.looked = Instant::now();
                FRONT
            }
            None => FRONT,
        }
    }

    /// Records that a claim of `kind` that started at `from` found its first job at `first`.
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
        // A search that took no time may be repeated at any time.
        found(&starts, FRONT, (0, 7), Duration::ZERO);
        assert_eq!(starts.begin(KIND), FRONT);
        found(&starts, FRONT, (0, 7), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), (0, 7));
        // Later claims start at the greatest position, in whichever order their results arrive.
        found(&starts, (0, 7), (0, 9), Duration::ZERO);
        found(&starts, (0, 7), (0, 8), Duration::ZERO);
        assert_eq!(starts.begin(KIND), (0, 9));
        // A search from the front finds a job that returned there.
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
        // The wait after such a short search is over soon.
        std::thread::sleep(Duration::from_millis(1) * (SPARE + 5));
        assert_eq!(starts.begin(KIND), FRONT);
        found(&starts, FRONT, (0, 8), Duration::from_secs(60));
        assert_eq!(starts.begin(KIND), (0, 8));
        assert!(starts.is_count_due());
        assert!(!starts.is_count_due());
    }
}
