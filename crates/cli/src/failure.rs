//! How a command ends, and what it says when it ends badly.

use std::path::Path;

use inheritune_api::client::{ConnectError, Failure as Refusal};
use inheritune_domain::violation::Violations;
use tonic::{Code, Status};

/// Why a command failed. Each variant has its own exit code: see [`EXIT_CODES`].
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The run or the job was carried out and did not succeed.
    #[error("{0}")]
    Unsuccessful(String),
    /// What the user wrote cannot be accepted, one line a field.
    #[error("{}", lines(.headline, .violations))]
    Invalid {
        /// What is not accepted.
        headline: String,
        /// Every bad field; may be empty.
        violations: Violations,
    },
    /// No server answers.
    #[error("{0}")]
    Unreachable(String),
    /// The server knows no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Anything else that the server says.
    #[error("{0}")]
    Server(String),
    /// A file or folder of this machine, or a download, went wrong.
    #[error("{0}")]
    Local(String),
    /// Ctrl-C.
    #[error("{0}")]
    Interrupted(String),
}

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the run or job failed or was cancelled
  2    bad usage, bad recipe, or a request that the server refuses as invalid
  3    the server cannot be reached
  4    not found
  5    another error of the server
  6    a local file or a download went wrong
  130  interrupted with Ctrl-C; what was watched goes on";

impl Failure {
    /// For the shell.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unsuccessful(_) => 1,
            Self::Invalid { .. } => 2,
            Self::Unreachable(_) => 3,
            Self::NotFound(_) => 4,
            Self::Server(_) => 5,
            Self::Local(_) => 6,
            Self::Interrupted(_) => 130,
        }
    }

    /// Without fields.
    pub fn invalid(headline: impl Into<String>) -> Self {
        Self::Invalid { headline: headline.into(), violations: Violations::default() }
    }

    /// Something at `path` went wrong.
    pub fn local(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Local(format!("{}: {problem}", path.display()))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let refusal = Refusal::from(&status);
        let message = match refusal.to_string() {
            text if text.is_empty() => status.code().description().to_owned(),
            text => text,
        };
        // A status with a cause is this side's own: the connection was no gRPC, or broke.
        if std::error::Error::source(&status).is_some() {
            return Self::Unreachable(format!("{message}; is gRPC served there? with TLS, it is at https://"));
        }
        match refusal.code {
            Code::InvalidArgument | Code::OutOfRange => Self::invalid(message),
            Code::NotFound => Self::NotFound(message),
            Code::Unavailable => Self::Unreachable(message),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Server(message),
        }
    }
}

impl From<crate::report::WriteError> for Failure {
    fn from(error: crate::report::WriteError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Address { .. }
            | ConnectError::Authorities { .. }
            | ConnectError::Header { .. }
            | ConnectError::TokenInPlaintext { .. } => Self::invalid(error.to_string()),
            ConnectError::Unreachable { .. } => Self::Unreachable(error.to_string()),
        }
    }
}

fn lines(headline: &str, violations: &Violations) -> String {
    let mut text = headline.to_owned();
    for violation in &violations.0 {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
    }
    text
}

#[cfg(test)]
mod tests {
    use inheritune_api::status;

    use super::*;

    #[test]
    fn statuses_have_their_exit_codes() {
        for (status, exit_code) in [
            (Status::invalid_argument("x"), 2),
            (Status::unavailable("x"), 3),
            (Status::not_found("x"), 4),
            (Status::failed_precondition("x"), 5),
            (Status::internal("x"), 5),
        ] {
            assert_eq!(Failure::from(status).exit_code(), exit_code);
        }
        assert_eq!(Failure::Unsuccessful(String::new()).exit_code(), 1);
        assert_eq!(Failure::Local(String::new()).exit_code(), 6);
    }

    #[test]
    fn field_violations_stand_one_a_line() {
        let mut violations = Violations::default();
        violations.add("spec.name", "must not be empty");
        violations.add("spec.training.lr_max", "must be above 0");
        assert_eq!(
            Failure::from(status::invalid_argument(&violations)).to_string(),
            "2 fields cannot be accepted:\n  spec.name: must not be empty\n  spec.training.lr_max: must be above 0"
        );
    }
}
