//! The ways in which a command can fail, with their messages and exit codes.

use std::path::Path;

use inheritune_api::client::{ConnectError, Failure as Refusal};
use inheritune_domain::violation::{Violation, Violations};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Why a command failed. Each variant has its own exit code: see [`EXIT_CODES`].
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The run or job failed or was cancelled.
    #[error("{0}")]
    Unsuccessful(String),
    /// Invalid input, printed with one line per field.
    #[error("{}", lines(.headline, .violations))]
    Invalid {
        /// What is invalid; empty if the fields say enough.
        headline: String,
        /// Every invalid field; may be empty.
        violations: Violations,
    },
    /// The server cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The server does not have the requested object.
    #[error("{0}")]
    NotFound(String),
    /// Any other request that the server rejects.
    #[error("{message}")]
    Refused {
        /// The gRPC status code.
        code: Code,
        /// The server's own reason, such as `WRONG_STATE`; empty if it gives none.
        reason: String,
        /// The message for the user.
        message: String,
    },
    /// The server's reply is invalid.
    #[error("{0}")]
    Server(String),
    /// A local file or folder, or a download, failed.
    #[error("{0}")]
    Local(String),
    /// The user pressed Ctrl-C.
    #[error("{0}")]
    Interrupted(String),
    /// The reader of standard output or standard error is gone, as with `| head -1`.
    #[error("the output was closed")]
    Closed,
}

/// The exit codes, as `--help` prints them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the run or job failed or was cancelled
  2    invalid usage or recipe, or a request that the server rejects as invalid
  3    the server cannot be reached
  4    not found
  5    another error of the server
  6    a local file or a download failed
  130  interrupted with Ctrl-C; the run or job continues
  141  the output was closed early (| head); the run or job continues";

impl Failure {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unsuccessful(_) => 1,
            Self::Invalid { .. } => 2,
            Self::Unreachable(_) => 3,
            Self::NotFound(_) => 4,
            Self::Refused { .. } | Self::Server(_) => 5,
            Self::Local(_) => 6,
            Self::Interrupted(_) => 130,
            // Like a program that is killed by SIGPIPE: 128 + 13.
            Self::Closed => 141,
        }
    }

    /// The failure as one line of JSON, for `--output json`.
    pub fn to_json(&self) -> String {
        let (message, violations) = match self {
            Self::Invalid { headline, violations } if headline.is_empty() => {
                (count_of_fields(violations), &violations.0[..])
            }
            Self::Invalid { headline, violations } => (headline.clone(), &violations.0[..]),
            other => (other.to_string(), &[][..]),
        };
        let violations: Vec<Value> =
            violations.iter().map(|v| json!({ "field": v.field, "description": v.description })).collect();
        let reason = match self {
            Self::Refused { reason, .. } if !reason.is_empty() => Some(reason),
            _ => None,
        };
        json!({
            "code": self.code(),
            "reason": reason,
            "message": message,
            "violations": violations,
            "hints": self.hints(),
            "exit_code": self.exit_code(),
        })
        .to_string()
    }

    fn code(&self) -> String {
        match self {
            Self::Unsuccessful(_) => "UNSUCCESSFUL".to_owned(),
            Self::Invalid { .. } => "INVALID_ARGUMENT".to_owned(),
            Self::Unreachable(_) => "UNAVAILABLE".to_owned(),
            Self::NotFound(_) => "NOT_FOUND".to_owned(),
            Self::Refused { code, .. } => screaming(&format!("{code:?}")),
            Self::Server(_) => "INTERNAL".to_owned(),
            Self::Local(_) => "LOCAL".to_owned(),
            Self::Interrupted(_) => "INTERRUPTED".to_owned(),
            Self::Closed => "CLOSED".to_owned(),
        }
    }

    /// Advice that does not depend on the message.
    fn hints(&self) -> Vec<&'static str> {
        match self {
            Self::Unreachable(_) => vec![
                "start the server: inheritune-standalone, or docker compose up",
                "set another server with --server or INHERITUNE_SERVER",
            ],
            Self::NotFound(_) => vec!["list the existing IDs with inheritune run list, job list or artifact list"],
            Self::Refused { code: Code::Unauthenticated, .. } => {
                vec!["set the token file with --token-file or INHERITUNE_TOKEN_FILE"]
            }
            Self::Invalid { violations, .. } if violations.0.is_empty() => {
                vec!["run the command with --help to see its options"]
            }
            Self::Unsuccessful(_)
            | Self::Invalid { .. }
            | Self::Refused { .. }
            | Self::Server(_)
            | Self::Local(_)
            | Self::Interrupted(_)
            | Self::Closed => Vec::new(),
        }
    }

    /// A [`Failure::Invalid`] without fields.
    pub fn invalid(headline: impl Into<String>) -> Self {
        Self::Invalid { headline: headline.into(), violations: Violations::default() }
    }

    /// A [`Failure::Local`] with a problem at `path`.
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
        // tonic made a status with a source on this side: the connection broke or is not gRPC.
        if std::error::Error::source(&status).is_some() {
            return Self::Unreachable(format!(
                "{message}; check that the address serves gRPC, and use https:// for TLS"
            ));
        }
        match refusal.code {
            Code::InvalidArgument | Code::OutOfRange if refusal.violations.is_empty() => Self::invalid(message),
            Code::InvalidArgument | Code::OutOfRange => {
                Self::Invalid { headline: String::new(), violations: Violations(refusal.violations) }
            }
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
            | Code::Unauthenticated => Self::Refused { code: refusal.code, reason: refusal.reason, message },
        }
    }
}

impl From<inheritune_report::WriteError> for Failure {
    fn from(error: inheritune_report::WriteError) -> Self {
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

/// The headline, then one line per field. A single field without a headline is one line.
fn lines(headline: &str, violations: &Violations) -> String {
    let stated = |v: &Violation| match v.field.as_str() {
        "" => v.description.clone(),
        field => format!("{field}: {}", v.description),
    };
    let mut text = match (headline, violations.0.as_slice()) {
        ("", [one]) => return stated(one),
        ("", _) => format!("{}:", count_of_fields(violations)),
        _ => headline.to_owned(),
    };
    for violation in &violations.0 {
        text.push_str("\n  ");
        text.push_str(&stated(violation));
    }
    text
}

fn count_of_fields(violations: &Violations) -> String {
    match violations.0.len() {
        1 => "1 invalid field".to_owned(),
        n => format!("{n} invalid fields"),
    }
}

/// Converts `FailedPrecondition` to `FAILED_PRECONDITION`.
pub(crate) fn screaming(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.char_indices() {
        if i > 0 && c.is_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
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
            "2 invalid fields:\n  spec.name: must not be empty\n  spec.training.lr_max: must be above 0"
        );
    }
}
