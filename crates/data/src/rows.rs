//! Rows of JSON: one object per line, or the elements of one array. Each row is a document: the
//! string in its text column, or the element itself if it is a string.

use std::io::BufRead;
use std::sync::Arc;

use crate::json::{Fault, Scanner, Within};
use crate::text::{self, Utf8Parts};
use crate::{DataError, Part, ReadAs, text_column_advice};

/// A row with at most this much text is buffered until its end has been read, so that a bad row can
/// be skipped.
const HELD_BYTES: usize = 1 << 20;
/// Maximum number of columns named in a message.
const NAMES_SHOWN: usize = 12;

/// The documents of a file of JSON rows.
pub(crate) struct JsonRows<R> {
    scanner: Scanner<R>,
    within: Within,
    file: Arc<str>,
    read_as: ReadAs,
    state: State,
    /// Parts of a row that has been read to its end.
    ready: std::collections::VecDeque<Part>,
    rows: u64,
}

enum State {
    /// Before the first row.
    Start,
    /// Before another row.
    Between,
    /// In the text of a row that is too long to buffer, with `open` objects open.
    InText { open: usize, parts: Utf8Parts },
    /// At the end of the file.
    Done,
}

/// What the start of a row contains.
enum Begun {
    /// The opening quote of the text has been consumed, with `open` objects open.
    Text { open: usize },
    /// The row has no text. Its value has been consumed.
    Null,
    /// The row cannot be used. Its value has been consumed.
    Bad(String),
}

impl<R: BufRead> JsonRows<R> {
    pub(crate) fn new(reader: R, within: Within, file: Arc<str>, read_as: ReadAs) -> Self {
        let ready = std::collections::VecDeque::new();
        Self { scanner: Scanner::new(reader, within), within, file, read_as, state: State::Start, ready, rows: 0 }
    }

