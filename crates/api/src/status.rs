//! The only place that creates a [`tonic::Status`]. Every status carries a google.rpc `ErrorInfo`
//! of domain `inheritune`.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use inheritune_domain::violation::{Violation, Violations};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};
use uuid::Uuid;

/// `ErrorInfo.domain` of every status.
pub const DOMAIN: &str = "inheritune";
/// Maximum size of details. They are sent in HTTP/2 trailers, which clients limit (gRPC C-core to 8
/// KiB), so longer lists of violations are truncated.
const MAX_DETAIL_BYTES: usize = 3500;
/// Maximum size of the message, which is sent there too, percent-encoded.
const MAX_MESSAGE_BYTES: usize = 1000;

/// Fields of the request are invalid. A `BadRequest` lists all of them.
pub fn invalid_argument(violations: &Violations) -> Status {
    let fields = match violations.0.len() {
        1 => "1 field".to_owned(),
        n => format!("{n} fields"),
    };
    let message = format!("{fields} cannot be accepted: {violations}");
    let mut details = info("INVALID_FIELDS", []);
    details.set_bad_request(field_violations(violations));
    status(Code::InvalidArgument, &message, details)
}

/// The `kind` (`run`, `job`, `artifact`) with this id does not exist.
pub fn not_found(kind: &str, id: &str) -> Status {
    let mut details = info("NOT_FOUND", [("kind", kind), ("id", id)]);
    details.set_resource_info(kind, id, "", "does not exist");
    status(Code::NotFound, &format!("{kind} {id} does not exist"), details)
}

/// The request is not possible in the state of `subject` (`run`, `job`, …).
pub fn failed_precondition(subject: &str, problem: &str) -> Status {
    let mut details = info("WRONG_STATE", []);
    details.add_precondition_failure_violation("STATE", subject, clipped(problem, MAX_MESSAGE_BYTES));
    status(Code::FailedPrecondition, problem, details)
}

/// A file or an artifact in the request cannot be used. Retrying does not help.
pub fn unusable(field: &str, problem: &str) -> Status {
    let mut details = info("UNUSABLE_INPUT", [("field", field)]);
    details.add_bad_request_violation(field, clipped(problem, MAX_DETAIL_BYTES));
    status(Code::InvalidArgument, &format!("{field}: {problem}"), details)
}

/// The same `request_id` was used with a different body.
pub fn request_id_reused(request_id: Uuid) -> Status {
    let id = request_id.to_string();
    let mut details = info("REQUEST_ID_REUSED", [("request_id", id.as_str())]);
    details.add_bad_request_violation("request_id", "was already used with a different request; use a new UUID");
    status(Code::InvalidArgument, &format!("request_id {id} was already used with a different request"), details)
}

/// A dependency of this service does not respond. The caller may retry after `retry_after`.
pub fn unavailable(problem: &str, retry_after: Duration) -> Status {
    let mut details = info("UNAVAILABLE", []);
    details.set_retry_info(Some(retry_after));
    status(Code::Unavailable, problem, details)
}

/// The call carries no token.
pub fn no_token() -> Status {
    let problem = "this service requires a token: send `authorization: Bearer ...` (inheritune: --token-file)";
    status(Code::Unauthenticated, problem, info("NO_VALID_TOKEN", []))
}

/// The call carries a wrong token, or a header that is not a bearer token.
pub fn wrong_token() -> Status {
    let problem = "the token does not match this service's; send the one in its bearer_token_file as \
                   `authorization: Bearer ...` (inheritune: check --token-file)";
    status(Code::Unauthenticated, problem, info("NO_VALID_TOKEN", []))
}

/// A limit of this service, described by `limit`, is reached.
pub fn resource_exhausted(subject: &str, limit: &str) -> Status {
    let mut details = info("LIMIT_REACHED", [("subject", subject)]);
    details.add_quota_failure_violation(subject, limit);
    status(Code::ResourceExhausted, limit, details)
}

/// An internal error. `error` is logged under a new id; the caller only sees the id.
pub fn internal(error: &dyn Display) -> Status {
    let incident = Uuid::new_v4().to_string();
    tracing::error!(%incident, %error, "internal error");
    let details = info("INTERNAL", [("incident", incident.as_str())]);
    status(Code::Internal, &format!("internal error {incident}; see the log of the service for details"), details)
}

