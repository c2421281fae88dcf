//! Rate limiting for log lines that callers can trigger at will.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between two log lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Keeps one kind of line from filling the log.
#[derive(Debug, Default)]
pub struct Occasionally {
    last: Mutex<Option<(Instant, u64)>>,
}

impl Occasionally {
    /// Returns a limiter that has not logged yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: Mutex::new(None) }
    }

    /// Returns the number of lines suppressed since the last one if a line may be logged now, else
    /// `None`.
    pub fn now(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, left_out)) if at.elapsed() < INTERVAL => {
                *left_out += 1;
                None
            }
            last => Some(last.replace((Instant::now(), 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Occasionally;

    #[test]
    fn one_line_stands_for_many() {
        let lines = Occasionally::default();
        assert_eq!([lines.now(), lines.now(), lines.now()], [Some(0), None, None]);
    }
}
