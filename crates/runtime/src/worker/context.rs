//! What a handler is given: the store, its lease, a stop signal, a progress sender, a folder.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use inheritune_checkpoint::config_json;
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::needed_files::needed_files;
use inheritune_checkpoint::safetensors_header::SINGLE_FILE;
use inheritune_checkpoint::shard_index::{INDEX_FILE, MAX_INDEX_BYTES};
use inheritune_checkpoint::weights_files::CONFIG_FILE;
use inheritune_domain::artifact::Location;
use inheritune_domain::job::{FailureClass, Progress};
use inheritune_domain::spec::Ceilings;
use inheritune_objects::{FileCache, Folder, ObjectError};
use inheritune_store::jobs::LeaseKey;
use inheritune_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest file of settings.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why an attempt ended without an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum JobError {
    /// Another attempt may do better.
    #[error("{0}")]
    Retryable(String),
    /// No attempt can: bad input.
    #[error("{0}")]
    Permanent(String),
    /// What the job needs from outside is missing for now: a full disk, an object store or a database that does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The process that ran the job died by its own doing.
    #[error("{0}")]
    Crashed(String),
    /// The process that ran the job was killed from outside.
    #[error("{0}")]
    Killed(String),
    /// The handler was told to stop, and did; the job goes back to the queue without a lost attempt.
    #[error("stopped")]
    Stopped,
}

impl JobError {
    /// The error of a class.
    pub fn new(class: FailureClass, message: String) -> Self {
        match class {
            FailureClass::Retryable => Self::Retryable(message),
            FailureClass::Permanent => Self::Permanent(message),
            FailureClass::Unavailable => Self::Unavailable(message),
            FailureClass::Crashed => Self::Crashed(message),
            FailureClass::Killed => Self::Killed(message),
        }
    }

    /// What an error of the system at `place`, a file or whatever was asked for, means for the job.
    pub fn io(place: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(FailureClass::of_io(error), format!("{place}: {error}"))
    }

    /// Its class and message; none when the handler was told to stop.
    pub fn failure(self) -> Option<(FailureClass, String)> {
        match self {
            Self::Retryable(message) => Some((FailureClass::Retryable, message)),
            Self::Permanent(message) => Some((FailureClass::Permanent, message)),
            Self::Unavailable(message) => Some((FailureClass::Unavailable, message)),
            Self::Crashed(message) => Some((FailureClass::Crashed, message)),
            Self::Killed(message) => Some((FailureClass::Killed, message)),
            Self::Stopped => None,
        }
    }

    /// The same error, with what it is about before its message, unless that says so already.
    #[must_use]
    pub fn about(self, subject: &str) -> Self {
        let named = |message: String| match message.strip_prefix(subject) {
            Some(rest) if rest.starts_with([':', ' ']) => message,
            Some(_) | None => format!("{subject}: {message}"),
        };
        match self.failure() {
            Some((class, message)) => Self::new(class, named(message)),
            None => Self::Stopped,
        }
    }
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LeaseLost(_) => Self::Stopped,
            error => Self::new(error.class(), error.to_string()),
        }
    }
}

impl From<ObjectError> for JobError {
    fn from(error: ObjectError) -> Self {
        Self::new(error.class(), error.to_string())
    }
}

/// Why a handler is to stop; the graver one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The process ends: save, another worker goes on.
    Shutdown,
    /// The owner wants it paused: save.
    Pause,
    /// The owner no longer wants it: nothing needs saving.
    Cancel,
    /// Another worker may have the job: whatever is written from here on is refused.
    LeaseLost,
}

impl StopReason {
    const ALL: [Self; 4] = [Self::Shutdown, Self::Pause, Self::Cancel, Self::LeaseLost];
}

/// Tells a handler to stop. Clones share one state; every method may be called from any thread.
#[derive(Debug, Clone, Default)]
pub struct StopSignal {
    // 0: go on; else 1 + the reason's place in `StopReason::ALL`, which is ordered by gravity.
    reason: Arc<AtomicU8>,
    raised: CancellationToken,
}

