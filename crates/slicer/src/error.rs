//! Why a slice cannot be made.

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
    /// The database or the object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint that cannot be used as it is.
    #[error("{location}: {problem}")]
    Checkpoint {
        /// Where it is.
        location: String,
        /// What is wrong with it.
        problem: BadCheckpoint,
    },
    /// The target that was asked for cannot be cut.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A header that would not be accepted back.
    #[error("the target's weights: {0}")]
    Target(#[from] HeaderError),
    /// More files than an artifact holds.
    #[error(
        "a max_shard_size_bytes of {max_shard_size_bytes} makes {files} files of weights; at most {MAX_WEIGHTS_FILES} \
         are written"
    )]
    TooManyFiles {
        /// So many.
        files: usize,
        /// Of at most so many bytes.
        max_shard_size_bytes: u64,
    },
    /// The attempt was told to stop.
    #[error("stopped")]
    Stopped,
    /// A thread that made fresh weights or read a pickle is gone.
    #[error("a thread of the slicer: {0}")]
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
    /// A file that must be there is not.
    #[error("{file} is missing{hint}")]
    MissingFile {
        /// The file.
        file: String,
        /// What to do; starts with a separator, or is empty.
        hint: String,
    },
    /// A JSON file is not what it should be.
    #[error("{file}: {problem}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Its tokenizer's vocabulary is not what it should be.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Something else than its name says.
    #[error("{file} {problem}")]
    OtherContent {
        /// The file.
        file: String,
        /// What it is, and what to do.
        problem: &'static str,
    },
    /// One file of a checkpoint in the place of its folder.
    #[error("{file} is one file: name the folder that it is in, with everything that belongs to the model")]
    FileOfAFolder {
        /// The file.
        file: String,
    },
    /// Another folder than a model's.
    #[error(transparent)]
    Folder(#[from] NotAModel),
    /// A link whose file is not there.
    #[error("{file} is a link to nothing: copy or download the file that it should lead to")]
    DanglingLink {
        /// The link.
        file: String,
    },
    /// A file that Git LFS has not fetched.
    #[error("{file} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull` in the folder")]
    LfsPointer {
        /// The file.
        file: String,
    },
    /// Weights that are no plain numbers.
    #[error(
        "config.json says that its weights are quantised ({method}), which is not read: name the model that was quantised, \
         or dequantise this one first; {problem}"
    )]
    Quantised {
        /// How.
        method: String,
        /// What was found to be wrong.
        problem: Box<BadCheckpoint>,
    },
    /// Its `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The header of one of its files.
    #[error("{file} {problem}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong.
        problem: HeaderError,
    },
    /// The archive and the pickle of one of its files.
    #[error("{file} {problem}")]
    Archive {
        /// The file.
        file: String,
        /// What is wrong.
        problem: ArchiveError,
    },
    /// Its index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its tensors.
    #[error(transparent)]
    Tensors(#[from] PlanError),
    /// A file gave fewer or more bytes than its header promises.
    #[error("{file}: bytes {start} to {end} cannot be read: {got} bytes came")]
    ShortRead {
        /// The file.
        file: String,
        /// First byte asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// What came.
        got: u64,
    },
}

impl SlicerError {
    /// Puts the location to what is wrong with a checkpoint.
    pub(crate) fn checkpoint(location: &impl ToString, problem: impl Into<BadCheckpoint>) -> Self {
        Self::Checkpoint { location: location.to_string(), problem: problem.into() }
    }
}

impl From<SlicerError> for JobError {
    fn from(error: SlicerError) -> Self {
        match error {
            SlicerError::Store(error) => error.into(),
            // Someone may be writing the folder just now.
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
