//! Pause, resume and cancel: the scheduler takes such a request at once and carries it out a moment later, so the status
//! is asked for until the request shows in it.

use std::time::{Duration, Instant};

use inheritune_api::v1::JobStatus;

use crate::failure::Failure;
use crate::screen::is_final;

/// Longest wait; what then is printed is the newest status all the same.
const WAIT_FOR: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Cancel,
    Pause,
    Resume,
}

impl Asked {
    /// Whether a run or job with this status has heard of it; one that has ended never will.
    fn shows_in(self, status: i32) -> bool {
        let status_is = |known: &[JobStatus]| known.iter().any(|known| i32::from(*known) == status);
        is_final(status)
            || match self {
                Self::Cancel => status_is(&[JobStatus::Cancelling]),
                Self::Pause => status_is(&[JobStatus::Pausing, JobStatus::Paused, JobStatus::Cancelling]),
                Self::Resume => !status_is(&[JobStatus::Pausing, JobStatus::Paused]),
            }
    }

    /// `first`, or what `look` finds as soon as its status shows the request.
    pub(super) async fn shown<T>(
        self,
        first: T,
        status: impl Fn(&T) -> i32,
        look: impl AsyncFn() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let asked_at = Instant::now();
        let mut newest = first;
        while !self.shows_in(status(&newest)) && asked_at.elapsed() < WAIT_FOR {
            tokio::time::sleep(LOOK_EVERY).await;
            newest = look().await?;
        }
        Ok(newest)
    }
}
