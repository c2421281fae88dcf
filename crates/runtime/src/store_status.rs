//! What a failed store call means to a caller of gRPC: one answer for all services.

use std::time::Duration;

use inheritune_api::status;
use inheritune_objects::Occasionally;
use inheritune_store::StoreError;
use tonic::Status;

/// When a caller may try again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status for `error`; `field` is the request's field that named what could not be used.
pub fn store_status(error: &StoreError, field: &str) -> Status {
    match error {
        StoreError::NotFound { kind, id } => status::not_found(kind, id),
        StoreError::RequestIdReused(id) => status::request_id_reused(*id),
        StoreError::WrongState(problem) => status::failed_precondition(field, problem),
        StoreError::Location { .. } | StoreError::Corrupt { .. } => status::unusable(field, &error.to_string()),
        StoreError::Database(e) => {
            let code = e.as_database_error().map(|refusal| refusal.code().unwrap_or_default().into_owned());
            match code.as_deref() {
                // It was not reached; or it rolled back, and the same call may succeed.
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

/// Every call fails while a store is away.
static AWAY: Occasionally = Occasionally::new();

fn away(what: &str, error: &StoreError) -> Status {
    if let Some(others) = AWAY.now() {
        tracing::warn!(%error, others, "{what} does not answer");
    }
    status::unavailable(&format!("{what} does not answer"), RETRY_AFTER)
}
