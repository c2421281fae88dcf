//! Why a call on the object store failed.

use inheritune_domain::job::FailureClass;

/// How object_store begins to say which status an answer had.
const STATUS: &str = "status code: ";

/// Why a call on the object store failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The object store could not be reached or refused.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No such file.
    #[error("file {0} does not exist")]
    NotFound(String),
    /// A piece of work was ended before it was done: what, and by whom.
    #[error("{0}")]
    GivenUp(String),
    /// A stored object is not what its manifest says.
    #[error("{name}: {problem}")]
    Corrupt {
        /// The object or file.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A location that this service may not read.
    #[error("{location}: {problem}")]
    Location {
        /// The location.
        location: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl ObjectError {
    /// What it means for a job that meets it.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::File { source, .. } => class_of_file(source),
            Self::Store(error) => class_of_store(error),
            Self::NotFound(_) | Self::GivenUp(_) | Self::Corrupt { .. } | Self::Location { .. } => {
                FailureClass::Permanent
            }
        }
    }
}

pub(crate) fn corrupt(name: impl Into<String>, problem: impl ToString) -> ObjectError {
    ObjectError::Corrupt { name: name.into(), problem: problem.to_string() }
}

pub(crate) fn not_found(file: impl ToString) -> ObjectError {
    ObjectError::NotFound(file.to_string())
}

/// What an error of the object store means for a job that meets it.
pub fn class_of_store(error: &object_store::Error) -> FailureClass {
    match error {
        object_store::Error::NotFound { .. } | object_store::Error::InvalidPath { .. } => FailureClass::Permanent,
        object_store::Error::Generic { source, .. } => {
            let text = error.to_string();
            let status = text.split_once(STATUS).and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
            match (status, FailureClass::of_cause(source.as_ref())) {
                // Too slow, or too many at once.
                (Some(408 | 429), _) => FailureClass::Unavailable,
                (Some(300..500), _) if !text.contains("QuotaExceeded") => FailureClass::Retryable,
                (None, Some(FailureClass::Permanent)) => FailureClass::Retryable,
                (None, Some(class)) => class,
                // No connection, no time left, an answer of 5xx after object_store's own retries.
                (Some(_) | None, _) => FailureClass::Unavailable,
            }
        }
        _ => FailureClass::Retryable,
    }
}

/// What an error of a local file means for a job that meets it.
pub fn class_of_file(error: &std::io::Error) -> FailureClass {
    match FailureClass::of_io(error) {
        // A file that was too short, or no text, may have been written to meanwhile.
        FailureClass::Permanent => FailureClass::Retryable,
        class => class,
    }
}
