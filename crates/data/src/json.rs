//! A streaming JSON reader, so that a single row may be larger than memory: values are skipped or,
//! if they are strings, returned in parts. It also accepts the output of Python's `json` (`NaN`,
//! `Infinity`), unpaired surrogates (read as U+FFFD) and trailing commas.

use std::io::{self, BufRead};

/// Maximum nesting depth of objects and arrays.
const MAX_DEPTH: usize = 256;
/// Maximum number of bytes kept of a key. No column has a longer name.
const MAX_KEY_BYTES: usize = 1024;
const REPLACEMENT: &str = "\u{fffd}";

/// Why a value could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// An error of the underlying reader.
    Io(io::Error),
    /// The input ended inside the value.
    Ended,
    /// The input is not valid JSON.
    Syntax(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The longest range that a value may span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    /// One line: JSON lines.
    Line,
    /// The whole file: an array.
    File,
}

/// A reader of JSON values.
pub(crate) struct Scanner<R> {
    reader: R,
    within: Within,
    /// Bytes consumed so far.
    pub(crate) offset: u64,
    /// Offset of the start of the line.
    pub(crate) line_start: u64,
    /// Line number, starting at 1.
    pub(crate) line: u64,
}

impl<R: BufRead> Scanner<R> {
    pub(crate) fn new(reader: R, within: Within) -> Self {
        Self { reader, within, offset: 0, line_start: 0, line: 1 }
    }

    /// Returns the next byte, or `None` at the end of the range given by [`Within`].
    pub(crate) fn peek(&mut self) -> io::Result<Option<u8>> {
        let byte = fill(&mut self.reader)?.first().copied();
        Ok(byte.filter(|byte| self.within == Within::File || *byte != b'\n'))
    }

    /// Returns whether the input has ended.
    pub(crate) fn at_end(&mut self) -> io::Result<bool> {
        Ok(fill(&mut self.reader)?.is_empty())
    }

    fn advance(&mut self, count: usize) {
        self.reader.consume(count);
        self.offset += count as u64;
    }

    /// Consumes one byte that [`Scanner::peek`] returned.
    pub(crate) fn bump(&mut self, byte: u8) {
        self.advance(1);
        if byte == b'\n' {
            self.line += 1;
            self.line_start = self.offset;
        }
    }

    /// Skips a byte order mark, if one is next.
    pub(crate) fn skip_byte_order_mark(&mut self) -> io::Result<()> {
        for byte in [0xef, 0xbb, 0xbf] {
            match self.peek()? {
                Some(next) if next == byte => self.bump(next),
                Some(_) | None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Skips to the end of the line, before its line feed.
    pub(crate) fn skip_to_line_end(&mut self) -> io::Result<()> {
        loop {
            let buffer = fill(&mut self.reader)?;
            let found = buffer.iter().position(|byte| *byte == b'\n');
            let count = found.unwrap_or(buffer.len());
            self.advance(count);
            if found.is_some() || count == 0 {
                return Ok(());
            }
        }
    }

    /// Skips to the next line. Returns whether there is one.
    pub(crate) fn next_line(&mut self) -> io::Result<bool> {
        self.skip_to_line_end()?;
        let ended = self.at_end()?;
        if !ended {
            self.bump(b'\n');
        }
        Ok(!ended)
    }

    /// Returns the next byte that is not whitespace.
    pub(crate) fn peek_dense(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Some(byte));
            }
            self.bump(byte);
        }
        Ok(None)
    }

    fn dense(&mut self) -> Result<u8, Fault> {
        self.peek_dense()?.ok_or(Fault::Ended)
    }

    /// Consumes `wanted`, after optional whitespace.
    pub(crate) fn expect(&mut self, wanted: u8, what: &str) -> Result<(), Fault> {
        let byte = self.dense()?;
        if byte != wanted {
            return Err(Fault::Syntax(format!("expected {what}, found `{}`", shown(byte))));
        }
        self.bump(byte);
        Ok(())
    }

    /// Consumes `wanted` if it is the next byte after whitespace.
    pub(crate) fn take_if(&mut self, wanted: u8) -> io::Result<bool> {
        let found = self.peek_dense()? == Some(wanted);
        if found {
            self.bump(wanted);
        }
        Ok(found)
    }

    /// Reads a key of an object and the colon after it.
    pub(crate) fn key(&mut self) -> Result<String, Fault> {
        self.expect(b'"', "a key in quotes")?;
        let mut key = Vec::new();
        while !self.string_part(&mut key, MAX_KEY_BYTES)? {
            key.truncate(MAX_KEY_BYTES / 2);
        }
        self.expect(b':', "`:`")?;
        Ok(String::from_utf8_lossy(&key).into_owned())
    }

