//! The text of a corpus, source by source and file by file, in pieces that fit in memory.
//!
//! A file's name says what it is: `.jsonl` and `.ndjson` hold one JSON object a line whose `text` column is a
//! document, `.parquet` one a row ([`rows_of_parquet`]), `.bin` tokens ([`token_file`]); every other name is plain text and
//! one document as a whole. A further `.gz`, `.zst` or `.zstd` says how text, rows and tokens are packed. Of a folder, the
//! files with a known ending are read in the order of their names (`.txt`, `.text`, `.md`, `.jsonl`, `.ndjson`,
//! `.parquet`; `.bin` where the name says `train` or `val`) and the others are left out; a location that is a single file
//! is read whatever its name. A document without text is skipped.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use inheritune_domain::artifact::Location;
use inheritune_domain::job::FailureClass;
use inheritune_runtime::unpacking::BoundedDecoder;
use inheritune_runtime::worker::JobError;
use inheritune_store::objects::Folder;
use inheritune_store::{Store, StoreError};
use serde::Deserialize;
use tokio::runtime::Handle;

mod rows_of_parquet;
mod token_file;

/// A document is cut into pieces of about this size where that changes no token.
const PIECE_BYTES: usize = 256 * 1024;
/// Longest text without a place to cut it, and longest JSONL line.
const MAX_UNCUT_BYTES: usize = 256 * 1024 * 1024;
/// Read from a file at once.
const READ_BYTES: usize = 256 * 1024;

/// Whether long documents are cut into pieces, each of which is encoded by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutting {
    /// After a single line feed between two characters that are not white space. A byte-level BPE's own
    /// pre-tokenizer never joins text across such a place, so the tokens stay the same.
    AtLineFeeds,
    /// Not at all: some tokenizers treat the start of a text in a special way.
    Never,
}

/// Files that a message names at most.
const NAMES_SHOWN: usize = 3;

/// Part of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Part of a document.
    Text {
        /// Never empty.
        text: String,
        /// It is the document's last.
        ends_document: bool,
    },
    /// Tokens of documents, their ends among them.
    Tokens {
        /// Their ids.
        ids: Vec<u32>,
        /// They are for validation.
        held_out: bool,
    },
}

impl Piece {
    fn text(text: impl Into<String>, ends_document: bool) -> Self {
        Self::Text { text: text.into(), ends_document }
    }
}

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The store's reason.
    #[error("{file}: {source}")]
    Store {
        /// The file.
        file: String,
        /// Why.
        source: StoreError,
    },
    /// What the file holds cannot be used.
    #[error("{file}: {problem}")]
    Bad {
        /// The file.
        file: String,
        /// What is wrong, where, and what to do.
        problem: String,
    },
}

impl From<CorpusError> for JobError {
    fn from(error: CorpusError) -> Self {
        match &error {
            CorpusError::Store { source, .. } => Self::new(source.class(), error.to_string()),
            CorpusError::Bad { .. } => Self::Permanent(error.to_string()),
        }
    }
}

/// The files of a corpus, in order.
pub struct Corpus {
    files: Vec<CorpusFile>,
    bytes_read: Arc<AtomicU64>,
}