fn info<const N: usize>(reason: &str, metadata: [(&str, &str); N]) -> ErrorDetails {
    let metadata: HashMap<_, _> = metadata.into_iter().map(|(k, v)| (k.to_owned(), clipped(v, 256))).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

fn status(code: Code, message: &str, details: ErrorDetails) -> Status {
    Status::with_error_details(code, clipped(message, MAX_MESSAGE_BYTES), details)
}

fn field_violations(violations: &Violations) -> Vec<FieldViolation> {
    let mut room = MAX_DETAIL_BYTES;
    let mut kept = Vec::new();
    for Violation { field, description } in &violations.0 {
        let size = field.len() + description.len() + 16;
        if size > room {
            let left = violations.0.len() - kept.len();
            kept.push(FieldViolation::new("", format!("and {left} more")));
            break;
        }
        room -= size;
        kept.push(FieldViolation::new(field.clone(), description.clone()));
    }
    kept
}

fn clipped(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = (0..=max_bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::{Expect, expect};

    use super::*;
    use crate::client::Failure;

    fn check(status: &Status, expected: Expect) {
        let failure = Failure::from(status);
        let info = status.get_error_details().error_info().cloned().unwrap();
        assert_eq!(info.domain, DOMAIN);
        expected.assert_eq(&format!("{:?} {}\n{failure}", failure.code, failure.reason));
    }

    fn violations(n: usize) -> Violations {
        let mut violations = Violations::default();
        for i in 0..n {
            violations
                .add(format!("spec.corpus.sources[{i}]"), "scheme `ftp` is unknown; use file://, s3:// or artifact://");
        }
        violations
    }

    #[test]
    fn every_status_says_what_is_wrong() {
        check(
            &invalid_argument(&violations(1)),
            expect![[r#"
            InvalidArgument INVALID_FIELDS
            spec.corpus.sources[0]: scheme `ftp` is unknown; use file://, s3:// or artifact://"#]],
        );
        check(
            &invalid_argument(&violations(2)),
            expect![[r#"
            InvalidArgument INVALID_FIELDS
            2 fields cannot be accepted:
              spec.corpus.sources[0]: scheme `ftp` is unknown; use file://, s3:// or artifact://
              spec.corpus.sources[1]: scheme `ftp` is unknown; use file://, s3:// or artifact://"#]],
        );
        check(
            &not_found("run", "7"),
            expect![[r#"
            NotFound NOT_FOUND
            run 7 does not exist"#]],
        );
        check(
            &failed_precondition("run", "a pause is not possible while finished"),
            expect![[r#"
            FailedPrecondition WRONG_STATE
            a pause is not possible while finished"#]],
        );
        check(
            &unusable("uri", "file:///x: holds no files"),
            expect![[r#"
            InvalidArgument UNUSABLE_INPUT
            uri: file:///x: holds no files"#]],
        );
        check(
            &request_id_reused(Uuid::nil()),
            expect![[r#"
            InvalidArgument REQUEST_ID_REUSED
            request_id: was already used with a different request; use a new UUID"#]],
        );
        check(
            &unavailable("the database does not answer", Duration::from_secs(2)),
            expect![[r#"
            Unavailable UNAVAILABLE
            the database does not answer; try again in 2 s"#]],
        );
        check(
            &resource_exhausted("watches", "at most 256 watches at once"),
            expect![[r#"
            ResourceExhausted LIMIT_REACHED
            at most 256 watches at once"#]],
        );
    }

    #[test]
    fn an_internal_error_shows_its_id_alone() {
        let status = internal(&"password=secret");
        assert!(!format!("{status:?}").contains("secret"));
        assert_eq!(Failure::from(&status).reason, "INTERNAL");
    }

    #[test]
    fn a_long_list_of_violations_fits_into_trailers() {
        let status = invalid_argument(&violations(1024));
        assert!(status.details().len() < 5000, "{}", status.details().len());
        assert!(status.message().len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        let failure = Failure::from(&status);
        let shown = failure.violations.len() - 1;
        assert_eq!(failure.violations.last().unwrap().description, format!("and {} more", 1024 - shown));
    }

    #[test]
    fn text_is_clipped_between_characters() {
        assert_eq!(clipped("äöü", 3), "ä…");
        assert_eq!(clipped("äöü", 6), "äöü");
    }
}
