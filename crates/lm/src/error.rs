//! The errors of this crate.

use std::path::{Path, PathBuf};

use inheritune_domain::job::FailureClass;

/// Everything that can fail in this crate.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file exists but is invalid.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor in a file is missing, unknown, or does not match the model.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    BadTensor {
        /// The file, or the folder if no file contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Tokens that the model does not accept.
    #[error("{problem}")]
    BadTokens {
        /// What is wrong with them.
        problem: String,
    },
    /// A token set contains fewer tokens than requested.
    #[error("{}: contains {found} tokens, but {needed} are required", path.display())]
    TooFewTokens {
        /// The file.
        path: PathBuf,
        /// Tokens requested.
        needed: u64,
        /// Tokens found.
        found: u64,
    },
    /// A corpus without any tokens.
    #[error("the corpus is empty: {problem}")]
    EmptyCorpus {
        /// What is empty.
        problem: String,
    },
    /// The tokenizer has more tokens than the model has embedding rows.
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
    /// Classifies the error: problems with the machine may pass, bad input does not.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Io { source, .. } => match FailureClass::of_io(source) {
                FailureClass::Permanent => FailureClass::Retryable,
                class => class,
            },
            // libtorch reports out-of-memory as a plain error.
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

    /// Whether the error is an out-of-memory error. libtorch reports these only in text: its CPU
    /// allocator, the allocator in csrc, CUDA's and C++'s. oneDNN only says that a primitive could
    /// not be executed or created, because its primitives need memory of their own.
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

    /// Replaces the folder `dir` in the error by the name `shown` that the user knows; `dir` is a
    /// worker's copy of it.
    #[must_use]
    pub fn shown_as(mut self, dir: &Path, shown: &str) -> Self {
        if let Self::Io { path, .. }
        | Self::BadFile { path, .. }
        | Self::BadTensor { path, .. }
        | Self::TooFewTokens { path, .. } = &mut self
            && let Ok(inside) = path.strip_prefix(dir)
        {
            *path = if inside.as_os_str().is_empty() { PathBuf::from(shown) } else { Path::new(shown).join(inside) };
        }
        self
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::LmError;

    #[test]
    fn a_copy_of_a_folder_is_called_what_its_owner_calls_it() {
        let cache = Path::new("/var/cache/7/tokens");
        let shown =
            |path: &str| LmError::file(Path::new(path), "is bad").shown_as(cache, "file:///home/me/model").to_string();
        assert_eq!(shown("/var/cache/7/tokens/merges.txt"), "file:///home/me/model/merges.txt: is bad");
        assert_eq!(shown("/var/cache/7/tokens"), "file:///home/me/model: is bad");
        assert_eq!(shown("/elsewhere"), "/elsewhere: is bad");
    }
}