#[derive(Clone)]
struct CorpusFile {
    folder: Arc<Folder>,
    name: String,
    size_bytes: u64,
    /// Which source it belongs to, from 0.
    source: usize,
    /// What messages call it.
    shown: String,
    rows: Rows,
    packing: Packing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    Text,
    Jsonl,
    Parquet,
    Tokens { held_out: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Corpus {
    /// Finds the files of `sources`, in this order.
    ///
    /// # Errors
    /// A source does not exist or may not be read, or a folder holds no file that is read.
    pub async fn open(store: &Store, sources: &[Location]) -> Result<Self, JobError> {
        let mut files = Vec::new();
        for (number, source) in sources.iter().enumerate() {
            let folder = Arc::new(store.open(source).await?);
            if let Some(link) = folder.dangling_links().iter().find(|link| told_by_name(link).2) {
                return Err(JobError::Permanent(format!("{source}: {link} is a link to nothing")));
            }
            let alone = folder.files().len() == 1;
            let before = files.len();
            for file in folder.files() {
                let (rows, packing, known) = told_by_name(&file.name);
                if !known && !alone {
                    tracing::info!(%source, file = file.name, "not a text file by its name: left out");
                    continue;
                }
                let shown = if alone { source.to_string() } else { format!("{source}/{}", file.name) };
                let (name, size_bytes) = (file.name.clone(), file.size_bytes);
                files.push(CorpusFile {
                    folder: folder.clone(),
                    name,
                    size_bytes,
                    source: number,
                    shown,
                    rows,
                    packing,
                });
            }
            if files.len() == before {
                return Err(JobError::Permanent(format!(
                    "{source}: holds no file ending in .txt, .text, .md, .jsonl or .ndjson (or one of these and .gz, .zst), \
                     .parquet, or train.bin"
                )));
            }
            // What is held out has to come last; a source that has nothing else has to be trained on.
            let own = &mut files[before..];
            own.sort_by_key(CorpusFile::held_out);
            if own.iter().all(CorpusFile::held_out) {
                own.iter_mut().for_each(|file| file.rows = Rows::Tokens { held_out: false });
            }
        }
        Ok(Self { files, bytes_read: Arc::default() })
    }

    /// Size of all files as they are stored.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Its files, for messages: the first few by name.
    pub fn names(&self) -> String {
        let shown: Vec<&str> = self.files.iter().take(NAMES_SHOWN).map(|file| file.shown.as_str()).collect();
        match self.files.len().saturating_sub(NAMES_SHOWN) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    /// Stored bytes read so far, over all passes.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// How many sources it has.
    pub fn sources(&self) -> usize {
        self.files.last().map_or(0, |file| file.source + 1)
    }

    /// One pass over all documents of one source. To be read on a thread that is none of `runtime`'s.
    pub fn pieces(
        &self,
        source: usize,
        cutting: Cutting,
        runtime: &Handle,
    ) -> impl Iterator<Item = Result<Piece, CorpusError>> + Send {
        let (bytes_read, runtime) = (self.bytes_read.clone(), runtime.clone());
        let files = self.files.clone().into_iter().filter(move |file| file.source == source);
        files.flat_map(move |file| {
            file.pieces(cutting, &bytes_read, &runtime).unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
        })
    }
}

type Pieces = Box<dyn Iterator<Item = Result<Piece, CorpusError>> + Send>;

impl CorpusFile {
    fn held_out(&self) -> bool {
        self.rows == Rows::Tokens { held_out: true }
    }

    fn pieces(self, cutting: Cutting, bytes_read: &Arc<AtomicU64>, runtime: &Handle) -> Result<Pieces, CorpusError> {
        Ok(match self.rows {
            Rows::Parquet => {
                let documents = rows_of_parquet::documents(self, bytes_read, runtime)?;
                Box::new(documents.flat_map(move |text| match text {
                    Ok(text) => cut_row(text, cutting).into_iter().map(Ok).collect::<Vec<_>>(),
                    Err(error) => vec![Err(error)],
                }))
            }
            Rows::Tokens { held_out } => {
                let reader = self.unpacked(bytes_read, runtime)?;
                Box::new(token_file::pieces(self.shown, reader, held_out))
            }
            Rows::Text | Rows::Jsonl => {
                let reader = self.unpacked(bytes_read, runtime)?;
                Box::new(FilePieces::new(self, cutting, reader))
            }
        })
    }

    fn unpacked(
        &self,
        bytes_read: &Arc<AtomicU64>,
        runtime: &Handle,
    ) -> Result<BufReader<Box<dyn Read + Send>>, CorpusError> {
        let stored = StoredBytes::open(self, 0..self.size_bytes, bytes_read, runtime)?;
        let reader: Box<dyn Read + Send> = match self.packing {
            Packing::Plain => Box::new(stored),
            Packing::Gzip => Box::new(BoundedDecoder::new(flate2::read::MultiGzDecoder::new(stored), self.size_bytes)),
            Packing::Zstd => {
                let unpacked = zstd::stream::read::Decoder::new(stored);
                let unpacked = unpacked.map_err(|error| read_error(&self.shown, error))?;
                Box::new(BoundedDecoder::new(unpacked, self.size_bytes))
            }
        };
        Ok(BufReader::with_capacity(READ_BYTES, reader))
    }
}

fn told_by_name(name: &str) -> (Rows, Packing, bool) {
    let name = name.to_ascii_lowercase();
    let (stem, packing) = if let Some(stem) = name.strip_suffix(".gz") {
        (stem, Packing::Gzip)
    } else if let Some(stem) = name.strip_suffix(".zst").or_else(|| name.strip_suffix(".zstd")) {
        (stem, Packing::Zstd)
    } else {
        (name.as_str(), Packing::Plain)
    };
    let ends_in = |endings: &[&str]| endings.iter().any(|ending| stem.ends_with(ending));
    if ends_in(&[".jsonl", ".ndjson"]) {
        return (Rows::Jsonl, packing, true);
    }
    if ends_in(&[".parquet"]) {
        // It packs its own columns: packed once more, it cannot be read from its end.
        return (Rows::Parquet, packing, packing == Packing::Plain);
    }
    if let Some(stem) = stem.strip_suffix(".bin") {
        let file_name = stem.rsplit('/').next().unwrap_or(stem);
        let says = |words: &[&str]| file_name.split(|c: char| !c.is_alphanumeric()).any(|word| words.contains(&word));
        let held_out = says(&["val", "validation"]);
        return (Rows::Tokens { held_out }, packing, held_out || says(&["train"]));
    }
    (Rows::Text, packing, ends_in(&[".txt", ".text", ".md"]))
}

/// The pieces of one file.
struct FilePieces {
    file: CorpusFile,
    cutting: Cutting,
    reader: BufReader<Box<dyn Read + Send>>,
    /// Unpacked bytes taken from the reader and not yet handed out (text only).
    buffer: Vec<u8>,
    /// Where `buffer` starts in the unpacked file.
    offset: u64,
    line: u64,
    /// Pieces of a long JSONL row that were cut already.
    ready: VecDeque<Piece>,
    finished: bool,
}

#[derive(Deserialize)]
struct Row {
    text: String,
}

impl FilePieces {
    fn new(file: CorpusFile, cutting: Cutting, reader: BufReader<Box<dyn Read + Send>>) -> Self {
        let (buffer, ready) = (Vec::new(), VecDeque::new());
        Self { file, cutting, reader, buffer, offset: 0, line: 0, ready, finished: false }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, CorpusError> {
        if self.file.rows == Rows::Jsonl { self.next_row() } else { self.next_text() }
    }

    fn next_text(&mut self) -> Result<Option<Piece>, CorpusError> {
        let mut searched = PIECE_BYTES;
        while !self.finished {
            if self.cutting == Cutting::AtLineFeeds && self.buffer.len() > searched {
                if let Some(cut) = place_to_cut(&self.buffer, searched) {
                    let rest = self.buffer.split_off(cut);
                    return self.take_text(rest, false).map(Some);
                }
                searched = self.buffer.len();
            }
            if self.buffer.len() > MAX_UNCUT_BYTES {
                return Err(self.bad(format!(
                    "holds more than {} MiB without a place to cut it; write it as JSONL with one document a row",
                    MAX_UNCUT_BYTES >> 20
                )));
            }
            let more = (&mut self.reader).take(READ_BYTES as u64).read_to_end(&mut self.buffer);
            if more.map_err(|error| read_error(&self.file.shown, error))? == 0 {
                self.finished = true;
            }
        }
        // A cut is made only before more text, so an empty rest means an empty document.
        if self.buffer.is_empty() { Ok(None) } else { self.take_text(Vec::new(), true).map(Some) }
    }

    /// The buffer as a piece; `rest` takes its place.
    fn take_text(&mut self, rest: Vec<u8>, ends_document: bool) -> Result<Piece, CorpusError> {
        let bytes = std::mem::replace(&mut self.buffer, rest);
        let length = bytes.len() as u64;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = self.offset + error.utf8_error().valid_up_to() as u64;
            self.bad(format!("is not valid UTF-8 at byte {at}; convert it to UTF-8 first"))
        })?;
        self.offset += length;
        Ok(Piece::text(text, ends_document))
    }

    fn next_row(&mut self) -> Result<Option<Piece>, CorpusError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            let mut line = Vec::new();
            let limit = MAX_UNCUT_BYTES as u64 + 1;
            let read = (&mut self.reader).take(limit).read_until(b'\n', &mut line);
            let length = read.map_err(|error| read_error(&self.file.shown, error))? as u64;
            if length == 0 {
                return Ok(None);
            }
            self.line += 1;
            if length == limit {
                return Err(self.bad(format!("line {}: is longer than {} MiB", self.line, MAX_UNCUT_BYTES >> 20)));
            }
            let text = self.row_text(&line)?;
            self.offset += length;
            self.ready = cut_row(text, self.cutting);
        }
    }

