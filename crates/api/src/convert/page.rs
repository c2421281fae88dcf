//! Paging (AIP-158).

use inheritune_domain::violation::{Violation, Violations};

/// Entries of a page when the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 50;
/// Most entries of a page.
pub const MAX_PAGE_SIZE: u32 = 1000;

/// How many entries the page has: 0 is [`DEFAULT_PAGE_SIZE`], more than [`MAX_PAGE_SIZE`] is that.
///
/// # Errors
/// A negative size.
pub fn page_size(asked: i32) -> Result<u32, Violations> {
    match u32::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => Err(Violations(vec![Violation {
            field: "page_size".to_owned(),
            description: format!("{asked} is negative; use 0 for {DEFAULT_PAGE_SIZE}, at most {MAX_PAGE_SIZE}"),
        }])),
    }
}

/// The page token of a request; none for the first page.
pub fn page_token(token: &str) -> Option<String> {
    (!token.is_empty()).then(|| token.to_owned())
}
