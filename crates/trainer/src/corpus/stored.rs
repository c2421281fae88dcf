//! Adapts a stored file to the readers of [`inheritune_data`], sequentially or at any offset. Reads
//! fail once the job is asked to stop.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use inheritune_data::kind::Content;
use inheritune_data::{ChunkReader, Length};
use inheritune_objects::ObjectError;
use inheritune_runtime::worker::StopSignal;
use parquet::errors::ParquetError;
use tokio::runtime::Handle;

use super::CorpusFile;

/// Number of bytes fetched at once in a random-access read; Parquet is read page by page.
const WINDOW_BYTES: u64 = 4 << 20;

/// What reading needs besides the file.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) bytes_read: Arc<AtomicU64>,
    pub(super) runtime: Handle,
    pub(super) stop: StopSignal,
}

/// The cause of a failed read other than the file's content.
pub(super) enum Cause {
    Store(ObjectError),
    Stopped,
}

#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Stopped;

/// Recovers the original cause of an `error` that passed through decoders. Returns `error` itself
/// if it comes from a decoder.
pub(super) fn cause(error: io::Error) -> Result<Cause, io::Error> {
    match error.downcast::<ObjectError>() {
        Ok(error) => Ok(Cause::Store(error)),
        Err(error) => error.downcast::<Stopped>().map(|Stopped| Cause::Stopped),
    }
}

/// A stored file.
#[derive(Clone)]
pub(super) struct Stored {
    file: Arc<CorpusFile>,
    reader: Reader,
    /// The offset and bytes of the most recently fetched window.
    window: Arc<Mutex<(u64, Bytes)>>,
}

impl Stored {
    pub(super) fn new(file: CorpusFile, reader: Reader) -> Self {
        Self { file: Arc::new(file), reader, window: Arc::default() }
    }

    fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.reader.check()?;
        let read = self.file.folder.read_range(&self.file.name, range);
        self.reader.runtime.block_on(read).map_err(io::Error::other)
    }

    /// Returns a sequential reader of the whole file.
    pub(super) fn whole(&self) -> io::Result<StoredBytes> {
        let range = 0..self.file.size_bytes;
        let stream = self.reader.runtime.block_on(self.file.folder.stream(&self.file.name, range));
        Ok(StoredBytes::Stream {
            stream: stream.map_err(io::Error::other)?,
            rest: Bytes::new(),
            reader: self.reader.clone(),
        })
    }
}

impl Reader {
    fn check(&self) -> io::Result<()> {
        if self.stop.requested().is_some() { Err(io::Error::other(Stopped)) } else { Ok(()) }
    }
}

impl Length for Stored {
    fn len(&self) -> u64 {
        self.file.size_bytes
    }
}

impl ChunkReader for Stored {
    type T = StoredBytes;

    fn get_read(&self, start: u64) -> Result<StoredBytes, ParquetError> {
        if self.file.kind.content == Content::Parquet {
            return Ok(StoredBytes::Places { stored: self.clone(), at: start });
        }
        debug_assert_eq!(start, 0, "only Parquet is read at an offset");
        Ok(self.whole()?)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.saturating_add(length as u64);
        if end > self.file.size_bytes {
            let problem =
                format!("bytes {start} to {end} are out of bounds: the file has {} bytes", self.file.size_bytes);
            return Err(ParquetError::EOF(problem));
        }
        let bytes = self.fetch(start..end)?;
        self.reader.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// A blocking reader of a stored file.
pub(super) enum StoredBytes {
    Stream { stream: BoxStream<'static, Result<Bytes, ObjectError>>, rest: Bytes, reader: Reader },
    Places { stored: Stored, at: u64 },
}

impl Read for StoredBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stream { stream, rest, reader } => {
                reader.check()?;
                while rest.is_empty() {
                    match reader.runtime.block_on(stream.next()) {
                        None => return Ok(0),
                        Some(next) => *rest = next.map_err(io::Error::other)?,
                    }
                }
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest.split_to(count));
                reader.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
            Self::Places { stored, at } => {
                let size_bytes = stored.file.size_bytes;
                if *at >= size_bytes || buffer.is_empty() {
                    return Ok(0);
                }
                let mut window = stored.window.lock().unwrap_or_else(PoisonError::into_inner);
                if !(window.0..window.0 + window.1.len() as u64).contains(at) {
                    *window = (*at, stored.fetch(*at..size_bytes.min(*at + WINDOW_BYTES))?);
                }
                let inside = &window.1[(*at - window.0) as usize..];
                let count = inside.len().min(buffer.len());
                buffer[..count].copy_from_slice(&inside[..count]);
                *at += count as u64;
                stored.reader.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
        }
    }
}