    fn row_text(&self, line: &[u8]) -> Result<String, CorpusError> {
        let line = std::str::from_utf8(line).map_err(|error| {
            let at = self.offset + error.valid_up_to() as u64;
            self.bad(format!(
                "line {}: is not valid UTF-8 at byte {at} of the file; convert it to UTF-8 first",
                self.line
            ))
        })?;
        if line.trim().is_empty() {
            return Ok(String::new());
        }
        let row: Row = serde_json::from_str(line).map_err(|error| {
            // serde counts the lines of what it is given, which is always one.
            let problem = error.to_string().replace(" at line 1 column", " at column");
            self.bad(format!("line {}: {problem}; every line must be a JSON object with a string `text`", self.line))
        })?;
        Ok(row.text)
    }

    fn bad(&self, problem: String) -> CorpusError {
        CorpusError::Bad { file: self.file.shown.clone(), problem }
    }
}

impl Iterator for FilePieces {
    type Item = Result<Piece, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_piece().transpose();
        if matches!(next, Some(Err(_))) {
            // Nothing sensible follows an error.
            self.finished = true;
            self.buffer.clear();
            self.ready.clear();
            self.reader = BufReader::new(Box::new(io::empty()));
        }
        next
    }
}

fn cut_row(text: String, cutting: Cutting) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    let mut rest = text.as_str();
    while cutting == Cutting::AtLineFeeds
        && let Some(cut) = place_to_cut(rest.as_bytes(), PIECE_BYTES)
    {
        let (piece, after) = rest.split_at(cut);
        pieces.push_back(Piece::text(piece, false));
        rest = after;
    }
    if pieces.is_empty() && !text.is_empty() {
        pieces.push_back(Piece::text(text, true));
    } else if !rest.is_empty() {
        pieces.push_back(Piece::text(rest, true));
    }
    pieces
}

