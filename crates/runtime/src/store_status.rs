//! Maps store errors to gRPC statuses, in the same way for all services.

use std::time::Duration;

use inheritune_api::status;
use inheritune_objects::Occasionally;
use inheritune_store::StoreError;
use tonic::Status;

/// How long a caller should wait before it retries.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Returns the status for `error`. `field` is the request field that names the resource in
/// question.
pub fn store_status(error: &StoreError, field: &str) -> Status {
    match error {
        StoreError::NotFound { kind, id } => status::not_found(kind, id),
        StoreError::RequestIdReused(id) => status::request_id_reused(*id),
        StoreError::WrongState(problem) => status::failed_precondition(field, problem),
        StoreError::Location { .. } | StoreError::Corrupt { .. } => status::unusable(field, &error.to_string()),
        StoreError::Database(e) => {
            let code = e.as_database_error().map(|refusal| refusal.code().unwrap_or_default().into_owned());
            match code.as_deref() {
                // The database was not reached, or it rolled back and a retry may succeed.
                None => away("the database", error),
                Some(code) if error.is_unavailable() || code.starts_with("40") => away("the database", error),
                Some(_) => status::internal(error),
            }
        }
        StoreError::Objects(_) if error.is_retryable() => away("the object store", error),
        StoreError::Objects(_) | StoreError::Migrate(_) | StoreError::File { .. } | StoreError::LeaseLost(_) => {
            status::internal(error)
        }
    }
}

/// Limits the log messages, since every call fails while a store is unavailable.
static AWAY: Occasionally = Occasionally::new();

fn away(what: &str, error: &StoreError) -> Status {
    if let Some(others) = AWAY.now() {
        tracing::warn!(%error, others, "{what} does not answer");
    }
    status::unavailable(&format!("{what} does not answer"), RETRY_AFTER)
}
