//! Conversions between Rust values and columns. An invalid column is a [`StoreError::Corrupt`] that
//! names it.

use inheritune_domain::id::Sha256Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::StoreError;
use crate::jobs::{Page, Paged};

/// Longest error or reason that is stored, in bytes.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Converts a domain value to a `jsonb` column.
pub(crate) fn to_json<T: Serialize>(value: &T, what: &str) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|e| corrupt(what, e))
}

/// Converts a `jsonb` column to a domain value.
pub(crate) fn from_json<T: DeserializeOwned>(value: serde_json::Value, what: &str) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|e| corrupt(what, e))
}

/// Checks that an enum column has a known value. `parsed` is the result of parsing `text`.
pub(crate) fn known<T>(parsed: Option<T>, what: &str, text: &str) -> Result<T, StoreError> {
    parsed.ok_or_else(|| corrupt(what, format!("`{text}` is unknown; this program may be older than the schema")))
}

/// Converts a count column.
pub(crate) fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// Converts a `bigint` column that is never negative.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Converts a size or step to `bigint`. Saturates at the largest value.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Makes external text acceptable to Postgres: replaces NUL characters and limits the length.
pub(crate) fn text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

pub(crate) fn corrupt(name: impl Into<String>, problem: impl ToString) -> StoreError {
    StoreError::Corrupt { name: name.into(), problem: problem.to_string() }
}

pub(crate) fn not_found(kind: &'static str, id: impl ToString) -> StoreError {
    StoreError::NotFound { kind, id: id.to_string() }
}

/// Parses [`Page::token`].
pub(crate) fn after_seq(page: &Page) -> Result<Option<i64>, StoreError> {
    page.token
        .as_deref()
        .map(|token| {
            i64::from_str_radix(token, 16).map_err(|_| StoreError::Location {
                location: format!("page token `{token}`"),
                problem: "is not valid; start from the first page".to_owned(),
            })
        })
        .transpose()
}

/// Returns the number of rows to query: one more than the page size, to detect whether there is
/// another page.
pub(crate) fn row_limit(page: &Page) -> i64 {
    i64::from(page.size.max(1)) + 1
}

/// Builds a page: removes the extra row and creates the token from the last remaining one.
pub(crate) fn paged<T>(page: &Page, mut rows: Vec<(i64, T)>) -> Paged<T> {
    let size = page.size.max(1) as usize;
    let more = rows.len() > size;
    rows.truncate(size);
    let (after, items): (Vec<String>, Vec<T>) = rows.into_iter().map(|(seq, item)| (format!("{seq:x}"), item)).unzip();
    let next = after.last().filter(|_| more).cloned();
    Paged { items, after, next }
}

/// A create request that may be repeated.
pub(crate) struct Request {
    pub(crate) id: Option<Uuid>,
    pub(crate) kind: &'static str,
    pub(crate) digest: Sha256Digest,
}

impl Request {
    pub(crate) fn new<T: Serialize>(id: Option<Uuid>, kind: &'static str, body: &T) -> Result<Self, StoreError> {
        let body = serde_json::to_vec(body).map_err(|e| corrupt(format!("{kind} request"), e))?;
        Ok(Self { id, kind, digest: Sha256Digest::of(&body) })
    }

    /// Records that this request creates `resource`, or returns the resource that it created
    /// before. A second caller waits here until the transaction of the first one ends.
    pub(crate) async fn made_before(
        &self,
        conn: &mut PgConnection,
        resource: Uuid,
    ) -> Result<Option<Uuid>, StoreError> {
        let Some(id) = self.id else { return Ok(None) };
        let inserted = sqlx::query!(
            "-- request_ids.insert
             INSERT INTO request_ids (request_id, kind, resource_id, request_sha256) VALUES ($1, $2, $3, $4)
             ON CONFLICT (request_id) DO NOTHING",
            id,
            self.kind,
            resource,
            &self.digest.0[..],
        )
        .execute(&mut *conn)
        .await?;
        if inserted.rows_affected() == 1 {
            return Ok(None);
        }
        let before = sqlx::query!(
            "-- request_ids.get
             SELECT kind, resource_id, request_sha256 FROM request_ids WHERE request_id = $1",
            id,
        )
        .fetch_one(&mut *conn)
        .await?;
        if before.kind == self.kind && before.request_sha256 == self.digest.0 {
            Ok(Some(before.resource_id))
        } else {
            Err(StoreError::RequestIdReused(id))
        }
    }
}
