//! Pause, resume and cancel. The scheduler accepts such a request at once but acts on it a little
//! later, so the client polls until the status reflects the request.

use std::time::{Duration, Instant};

use inheritune_api::v1::JobStatus;

use crate::failure::Failure;
use crate::screen::is_final;

/// Longest wait. After it, the newest status is printed anyway.
const WAIT_FOR: Duration = Duration::from_secs(5);
/// Time between two polls.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Cancel,
    Pause,
    Resume,
}

impl Asked {
    /// Whether this status reflects the request, or is final and never will.
    fn shows_in(self, status: i32) -> bool {
        let status_is = |known: &[JobStatus]| known.iter().any(|known| i32::from(*known) == status);
        is_final(status)
            || match self {
                Self::Cancel => status_is(&[JobStatus::Cancelling]),
                Self::Pause => status_is(&[JobStatus::Pausing, JobStatus::Paused, JobStatus::Cancelling]),
                Self::Resume => !status_is(&[JobStatus::Pausing, JobStatus::Paused]),
            }
    }

    /// Polls with `look`, starting from `first`, until the status reflects the request or
    /// [`WAIT_FOR`] has passed. Returns the newest value.
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