/// The first place at or after `from` that follows a line feed which stands alone between two characters that are
/// not white space. See [`Cutting::AtLineFeeds`].
fn place_to_cut(text: &[u8], from: usize) -> Option<usize> {
    let start = from.max(2);
    (start..text.len()).find(|&at| text[at - 1] == b'\n' && ends_dense(&text[..at - 1]) && starts_dense(&text[at..]))
}

/// The last character is whole and not white space.
fn ends_dense(text: &[u8]) -> bool {
    let start = text.len().saturating_sub(4);
    let first = (start..text.len()).rev().find(|&i| text[i] & 0xc0 != 0x80);
    first.is_some_and(|first| {
        std::str::from_utf8(&text[first..]).is_ok_and(|last| !last.chars().any(char::is_whitespace))
    })
}

/// The first character is whole and not white space.
fn starts_dense(text: &[u8]) -> bool {
    let whole = (1..=text.len().min(4)).find_map(|n| std::str::from_utf8(&text[..n]).ok());
    whole.is_some_and(|first| !first.chars().any(char::is_whitespace))
}

fn read_error(file: &str, error: io::Error) -> CorpusError {
    let file = file.to_owned();
    match error.downcast::<StoreError>() {
        Ok(source) => CorpusError::Store { file, source },
        // The disk's trouble, not the file's.
        Err(source) if FailureClass::of_io(&source) == FailureClass::Unavailable => {
            CorpusError::Store { source: StoreError::File { path: file.clone(), source }, file }
        }
        Err(error) => CorpusError::Bad { file, problem: format!("cannot be unpacked: {error}") },
    }
}

