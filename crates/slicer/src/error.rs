//! The slicer's errors.

use inheritune_checkpoint::decoder_config::ConfigError;
use inheritune_checkpoint::safetensors_header::HeaderError;
use inheritune_checkpoint::shard_index::IndexError;
use inheritune_checkpoint::slice_plan::PlanError;
use inheritune_checkpoint::torch_archive::ArchiveError;
use inheritune_checkpoint::weights_files::NotAModel;
use inheritune_objects::ObjectError;
use inheritune_runtime::worker::JobError;
use inheritune_store::StoreError;

use crate::layout::MAX_WEIGHTS_FILES;

/// Why a slice cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SlicerError {
    /// The database or the object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint is unusable.
    #[error("{location}: {problem}")]
    Checkpoint {
        /// The checkpoint's location.
        location: String,
        /// What is wrong with it.
        problem: BadCheckpoint,
    },
    /// The requested target cannot be cut.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A header that no reader would accept.
    #[error("the target's weights: {0}")]
    Target(#[from] HeaderError),
    /// More files than an artifact may contain.
    #[error(
        "max_shard_size_bytes = {max_shard_size_bytes} makes {files} weights files; the limit is {MAX_WEIGHTS_FILES}"
    )]
    TooManyFiles {
        /// Number of weights files that the plan needs.
        files: usize,
        /// The requested limit, in bytes per file.
        max_shard_size_bytes: u64,
    },
    /// The attempt was asked to stop.
    #[error("stopped")]
    Stopped,
    /// A thread that generated fresh weights or read a pickle panicked or was cancelled.
    #[error("a slicer thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<ObjectError> for SlicerError {
    fn from(error: ObjectError) -> Self {
        Self::Store(error.into())
    }
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum BadCheckpoint {
    /// A required file is missing.
    #[error("{file} is missing{hint}")]
    MissingFile {
        /// The file.
        file: String,
        /// What to do; starts with a separator, or is empty.
        hint: String,
    },
    /// A JSON file is invalid.
    #[error("{file}: {problem}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer's vocabulary is invalid.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The content of a file does not match its name.
    #[error("{file} {problem}")]
    OtherContent {
        /// The file.
        file: String,
        /// What the file contains, and what to do.
        problem: &'static str,
    },
    /// The location is one file of a checkpoint instead of its folder.
    #[error("{file} is a single file: specify its folder, which must contain all files of the model")]
    FileOfAFolder {
        /// The file.
        file: String,
    },
    /// The folder does not contain a model.
    #[error(transparent)]
    Folder(#[from] NotAModel),
    /// A link whose target does not exist.
    #[error("{file} is a dangling link: copy or download the file that it should point to")]
    DanglingLink {
        /// The link.
        file: String,
    },
    /// A file that Git LFS has not fetched.
    #[error("{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` in the folder")]
    LfsPointer {
        /// The file.
        file: String,
    },
    /// Quantised weights.
    #[error(
        "config.json says that the weights are quantised ({method}), which is not supported: specify the original \
         model, or dequantise this one first; {problem}"
    )]
    Quantised {
        /// The quantisation method.
        method: String,
        /// The problem that was found.
        problem: Box<BadCheckpoint>,
    },
    /// Its `config.json` is invalid or unsupported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The header of a safetensors file is invalid.
    #[error("{file} {problem}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong.
        problem: HeaderError,
    },
    /// The archive of a PyTorch file, or the pickle in it, is invalid.
    #[error("{file} {problem}")]
    Archive {
        /// The file.
        file: String,
        /// What is wrong.
        problem: ArchiveError,
    },
    /// Its index is invalid.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its tensors do not match its `config.json`.
    #[error(transparent)]
    Tensors(#[from] PlanError),
    /// A read returned fewer or more bytes than requested.
    #[error("{file}: cannot read bytes {start} to {end}: the read returned {got} bytes")]
    ShortRead {
        /// The file.
        file: String,
        /// First byte requested.
        start: u64,
        /// One past the last byte requested.
        end: u64,
        /// Number of bytes returned.
        got: u64,
    },
}

impl SlicerError {
    /// Adds the location to a problem with a checkpoint.
    pub(crate) fn checkpoint(location: &impl ToString, problem: impl Into<BadCheckpoint>) -> Self {
        Self::Checkpoint { location: location.to_string(), problem: problem.into() }
    }
}

impl From<SlicerError> for JobError {
    fn from(error: SlicerError) -> Self {
        match error {
            SlicerError::Store(error) => error.into(),
            // Another process may be writing the folder right now.
            SlicerError::Checkpoint { problem: BadCheckpoint::ShortRead { .. }, .. } | SlicerError::Thread(_) => {
                Self::Retryable(error.to_string())
            }
            SlicerError::Checkpoint { .. }
            | SlicerError::Plan(_)
            | SlicerError::Target(_)
            | SlicerError::TooManyFiles { .. } => Self::Permanent(error.to_string()),
            SlicerError::Stopped => Self::Stopped,
        }
    }
}
