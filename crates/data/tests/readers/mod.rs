//! Properties that hold for arbitrary bytes, with one function per kind of data file. `cargo test`
//! runs them on `fuzz/seeds` and on mutated copies of the seeds (`hostile_files.rs`). `make fuzz`
//! lets libFuzzer search for bytes that break them.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

pub mod corpus_rows;
pub mod parquet_rows;

use std::io::{BufReader, Cursor, Read};
use std::sync::Arc;

use inheritune_data::kind::{HEAD_BYTES, Head, Kind, tell};
use inheritune_data::{ChunkReader, DataError, Documents, Length, ReadAs, Tally};

/// Maximum length of a message about a file, whatever the file contains.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A file in memory that is read a few bytes at a time.
#[derive(Clone)]
pub struct Stored {
    pub bytes: Arc<Vec<u8>>,
    pub step: usize,
}

impl Length for Stored {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A reader that returns at most the given number of bytes at a time.
pub struct Steps(Cursor<Vec<u8>>, usize);

impl Read for Steps {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

impl ChunkReader for Stored {
    type T = BufReader<Steps>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(self.bytes.len());
        Ok(BufReader::with_capacity(self.step.max(16), Steps(Cursor::new(self.bytes[start..].to_vec()), self.step)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        let found = self.bytes.get(start..end);
        found.map(|bytes| bytes.to_vec().into()).ok_or_else(|| parquet::errors::ParquetError::EOF("short".to_owned()))
    }
}

/// Returns the documents of a file up to the first error, and that error.
pub fn read(file: &[u8], kind: Kind, step: usize, max_bad_rows: u64) -> (Vec<String>, Option<String>) {
    let read_as = ReadAs { text_column: "text".into(), max_bad_rows, tally: Arc::<Tally>::default() };
    let stored = Stored { bytes: Arc::new(file.to_vec()), step };
    let message = |error: DataError| {
        let message = error.to_string();
        assert!(message.len() <= MAX_MESSAGE_BYTES, "{} bytes of message", message.len());
        Some(message)
    };
    let mut documents = match Documents::open(stored, kind, "file", read_as) {
        Ok(documents) => documents,
        Err(error) => return (Vec::new(), message(error)),
    };
    let (mut whole, mut open) = (Vec::new(), String::new());
    loop {
        match documents.next_part() {
            Ok(Some(part)) => {
                open.push_str(&part.text);
                if part.ends_document {
                    whole.push(std::mem::take(&mut open));
                }
            }
            Ok(None) => {
                assert!(open.is_empty(), "a document without an end");
                return (whole, None);
            }
            Err(error) => return (whole, message(error)),
        }
    }
}

/// Returns the kind of `file` from its content and this name.
pub fn kind(name: &str, file: &[u8]) -> Result<Kind, String> {
    let head = &file[..file.len().min(HEAD_BYTES as usize)];
    tell(name, Head { bytes: head, is_whole: head.len() == file.len() }, "text")
}