    /// Reads more of a string whose opening quote has been consumed, until `bytes` has `limit`
    /// bytes or the string ends. Returns whether it has ended.
    pub(crate) fn string_part(&mut self, bytes: &mut Vec<u8>, limit: usize) -> Result<bool, Fault> {
        loop {
            if bytes.len() >= limit {
                return Ok(false);
            }
            let buffer = fill(&mut self.reader)?;
            if buffer.is_empty() {
                return Err(Fault::Ended);
            }
            let most = buffer.len().min(limit - bytes.len());
            let plain = buffer[..most].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(most);
            bytes.extend_from_slice(&buffer[..plain]);
            let next = buffer.get(plain).copied().filter(|_| plain < most);
            self.advance(plain);
            match next {
                None => {}
                Some(b'"') => {
                    self.bump(b'"');
                    return Ok(true);
                }
                Some(b'\\') => {
                    self.bump(b'\\');
                    self.escape(bytes)?;
                }
                Some(b'\n') => {
                    return Err(Fault::Syntax("a string is not closed on its line".to_owned()));
                }
                Some(byte) => {
                    return Err(Fault::Syntax(format!(
                        "a string contains the control character 0x{byte:02x}; escape it"
                    )));
                }
            }
        }
    }

    fn take(&mut self) -> Result<u8, Fault> {
        let byte = self.peek()?.ok_or(Fault::Ended)?;
        self.bump(byte);
        Ok(byte)
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let byte = match self.take()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'u' => return self.unicode_escape(bytes),
            other => return Err(Fault::Syntax(format!("`\\{}` is not a valid escape", shown(other)))),
        };
        bytes.push(byte);
        Ok(())
    }

    /// Reads the four digits after `\u`, and the second half of a surrogate pair. An unpaired
    /// surrogate becomes U+FFFD.
    fn unicode_escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let mut unit = self.hex()?;
        loop {
            match unit {
                0xd800..0xdc00 => {}
                unit => {
                    push_char(bytes, char::from_u32(unit));
                    return Ok(());
                }
            }
            if self.peek()? != Some(b'\\') {
                bytes.extend_from_slice(REPLACEMENT.as_bytes());
                return Ok(());
            }
            self.bump(b'\\');
            if self.peek()?.ok_or(Fault::Ended)? != b'u' {
                bytes.extend_from_slice(REPLACEMENT.as_bytes());
                return self.escape(bytes);
            }
            self.bump(b'u');
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                push_char(bytes, char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)));
                return Ok(());
            }
            bytes.extend_from_slice(REPLACEMENT.as_bytes());
            unit = low;
        }
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let mut value = 0;
        for _ in 0..4 {
            let byte = self.take()?;
            let digit = char::from(byte).to_digit(16);
            value =
                value << 4 | digit.ok_or_else(|| Fault::Syntax("`\\u` needs four hexadecimal digits".to_owned()))?;
        }
        Ok(value)
    }

    /// Skips any value.
    pub(crate) fn skip_value(&mut self, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Syntax(format!("it is nested deeper than {MAX_DEPTH} levels")));
        }
        match self.dense()? {
            b'"' => {
                self.bump(b'"');
                let mut ignored = Vec::new();
                while !self.string_part(&mut ignored, 4096)? {
                    ignored.clear();
                }
                Ok(())
            }
            b'{' => {
                self.bump(b'{');
                self.members(|scanner, _| scanner.skip_value(depth + 1))
            }
            b'[' => {
                self.bump(b'[');
                loop {
                    if self.take_if(b']')? {
                        return Ok(());
                    }
                    self.skip_value(depth + 1)?;
                    if !self.take_if(b',')? {
                        return self.expect(b']', "`,` or `]`");
                    }
                }
            }
            _ => self.skip_word(),
        }
    }

    /// Calls `each` with every key of the object whose brace has been consumed. `each` must consume
    /// the value.
    pub(crate) fn members(
        &mut self,
        mut each: impl FnMut(&mut Self, String) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        loop {
            if self.take_if(b'}')? {
                return Ok(());
            }
            let key = self.key()?;
            each(self, key)?;
            if !self.take_if(b',')? {
                return self.expect(b'}', "`,` or `}`");
            }
        }
    }

    /// Skips a number or a keyword.
    pub(crate) fn skip_word(&mut self) -> Result<(), Fault> {
        let mut start = Vec::new();
        let mut is_number = true;
        while let Some(byte) = self.peek()? {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')) {
                break;
            }
            is_number &= byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
            if start.len() < 16 {
                start.push(byte);
            }
            self.bump(byte);
        }
        let word = String::from_utf8_lossy(&start);
        let is_word = matches!(&*word, "true" | "false" | "null" | "NaN" | "Infinity" | "-Infinity" | "nan" | "-NaN");
        if is_word || (is_number && word.contains(|c: char| c.is_ascii_digit())) {
            return Ok(());
        }
        if start.is_empty() {
            return match self.peek()? {
                None => Err(Fault::Ended),
                Some(byte) => Err(Fault::Syntax(format!("expected a value, found `{}`", shown(byte)))),
            };
        }
        // A keyword at the very end of the input is truncated, not misspelled.
        if self.at_end()? { Err(Fault::Ended) } else { Err(Fault::Syntax(format!("`{word}` is not a JSON value"))) }
    }
}

fn fill<R: BufRead>(reader: &mut R) -> io::Result<&[u8]> {
    // `BufRead::fill_buf` passes on `Interrupted`, which is not a failure. The second call avoids
    // borrowing the reader twice.
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}

fn push_char(bytes: &mut Vec<u8>, c: Option<char>) {
    let mut buffer = [0; 4];
    bytes.extend_from_slice(c.map_or(REPLACEMENT, |c| c.encode_utf8(&mut buffer)).as_bytes());
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { char::from(byte).to_string() } else { format!("0x{byte:02x}") }
}