/// A stretch of a stored file as a blocking reader.
struct StoredBytes {
    stream: BoxStream<'static, Result<Bytes, StoreError>>,
    rest: Bytes,
    bytes_read: Arc<AtomicU64>,
    runtime: Handle,
}

impl StoredBytes {
    fn open(
        file: &CorpusFile,
        range: Range<u64>,
        bytes_read: &Arc<AtomicU64>,
        runtime: &Handle,
    ) -> Result<Self, CorpusError> {
        let stream = runtime
            .block_on(file.folder.stream(&file.name, range))
            .map_err(|source| CorpusError::Store { file: file.shown.clone(), source })?;
        Ok(Self { stream, rest: Bytes::new(), bytes_read: bytes_read.clone(), runtime: runtime.clone() })
    }
}

impl Read for StoredBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(next) => self.rest = next.map_err(io::Error::other)?,
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_tells_rows_and_packing() {
        assert_eq!(told_by_name("a.txt"), (Rows::Text, Packing::Plain, true));
        assert_eq!(told_by_name("A.JSONL.GZ"), (Rows::Jsonl, Packing::Gzip, true));
        assert_eq!(told_by_name("a.ndjson.zstd"), (Rows::Jsonl, Packing::Zstd, true));
        assert_eq!(told_by_name("book"), (Rows::Text, Packing::Plain, false));
        assert_eq!(told_by_name("config.json"), (Rows::Text, Packing::Plain, false));
        assert_eq!(told_by_name("part-0.parquet"), (Rows::Parquet, Packing::Plain, true));
        assert_eq!(told_by_name("data/train.bin"), (Rows::Tokens { held_out: false }, Packing::Plain, true));
        assert_eq!(told_by_name("fineweb_val_000000.bin"), (Rows::Tokens { held_out: true }, Packing::Plain, true));
        assert_eq!(told_by_name("pytorch_model.bin"), (Rows::Tokens { held_out: false }, Packing::Plain, false));
    }

    #[test]
    fn cuts_stand_only_after_a_lone_line_feed() {
        assert_eq!(place_to_cut(b"ab\ncd", 0), Some(3));
        assert_eq!(place_to_cut(b"ab\n\ncd", 0), None);
        assert_eq!(place_to_cut(b"ab \ncd", 0), None);
        assert_eq!(place_to_cut(b"ab\n cd", 0), None);
        assert_eq!(place_to_cut(b"ab\r\ncd", 0), None);
        assert_eq!(place_to_cut(b"ab\n", 0), None);
        assert_eq!(place_to_cut("é\nß".as_bytes(), 0), Some(3));
        // A no-break space is white space too; half a character at the end is no place.
        assert_eq!(place_to_cut("a\n\u{a0}b".as_bytes(), 0), None);
        assert_eq!(place_to_cut(b"a\n\xc3", 0), None);
        assert_eq!(place_to_cut(b"ab\ncd\nef", 4), Some(6));
    }

    #[test]
    fn a_long_row_is_cut_and_joins_up_again() {
        let text = "one line of words\n".repeat(60_000);
        let pieces = cut_row(text.clone(), Cutting::AtLineFeeds);
        assert!(pieces.len() > 3);
        let parts: Vec<(&str, bool)> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text { text, ends_document } => (text.as_str(), *ends_document),
                Piece::Tokens { .. } => panic!("{piece:?}"),
            })
            .collect();
        assert_eq!(parts.iter().map(|(text, _)| *text).collect::<String>(), text);
        assert_eq!(parts.iter().filter(|(_, ends_document)| *ends_document).count(), 1);
        assert!(parts.last().unwrap().1);
        assert_eq!(cut_row(text, Cutting::Never).len(), 1);
        assert!(cut_row(String::new(), Cutting::Never).is_empty());
    }
}