    pub(crate) fn next_part(&mut self) -> Result<Option<Part>, DataError> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(Some(part));
            }
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(None),
                State::InText { open, parts } => return self.go_on(open, parts).map(Some),
                State::Start => {
                    self.scanner.skip_byte_order_mark().map_err(DataError::Io)?;
                    if self.within == Within::File {
                        self.scanner.expect(b'[', "`[`").map_err(|fault| self.fatal(fault))?;
                    }
                    self.state = State::Between;
                }
                State::Between => self.next_row()?,
            }
        }
    }

    fn next_row(&mut self) -> Result<(), DataError> {
        if !self.find_row()? {
            return Ok(());
        }
        self.rows += 1;
        let mut parts = Utf8Parts::default();
        match self.read_row(&mut parts) {
            Ok(Read::Whole(has_text)) => {
                self.state = State::Between;
                match (has_text, parts.finish()) {
                    (true, Ok(text)) => self.hold(&text),
                    (false, Ok(_)) => self.read_as.tally.count_empty(),
                    (_, Err(())) => self.leave_out("its text is not valid UTF-8; convert it to UTF-8")?,
                }
            }
            Ok(Read::Bad(problem)) => {
                self.state = State::Between;
                self.leave_out(&problem)?;
            }
            Ok(Read::TooLong { open }) => {
                parts.strip_byte_order_mark();
                self.state = State::InText { open, parts };
            }
            Err(fault) => self.recover(fault)?,
        }
        Ok(())
    }

    /// Skips to the next row. Returns whether there is one.
    fn find_row(&mut self) -> Result<bool, DataError> {
        loop {
            self.scanner.skip_byte_order_mark().map_err(DataError::Io)?;
            let next = self.scanner.peek_dense().map_err(DataError::Io)?;
            match (self.within, next) {
                (Within::Line, Some(_)) => return Ok(true),
                (Within::Line, None) => {
                    if !self.scanner.next_line().map_err(DataError::Io)? {
                        return Ok(false);
                    }
                }
                (Within::File, Some(b']')) => {
                    self.scanner.bump(b']');
                    return match self.scanner.peek_dense().map_err(DataError::Io)? {
                        None => Ok(false),
                        Some(_) => Err(self.at("unexpected data after the end of the array")),
                    };
                }
                (Within::File, Some(_)) => return Ok(true),
                (Within::File, None) => return Err(self.fatal(Fault::Ended)),
            }
        }
    }

    fn read_row(&mut self, parts: &mut Utf8Parts) -> Result<Read, Fault> {
        match self.begin()? {
            Begun::Text { open } => {
                if !self.scanner.string_part(&mut parts.bytes, HELD_BYTES)? {
                    return Ok(Read::TooLong { open });
                }
                let again = self.end_row(open)?;
                Ok(if again { Read::Bad(self.twice()) } else { Read::Whole(true) })
            }
            Begun::Null => self.end_row(0).map(|_| Read::Whole(false)),
            Begun::Bad(problem) => self.end_row(0).map(|_| Read::Bad(problem)),
        }
    }

    /// Reads up to the start of the text.
    fn begin(&mut self) -> Result<Begun, Fault> {
        match self.scanner.peek_dense()? {
            Some(b'"') => {
                self.scanner.bump(b'"');
                Ok(Begun::Text { open: 0 })
            }
            Some(b'{') => {
                self.scanner.bump(b'{');
                let column = self.read_as.text_column.clone();
                self.find_text(&column, 1, &mut Vec::new())
            }
            Some(_) => {
                self.scanner.skip_value(0)?;
                Ok(Begun::Bad("is not an object".to_owned()))
            }
            None => Err(Fault::Ended),
        }
    }

    /// Looks for the column `path` in the object whose brace has been consumed.
    fn find_text(&mut self, path: &str, open: usize, names: &mut Vec<String>) -> Result<Begun, Fault> {
        let mut found: Option<Begun> = None;
        loop {
            if self.scanner.take_if(b'}')? {
                break;
            }
            let key = self.scanner.key()?;
            if names.len() < NAMES_SHOWN && open == 1 {
                names.push(key.clone());
            }
            let next = self.scanner.peek_dense()?;
            let below = path.strip_prefix(key.as_str()).and_then(|rest| rest.strip_prefix('.'));
            let value = if key == path {
                match next {
                    Some(b'"') if found.is_none() => {
                        self.scanner.bump(b'"');
                        return Ok(Begun::Text { open });
                    }
                    Some(b'n') => {
                        self.scanner.skip_word()?;
                        Some(Begun::Null)
                    }
                    other => {
                        self.scanner.skip_value(open)?;
                        Some(Begun::Bad(format!(
                            "column `{}` is {}, not a string",
                            self.read_as.text_column,
                            kind(other)
                        )))
                    }
                }
            } else if let (Some(below), Some(b'{')) = (below, next) {
                self.scanner.bump(b'{');
                match self.find_text(below, open + 1, names)? {
                    text @ Begun::Text { .. } if found.is_none() => return Ok(text),
                    // The start of the text has been consumed. The row is bad, but the rest of it
                    // must be read.
                    Begun::Text { open: inner } => {
                        let mut ignored = Vec::new();
                        while !self.scanner.string_part(&mut ignored, 4096)? {
                            ignored.clear();
                        }
                        self.end_row_from(inner, open)?;
                        Some(Begun::Bad(self.twice()))
                    }
                    other => Some(other),
                }
            } else {
                self.scanner.skip_value(open)?;
                None
            };
            found = match (found, value) {
                (Some(_), Some(_)) => Some(Begun::Bad(self.twice())),
                (found, value) => found.or(value),
            };
            if !self.scanner.take_if(b',')? {
                self.scanner.expect(b'}', "`,` or `}`")?;
                break;
            }
        }
        Ok(found.unwrap_or_else(|| {
            let column = &self.read_as.text_column;
            let advice = text_column_advice(names.iter().map(AsRef::as_ref));
            Begun::Bad(format!("has no column `{column}` (found: {}); {advice}", list(names)))
        }))
    }

    /// Reads the rest of the objects around a string until only `still` of the `open` ones are
    /// left. Returns whether the column occurs again.
    fn end_row_from(&mut self, open: usize, still: usize) -> Result<bool, Fault> {
        let column = self.read_as.text_column.clone();
        let own = column.rsplit('.').next().unwrap_or(&column).to_owned();
        let mut again = false;
        for depth in (still..open).rev() {
            // The comma or brace after the value that has just been read.
            if self.scanner.take_if(b',')? {
                self.scanner.members(|scanner, key| {
                    again |= *key == *column || (depth + 1 == open && key == own);
                    scanner.skip_value(depth + 1)
                })?;
            } else {
                self.scanner.expect(b'}', "`,` or `}`")?;
            }
        }
        Ok(again)
    }

    /// Reads the rest of a row and its separator. Returns whether the column occurs twice.
    fn end_row(&mut self, open: usize) -> Result<bool, Fault> {
        let again = self.end_row_from(open, 0)?;
        let comma = self.scanner.take_if(b',')?;
        match (self.within, self.scanner.peek_dense()?) {
            (Within::Line, None) => {}
            (Within::Line, Some(_)) => {
                return Err(Fault::Syntax("unexpected data after the object; each line must be one object".to_owned()));
            }
            (Within::File, Some(b']')) => {}
            (Within::File, Some(_)) if comma => {}
            (Within::File, Some(_)) => return Err(Fault::Syntax("expected `,` or `]`".to_owned())),
            (Within::File, None) => return Err(Fault::Ended),
        }
        Ok(again)
    }

    /// Reads more of a text that is too long to buffer.
    fn go_on(&mut self, open: usize, mut parts: Utf8Parts) -> Result<Part, DataError> {
        let ended = if parts.bytes.len() >= text::PART_BYTES {
            false
        } else {
            self.scanner.string_part(&mut parts.bytes, text::PART_BYTES).map_err(|fault| self.fatal(fault))?
        };
        if !ended {
            let invalid = |()| self.at("its text is not valid UTF-8; convert it to UTF-8");
            let text = parts.take(text::PART_BYTES).map_err(invalid)?;
            self.state = State::InText { open, parts };
            return Ok(Part { text, ends_document: false });
        }
        if self.end_row(open).map_err(|fault| self.fatal(fault))? {
            let twice = self.twice();
            return Err(self.at(&twice));
        }
        self.state = State::Between;
        let text = parts.finish().map_err(|()| self.at("its text is not valid UTF-8; convert it to UTF-8"))?;
        Ok(Part { text, ends_document: true })
    }

    fn hold(&mut self, document: &str) {
        let document = document.strip_prefix(text::BYTE_ORDER_MARK).unwrap_or(document);
        if document.is_empty() {
            self.read_as.tally.count_empty();
        }
        self.ready.extend(text::parts(document));
    }

    /// Handles a fault in a row. In JSON lines, reading continues with the next line. In an array,
    /// the fault is fatal.
    fn recover(&mut self, fault: Fault) -> Result<(), DataError> {
        match (self.within, fault) {
            (_, Fault::Io(error)) => Err(DataError::Io(error)),
            (Within::File, fault) => Err(self.fatal(fault)),
            (Within::Line, fault) => {
                let problem = self.problem(fault)?;
                self.leave_out(&problem)?;
                self.state = State::Between;
                Ok(())
            }
        }
    }

    fn problem(&mut self, fault: Fault) -> Result<String, DataError> {
        let column = self.scanner.offset - self.scanner.line_start + 1;
        let must = format!("each line must be a JSON object with a string `{}`", self.read_as.text_column);
        Ok(match fault {
            Fault::Io(error) => return Err(DataError::Io(error)),
            Fault::Ended if self.scanner.at_end().map_err(DataError::Io)? => {
                "ends in the middle of a row: the file or its last line is truncated".to_owned()
            }
            Fault::Ended => format!("ends in the middle of a row, at column {column}; {must}"),
            Fault::Syntax(problem) => format!("{problem} at column {column}; {must}"),
        })
    }

    fn fatal(&mut self, fault: Fault) -> DataError {
        match self.problem(fault) {
            Ok(problem) if self.read_as.max_bad_rows > 0 => {
                let why = "max_bad_rows does not apply: parts of this long row, or of the array, are already in use";
                self.at(&format!("{problem} ({why})"))
            }
            Ok(problem) => self.at(&problem),
            Err(error) => error,
        }
    }

    fn at(&self, problem: &str) -> DataError {
        DataError::Bad { file: self.file.to_string(), problem: format!("{}: {problem}", self.place()) }
    }

    fn place(&self) -> String {
        match self.within {
            Within::Line => format!("line {}", self.scanner.line),
            Within::File => format!("row {} (line {})", self.rows, self.scanner.line),
        }
    }

    /// Counts a bad row and skips to the next line.
    fn leave_out(&mut self, problem: &str) -> Result<(), DataError> {
        self.read_as.bad_row(&self.file, &format!("{}: {problem}", self.place()))?;
        if self.within == Within::Line {
            // The fault may be anywhere in the line.
            self.scanner.skip_to_line_end().map_err(DataError::Io)?;
        }
        Ok(())
    }

    fn twice(&self) -> String {
        format!("has the column `{}` twice", self.read_as.text_column)
    }
}

enum Read {
    /// Read to its end. The flag says whether there is text.
    Whole(bool),
    /// Read to its end, but it cannot be used.
    Bad(String),
    /// Read up to [`HELD_BYTES`] of its text, with `open` objects open.
    TooLong { open: usize },
}

fn kind(first: Option<u8>) -> &'static str {
    match first {
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        Some(b't' | b'f') => "true or false",
        Some(b'"') => "a second string",
        Some(_) | None => "a number",
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
