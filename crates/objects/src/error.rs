//! Why a call on the object store failed.

use inheritune_domain::job::FailureClass;

/// The text in front of the status in object_store's error messages.
const STATUS: &str = "status code: ";

/// Why a call on the object store failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The object store is unreachable or rejected the request.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The file does not exist.
    #[error("file {0} does not exist")]
    NotFound(String),
    /// The work was stopped before it was done. The text says what was stopped, and by whom.
    #[error("{0}")]
    GivenUp(String),
    /// A stored object does not match its manifest.
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
    /// Returns how a job treats this error.
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

/// Returns how a job treats an error of the object store.
pub fn class_of_store(error: &object_store::Error) -> FailureClass {
    match error {
        object_store::Error::NotFound { .. } | object_store::Error::InvalidPath { .. } => FailureClass::Permanent,
        object_store::Error::Generic { source, .. } => {
            let text = error.to_string();
            let status = text.split_once(STATUS).and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
            match (status, FailureClass::of_cause(source.as_ref())) {
                // Request timeout and too many requests.
                (Some(408 | 429), _) => FailureClass::Unavailable,
                (Some(300..500), _) if !text.contains("QuotaExceeded") => FailureClass::Retryable,
                (None, Some(FailureClass::Permanent)) => FailureClass::Retryable,
                (None, Some(class)) => class,
                // No connection, a timeout, or a 5xx response after object_store's own retries.
                (Some(_) | None, _) => FailureClass::Unavailable,
            }
        }
        _ => FailureClass::Retryable,
    }
}

/// Returns how a job treats an error of a local file.
pub fn class_of_file(error: &std::io::Error) -> FailureClass {
    match FailureClass::of_io(error) {
        // A file that was too short or not valid text may have been modified during the read.
        FailureClass::Permanent => FailureClass::Retryable,
        class => class,
    }
}
