//! The documents of one file of any kind.

use std::io::{BufReader, Read};
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use crate::json::Within;
use crate::kind::{Content, Kind};
use crate::parquet_rows::ParquetRows;
use crate::rows::JsonRows;
use crate::text::TextFile;
use crate::unpack::unpacked;
use crate::{DataError, Part, ReadAs};

type Unpacked = BufReader<Box<dyn Read + Send>>;

/// Reads the documents of a file, part by part.
pub struct Documents<F: ChunkReader + 'static>(Reader<F>);

enum Reader<F: ChunkReader + 'static> {
    Text(TextFile<Unpacked>),
    Rows(Box<JsonRows<Unpacked>>),
    Parquet(Box<ParquetRows<F>>),
    None,
}

impl<F> Documents<F>
where
    F: ChunkReader + 'static,
    F::T: Send + 'static,
{
    /// Opens `stored`, a file of the given `kind` (see [`crate::kind::tell`]). Messages call it
    /// `shown`.
    ///
    /// # Errors
    /// The file is not of that kind, or has no such column.
    pub fn open(stored: F, kind: Kind, shown: &str, read_as: ReadAs) -> Result<Self, DataError> {
        let file: Arc<str> = shown.into();
        let reader = |stored: F| {
            let start = stored.get_read(0).map_err(|error| not_read(shown, error))?;
            unpacked(start, stored.len(), kind.packing).map_err(DataError::Io)
        };
        Ok(Self(match kind.content {
            Content::Text => Reader::Text(TextFile::new(reader(stored)?, file)),
            Content::JsonLines => Reader::Rows(Box::new(JsonRows::new(reader(stored)?, Within::Line, file, read_as))),
            Content::JsonArray => Reader::Rows(Box::new(JsonRows::new(reader(stored)?, Within::File, file, read_as))),
            Content::Parquet => Reader::Parquet(Box::new(ParquetRows::open(stored, file, read_as)?)),
            Content::Empty | Content::Tokens => Reader::None,
        }))
    }

    /// Returns the next part of a document, or `None` at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read, or has more bad rows than may be skipped.
    pub fn next_part(&mut self) -> Result<Option<Part>, DataError> {
        match &mut self.0 {
            Reader::Text(text) => text.next_part(),
            Reader::Rows(rows) => rows.next_part(),
            Reader::Parquet(rows) => rows.next_part(),
            Reader::None => Ok(None),
        }
    }
}

fn not_read(shown: &str, error: ParquetError) -> DataError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => DataError::Io(*error),
            Err(source) => DataError::Bad { file: shown.to_owned(), problem: source.to_string() },
        },
        error => DataError::Bad { file: shown.to_owned(), problem: error.to_string() },
    }
}
