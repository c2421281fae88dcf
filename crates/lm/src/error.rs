//! What can go wrong in this crate.

use std::path::{Path, PathBuf};

use inheritune_domain::job::FailureClass;

/// Every way in which this crate fails.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor in a file is missing, unknown, or not what the model needs.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    BadTensor {
        /// The file, or the folder where no file has it.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Tokens that this model cannot take.
    #[error("{problem}")]
    BadTokens {
        /// What is wrong with them.
        problem: String,
    },
    /// A token set holds fewer tokens than are asked for.
    #[error("{}: holds {found} tokens, {needed} are needed", path.display())]
    TooFewTokens {
        /// The file.
        path: PathBuf,
        /// Tokens asked for.
        needed: u64,
        /// Tokens there.
        found: u64,
    },
    /// A corpus without a token.
    #[error("the corpus is empty: {problem}")]
    EmptyCorpus {
        /// Which part of it.
        problem: String,
    },
    /// A tokenizer that knows more tokens than the model has rows for.
    #[error("the tokenizer's vocabulary ({tokenizer} tokens) exceeds the model's embedding ({embedding} rows)")]
    VocabularyTooLarge {
        /// The tokenizer's vocabulary.
        tokenizer: u32,
        /// Rows of the token embedding.
        embedding: u32,
    },
    /// The tokenizers library failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl LmError {
    /// Whether the same call may succeed later or elsewhere: trouble with the machine may pass, bad input does not.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Io { source, .. } => match FailureClass::of_io(source) {
                FailureClass::Permanent => FailureClass::Retryable,
                class => class,
            },
            // libtorch reports a lack of memory like any other of its errors.
            Self::Torch(_) => FailureClass::Retryable,
            Self::BadFile { .. }
            | Self::BadTensor { .. }
            | Self::BadTokens { .. }
            | Self::TooFewTokens { .. }
            | Self::EmptyCorpus { .. }
            | Self::VocabularyTooLarge { .. }
            | Self::Tokenizer(_) => FailureClass::Permanent,
        }
    }

    /// Whether a tensor found no memory. libtorch says so in words only: its CPU allocator, the one of csrc, CUDA's, C++'s; and
    /// oneDNN, whose primitives need memory of their own and say no more than that they could not be run.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Torch(error) => {
                let text = error.to_string();
                let of_memory = ["not enough memory", "can't allocate memory", "out of memory", "bad_alloc"];
                let of_onednn = ["could not execute a primitive", "could not create a primitive"];
                of_memory.iter().chain(&of_onednn).any(|words| text.contains(words))
            }
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::BadTensor { path: path.to_owned(), tensor: tensor.to_owned(), problem: problem.into() }
    }
}
