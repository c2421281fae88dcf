//! Conversions of timestamps.

use prost_types::Timestamp;
use time::OffsetDateTime;

/// Returns `at` as a message.
pub fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp { seconds: at.unix_timestamp(), nanos: at.nanosecond() as i32 }
}

/// Returns `at` as a time, or `None` if it is out of range.
pub fn from_timestamp(at: Timestamp) -> Option<OffsetDateTime> {
    let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}
