//! Plain text, and text in parts: UTF-8 that is validated without keeping all of it in memory.

use std::io::{BufRead, Read as _};
use std::sync::Arc;

use crate::{DataError, Part};

/// A byte order mark, which declares the encoding of a text and is not part of it.
pub(crate) const BYTE_ORDER_MARK: char = '\u{feff}';
/// Maximum length of one part of a document.
pub(crate) const PART_BYTES: usize = 256 * 1024;

/// Bytes of a text that may end within a character.
#[derive(Debug, Default)]
pub(crate) struct Utf8Parts {
    pub(crate) bytes: Vec<u8>,
}

impl Utf8Parts {
    pub(crate) fn strip_byte_order_mark(&mut self) {
        if self.bytes.starts_with("\u{feff}".as_bytes()) {
            self.bytes.drain(..BYTE_ORDER_MARK.len_utf8());
        }
    }

    /// Removes and returns up to `most` bytes of whole characters.
    ///
    /// # Errors
    /// The bytes are not valid UTF-8.
    pub(crate) fn take(&mut self, most: usize) -> Result<String, ()> {
        let part = &self.bytes[..most.min(self.bytes.len())];
        let whole = match std::str::from_utf8(part) {
            Ok(part) => part.len(),
            Err(error) if error.error_len().is_some() => return Err(()),
            Err(error) => error.valid_up_to(),
        };
        let rest = self.bytes.split_off(whole);
        String::from_utf8(std::mem::replace(&mut self.bytes, rest)).map_err(|_| ())
    }

    /// Returns all remaining text.
    ///
    /// # Errors
    /// The bytes are not valid UTF-8.
    pub(crate) fn finish(self) -> Result<String, ()> {
        String::from_utf8(self.bytes).map_err(|_| ())
    }
}

/// Splits a document into parts. An empty document has none.
pub(crate) fn parts(document: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = document;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.floor_char_boundary(PART_BYTES));
        parts.push(Part { text: part.to_owned(), ends_document: after.is_empty() });
        rest = after;
    }
    parts
}

/// A file that is a single document.
pub(crate) struct TextFile<R> {
    reader: R,
    file: Arc<str>,
    pending: Utf8Parts,
    /// Number of bytes before `pending`.
    offset: u64,
    at_start: bool,
    ended: bool,
}

impl<R: BufRead> TextFile<R> {
    pub(crate) fn new(reader: R, file: Arc<str>) -> Self {
        Self { reader, file, pending: Utf8Parts::default(), offset: 0, at_start: true, ended: false }
    }

    pub(crate) fn next_part(&mut self) -> Result<Option<Part>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let wanted = PART_BYTES - self.pending.bytes.len();
        (&mut self.reader).take(wanted as u64).read_to_end(&mut self.pending.bytes).map_err(DataError::Io)?;
        if std::mem::take(&mut self.at_start) {
            let before = self.pending.bytes.len();
            self.pending.strip_byte_order_mark();
            self.offset = (before - self.pending.bytes.len()) as u64;
        }
        self.ended = self.pending.bytes.len() < PART_BYTES && self.reader.fill_buf().map_err(DataError::Io)?.is_empty();
        let invalid = |bytes: &[u8]| std::str::from_utf8(bytes).err().map_or(0, |error| error.valid_up_to()) as u64;
        let wrong_at = self.offset + invalid(&self.pending.bytes);
        let text = if self.ended { std::mem::take(&mut self.pending).finish() } else { self.pending.take(PART_BYTES) };
        let text = text.map_err(|()| DataError::Bad {
            file: self.file.to_string(),
            problem: format!("is not valid UTF-8 at byte {wrong_at}; convert it to UTF-8 first"),
        })?;
        self.offset += text.len() as u64;
        if text.is_empty() && self.offset == 0 {
            return Ok(None);
        }
        Ok(Some(Part { text, ends_document: self.ended }))
    }
}
