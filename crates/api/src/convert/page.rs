//! Pagination (AIP-158).

use inheritune_domain::spec::limits;

use super::fields::Field;

/// Default number of entries per page.
pub const DEFAULT_PAGE_SIZE: u32 = 50;
/// Maximum number of entries per page.
pub const MAX_PAGE_SIZE: u32 = 1000;
/// Maximum bytes of the entries of a page, unless a single entry is larger. gRPC clients accept
/// replies of up to 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Bytes that a repeated field adds to each of its messages: tag and length.
const FRAME_BYTES: usize = 6;

/// The remaining room in a reply.
#[derive(Debug)]
pub struct Room {
    left: usize,
    is_empty: bool,
}

impl Room {
    /// Creates the room of a reply that already contains `used` bytes.
    #[must_use]
    pub fn after(used: usize) -> Self {
        Self { left: MAX_PAGE_BYTES.saturating_sub(used), is_empty: true }
    }

    /// Returns whether `message` also fits. The first message always does, or a list could not
    /// continue.
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
    /// Maximum number of entries.
    pub size: u32,
    /// Where it begins; `None` for the first page.
    pub token: Option<String>,
}

/// Reads the `page_token` and the `page_size` of a request. A size of 0 means
/// [`DEFAULT_PAGE_SIZE`], and sizes above [`MAX_PAGE_SIZE`] are reduced to it.
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
