//! The context of a handler: the store, its lease, a stop signal, a progress sender, a folder.

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

/// Largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why an attempt ended without an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum JobError {
    /// Another attempt may succeed.
    #[error("{0}")]
    Retryable(String),
    /// No attempt can succeed, for example because the input is bad.
    #[error("{0}")]
    Permanent(String),
    /// An external resource is temporarily unavailable: a full disk, or an object store or database
    /// that does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The process that ran the job crashed.
    #[error("{0}")]
    Crashed(String),
    /// The process that ran the job was killed from outside.
    #[error("{0}")]
    Killed(String),
    /// The handler was told to stop, and did. The job returns to the queue without losing an
    /// attempt.
    #[error("stopped")]
    Stopped,
}

impl JobError {
    /// Creates an error of the given class.
    pub fn new(class: FailureClass, message: String) -> Self {
        match class {
            FailureClass::Retryable => Self::Retryable(message),
            FailureClass::Permanent => Self::Permanent(message),
            FailureClass::Unavailable => Self::Unavailable(message),
            FailureClass::Crashed => Self::Crashed(message),
            FailureClass::Killed => Self::Killed(message),
        }
    }

    /// Classifies an I/O error. `place` names the file or the operation that failed.
    pub fn io(place: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(FailureClass::of_io(error), format!("{place}: {error}"))
    }

    /// Returns the class and the message, or `None` if the handler was told to stop.
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

    /// Prefixes the message with `subject`, unless it already starts with it.
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

/// Why a handler must stop, in order of severity. The more severe reason wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The process ends: save, so that another worker can resume the job.
    Shutdown,
    /// The owner paused the job: save.
    Pause,
    /// The owner cancelled the job: nothing needs saving.
    Cancel,
    /// Another worker may have claimed the job: all further writes are rejected.
    LeaseLost,
}

impl StopReason {
    const ALL: [Self; 4] = [Self::Shutdown, Self::Pause, Self::Cancel, Self::LeaseLost];
}

/// Tells a handler to stop. Clones share one state. All methods may be called from any thread.
#[derive(Debug, Clone, Default)]
pub struct StopSignal {
    // 0 if there is no reason to stop; otherwise 1 + the reason's index in `StopReason::ALL`, which
    // is ordered by severity.
    reason: Arc<AtomicU8>,
    raised: CancellationToken,
}

impl StopSignal {
    /// Returns the reason to stop, if there is one. Costs one atomic load.
    pub fn requested(&self) -> Option<StopReason> {
        let place = usize::from(self.reason.load(Ordering::Acquire)).checked_sub(1)?;
        StopReason::ALL.get(place).copied()
    }

    /// Waits until there is a reason to stop.
    pub async fn wait(&self) -> StopReason {
        self.raised.cancelled().await;
        // The token is cancelled only after a reason was stored.
        self.requested().unwrap_or(StopReason::LeaseLost)
    }

    /// Requests a stop. A more severe reason replaces a less severe one.
    pub fn request(&self, reason: StopReason) {
        self.reason.fetch_max(reason as u8 + 1, Ordering::AcqRel);
        self.raised.cancel();
    }
}

/// Passes a handler's progress on to the next heartbeat. Clones share one state. Never blocks.
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

    /// Waits until there was no progress for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut changes = self.newest.subscribe();
        while tokio::time::timeout(limit, changes.changed()).await.is_ok() {}
    }

    /// Returns the latest progress.
    pub fn newest(&self) -> Option<Progress> {
        self.newest.borrow().clone()
    }
}

/// The context of one attempt, as passed to the handler.
#[derive(Clone)]
pub struct JobContext {
    /// The database and the object store.
    pub store: Store,
    /// The attempt's lease, which must accompany every write.
    pub lease: LeaseKey,
    /// Check it often.
    pub stop: StopSignal,
    /// Update it often.
    pub progress: ProgressSender,
    /// An empty folder for this attempt, removed afterwards.
    pub cache_dir: PathBuf,
    /// Cache of the files that this and other attempts fetched.
    pub fetched: FileCache,
    /// Number of threads of the computation. If absent, the library decides.
    pub threads: Option<usize>,
    /// Time until which the lease is known to last. Each successful heartbeat extends it.
    pub lease_until: watch::Receiver<Instant>,
    /// Maximum size of a job on this machine.
    pub ceilings: Ceilings,
}

impl JobContext {
    /// Fetches the files of `location` into the folder `name` of [`Self::cache_dir`] and returns
    /// its path. Verifies digests where they are known. The files must not be written to.
    ///
    /// # Errors
    /// The location is not readable or not allowed, or a file does not match its manifest;
    /// [`JobError::Stopped`] if told to stop meanwhile.
    pub async fn fetch(&self, location: &Location, name: &str) -> Result<PathBuf, JobError> {
        self.unless_stopped(async { self.fetch_folder(&self.store.open(location).await?, name).await }).await
    }

    /// Fetches a model like [`Self::fetch`], and also returns its shape. First reads `config.json`
    /// and checks it against the ceilings. Fetches only the files that are needed to load the
    /// model.
    ///
    /// # Errors
    /// As for [`Self::fetch`]; also if the model is not supported or exceeds this machine's
    /// ceilings.
    pub async fn fetch_checkpoint(
        &self,
        location: &Location,
        name: &str,
    ) -> Result<(PathBuf, DecoderConfig), JobError> {
        let bad = |problem: String| JobError::Permanent(format!("checkpoint {location}: {problem}"));
        let fetched = async {
            let folder = self.store.open(location).await?;
            if !folder.has(CONFIG_FILE) {
                return Err(bad(format!("{CONFIG_FILE} is missing; expected a Hugging Face model folder")));
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

    /// Runs `work` on its own operating-system thread, named `name`, so that it does not block
    /// anything else in the process. Dropping the future does not end the thread:
    /// `work` must check [`Self::stop`].
    ///
    /// # Errors
    /// Returns the error of `work`; a panic in it becomes [`JobError::Retryable`].
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
                // The receiver is gone if the attempt was abandoned; then the result is not needed.
                let _unwanted = sender.send(result);
            })
            .map_err(|e| JobError::io(format!("thread {name}"), &e))?;
        receiver.await.unwrap_or_else(|_| Err(JobError::Retryable(format!("thread {name} ended without a result"))))
    }
}

/// Converts a panic to an error. It is retryable because the panic may depend on timing. A bug that
/// always panics uses up the attempts and then fails the job.
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