impl StopSignal {
    /// The reason to stop, if there is one. Costs an atomic load.
    pub fn requested(&self) -> Option<StopReason> {
        let place = usize::from(self.reason.load(Ordering::Acquire)).checked_sub(1)?;
        StopReason::ALL.get(place).copied()
    }

    /// Waits until there is a reason to stop.
    pub async fn wait(&self) -> StopReason {
        self.raised.cancelled().await;
        // Raised only after a reason was stored.
        self.requested().unwrap_or(StopReason::LeaseLost)
    }

    /// Asks to stop. A graver reason replaces a lighter one.
    pub fn request(&self, reason: StopReason) {
        self.reason.fetch_max(reason as u8 + 1, Ordering::AcqRel);
        self.raised.cancel();
    }
}

/// Takes a handler's progress to the next heartbeat. Clones share one state; never blocks.
#[derive(Debug, Clone)]
pub struct ProgressSender {
    newest: watch::Sender<Option<Progress>>,
}

impl Default for ProgressSender {
    fn default() -> Self {
        Self { newest: watch::Sender::new(None) }
    }
}

impl ProgressSender {
    /// Replaces the progress that the next heartbeat sends.
    pub fn set(&self, progress: Progress) {
        self.newest.send_replace(Some(progress));
    }

    /// Waits until there was none for so long.
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut changes = self.newest.subscribe();
        while tokio::time::timeout(limit, changes.changed()).await.is_ok() {}
    }

    /// The newest progress.
    pub fn newest(&self) -> Option<Progress> {
        self.newest.borrow().clone()
    }
}

/// What a handler is given for one attempt.
#[derive(Clone)]
pub struct JobContext {
    /// The tables and the objects.
    pub store: Store,
    /// The attempt's lease: what it writes carries it.
    pub lease: LeaseKey,
    /// Look at it often.
    pub stop: StopSignal,
    /// Tell it often.
    pub progress: ProgressSender,
    /// An empty folder for this attempt, removed after it.
    pub cache_dir: PathBuf,
    /// What this and other attempts fetched.
    pub fetched: FileCache,
    /// Threads of the computation; the library's own choice when absent.
    pub threads: Option<usize>,
    /// How long the lease lasts at least, as far as is known: it grows with each heartbeat.
    pub lease_until: watch::Receiver<Instant>,
    /// What a job may be at most on this machine.
    pub ceilings: Ceilings,
}

impl JobContext {
    /// Brings the files of `location` into the folder `name` of [`Self::cache_dir`], digests verified where known,
    /// and gives back its path. The files are not to be written to.
    ///
    /// # Errors
    /// The location is not readable or not allowed, or a file is not what its manifest says;
    /// [`JobError::Stopped`] when told to stop meanwhile.
    pub async fn fetch(&self, location: &Location, name: &str) -> Result<PathBuf, JobError> {
        self.unless_stopped(async { self.fetch_folder(&self.store.open(location).await?, name).await }).await
    }

    /// As [`Self::fetch`], of a model: its `config.json` is read and checked against the ceilings first, and of its folder
    /// only what a model is loaded from comes here. Gives back its shape as well.
    ///
    /// # Errors
    /// As [`Self::fetch`]; it is no model that is known, or more than this machine's ceilings allow.
    pub async fn fetch_checkpoint(
        &self,
        location: &Location,
        name: &str,
    ) -> Result<(PathBuf, DecoderConfig), JobError> {
        let bad = |problem: String| JobError::Permanent(format!("checkpoint {location}: {problem}"));
        let fetched = async {
            let folder = self.store.open(location).await?;
            if !folder.has(CONFIG_FILE) {
                return Err(bad(format!("{CONFIG_FILE} is missing: a Hugging Face model folder is expected")));
            }
            let config = folder.read(CONFIG_FILE, MAX_CONFIG_BYTES).await?;
            let config = config_json::parse(&config).map_err(|e| bad(format!("{CONFIG_FILE}: {e}")))?;
            let config = DecoderConfig::from_hf(&config.json).map_err(|e| bad(e.to_string()))?;
            self.ceilings.check_model(&config).map_err(bad)?;
            let index = if folder.has(SINGLE_FILE) || !folder.has(INDEX_FILE) {
                None
            } else {
                Some(folder.read(INDEX_FILE, MAX_INDEX_BYTES).await?)
            };
            let files = folder.files().iter().map(|file| (file.name.as_str(), file.size_bytes));
            let needed = folder.only(&needed_files(files, index.as_deref()));
            Ok((self.fetch_folder(&needed, name).await?, config))
        };
        self.unless_stopped(fetched).await
    }

