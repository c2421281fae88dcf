//! Paging (AIP-158).

use inheritune_domain::spec::limits;

use super::fields::Field;

/// Entries of a page when the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 50;
/// Most entries of a page.
pub const MAX_PAGE_SIZE: u32 = 1000;
/// Most bytes of a page's entries, unless its only one is larger: gRPC clients take replies of 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// What a repeated field adds to each of its messages: tag and length.
const FRAME_BYTES: usize = 6;

/// What still fits into a reply.
#[derive(Debug)]
pub struct Room {
    left: usize,
    is_empty: bool,
}

impl Room {
    /// Of a reply that has `used` bytes already.
    #[must_use]
    pub fn after(used: usize) -> Self {
        Self { left: MAX_PAGE_BYTES.saturating_sub(used), is_empty: true }
    }

    /// Whether `message` fits as well; the first one always does, or a list could not go on.
    pub fn takes<M: prost::Message>(&mut self, message: &M) -> bool {
        let bytes = message.encoded_len() + FRAME_BYTES;
        let fits = std::mem::take(&mut self.is_empty) || bytes <= self.left;
        if fits {
            self.left = self.left.saturating_sub(bytes);
        }
        fits
    }
}

/// The page that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Entries at most.
    pub size: u32,
    /// Where it begins; none for the first page.
    pub token: Option<String>,
}

/// Reads a request's `page_size`, of which 0 is [`DEFAULT_PAGE_SIZE`] and more than [`MAX_PAGE_SIZE`] is that, and its
/// `page_token`.
pub(super) fn page(request: &mut Field<'_>, size: i32, token: &str) -> Page {
    if !limits::PAGE_SIZE.holds(size) {
        request
            .at("page_size")
            .bad(format!("{size} is negative; use 0 for {DEFAULT_PAGE_SIZE}, at most {MAX_PAGE_SIZE}"));
    }
    request.at("page_token").text(limits::PAGE_TOKEN, token);
    let size = match u32::try_from(size) {
        Ok(0) | Err(_) => DEFAULT_PAGE_SIZE,
        Ok(size) => size.min(MAX_PAGE_SIZE),
    };
    Page { size, token: (!token.is_empty()).then(|| token.to_owned()) }
}