    async fn fetch_folder(&self, folder: &Folder, name: &str) -> Result<PathBuf, JobError> {
        self.ceilings.check_bytes(folder.size_bytes()).map_err(JobError::Permanent)?;
        let dir = self.cache_dir.join(name);
        tokio::fs::create_dir_all(&dir).await.map_err(|e| JobError::io(dir.display(), &e))?;
        folder.fetch_cached(&dir, &self.fetched).await?;
        Ok(dir)
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, JobError>>) -> Result<T, JobError> {
        tokio::select! {
            done = work => done,
            _ = self.stop.wait() => Err(JobError::Stopped),
        }
    }

    /// Runs `work` on an operating-system thread of its own, called `name`, so that nothing else of the process
    /// waits for it. Dropping the future does not end the thread: `work` has to look at [`Self::stop`].
    ///
    /// # Errors
    /// What `work` returns; a panic in it is [`JobError::Retryable`].
    pub async fn run_blocking<T, F>(&self, name: &str, work: F) -> Result<T, JobError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, JobError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _entered = span.enter();
                let result = std::panic::catch_unwind(AssertUnwindSafe(work))
                    .unwrap_or_else(|panic| Err(panic_error(panic.as_ref())));
                // The receiver is gone when the attempt was given up: nobody wants the result.
                let _unwanted = sender.send(result);
            })
            .map_err(|e| JobError::io(format!("thread {name}"), &e))?;
        receiver.await.unwrap_or_else(|_| Err(JobError::Retryable(format!("thread {name} ended without a result"))))
    }
}

/// The error that a panic becomes. Retryable: a second attempt may meet another moment; a true bug uses up the
/// attempts and then fails the job.
pub(super) fn panic_error(panic: &(dyn Any + Send)) -> JobError {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    JobError::Retryable(format!("panicked: {message}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_graver_reason_wins() {
        let stop = StopSignal::default();
        assert_eq!(stop.requested(), None);
        stop.request(StopReason::Pause);
        assert_eq!(stop.wait().await, StopReason::Pause);
        stop.request(StopReason::Shutdown);
        assert_eq!(stop.requested(), Some(StopReason::Pause));
        stop.clone().request(StopReason::LeaseLost);
        stop.request(StopReason::Cancel);
        assert_eq!(stop.requested(), Some(StopReason::LeaseLost));
        assert_eq!(StopReason::ALL.map(|reason| reason as usize), [0, 1, 2, 3]);
    }

    #[test]
    fn u4_a_subject_stands_once() {
        let about = |message: &str| JobError::Permanent(message.to_owned()).about("piqa").to_string();
        assert_eq!(about("its validation split has no rows"), "piqa: its validation split has no rows");
        assert_eq!(about("piqa: there is no piqa/validation.jsonl"), "piqa: there is no piqa/validation.jsonl");
        assert_eq!(about("piqa validation row 3: lacks `sol1`"), "piqa validation row 3: lacks `sol1`");
        assert_eq!(about("piqa2: is another"), "piqa: piqa2: is another");
    }

    #[test]
    fn panics_become_retryable_errors() {
        let panic = std::panic::catch_unwind(|| panic!("boom {}", 7)).unwrap_err();
        assert_eq!(panic_error(panic.as_ref()), JobError::Retryable("panicked: boom 7".to_owned()));
    }
}
