//! Parquet files: the strings of the column `text`, one document a row. Only that column's bytes are fetched.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::io::Read;
use tokio::runtime::Handle;

use super::{CorpusError, CorpusFile, StoredBytes};

const COLUMN: &str = "text";

/// The documents of `file`, in order; a row without text is an empty one.
pub(super) fn documents(
    file: CorpusFile,
    bytes_read: &Arc<AtomicU64>,
    runtime: &Handle,
) -> Result<impl Iterator<Item = Result<String, CorpusError>> + Send + use<>, CorpusError> {
    let shown = file.shown.clone();
    let bad = move |error: ParquetError| match error {
        // What the store said, on its way through parquet.
        ParquetError::External(source) => match source.downcast::<CorpusError>() {
            Ok(error) => *error,
            Err(source) => CorpusError::Bad { file: shown.clone(), problem: source.to_string() },
        },
        error => {
            CorpusError::Bad { file: shown.clone(), problem: format!("is not a Parquet file that is read: {error}") }
        }
    };
    let stored = Stored { file, bytes_read: bytes_read.clone(), runtime: runtime.clone() };
    let reader = SerializedFileReader::new(stored).map_err(&bad)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(column) = schema.get_fields().iter().find(|field| field.name() == COLUMN) else {
        let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        return Err(bad(ParquetError::General(format!("it has no column `{COLUMN}` but {}", names.join(", ")))));
    };
    let only_text = Type::group_type_builder(schema.name()).with_fields(vec![column.clone()]).build().map_err(&bad)?;
    let rows = RowIter::from_file_into(Box::new(reader)).project(Some(only_text)).map_err(&bad)?;
    Ok(rows.map(move |row| row.and_then(text).map_err(&bad)))
}

fn text(row: Row) -> Result<String, ParquetError> {
    match row.into_columns().into_iter().next() {
        Some((_, Field::Str(text))) => Ok(text),
        Some((_, Field::Null)) | None => Ok(String::new()),
        Some((_, other)) => Err(ParquetError::General(format!("column `{COLUMN}` holds {other}, which is no string"))),
    }
}

/// A stored file that is read at any place.
struct Stored {
    file: CorpusFile,
    bytes_read: Arc<AtomicU64>,
    runtime: Handle,
}

impl Stored {
    fn read(&self, start: u64, end: u64) -> Result<StoredBytes, ParquetError> {
        let range = start.min(self.file.size_bytes)..end.min(self.file.size_bytes);
        StoredBytes::open(&self.file, range, &self.bytes_read, &self.runtime)
            .map_err(|error| ParquetError::External(Box::new(error)))
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
        self.read(start, self.file.size_bytes)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut bytes = Vec::new();
        self.read(start, start.saturating_add(length as u64))?.read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!(
                "{length} bytes from {start} on are wanted, {} are there",
                bytes.len()
            )));
        }
        Ok(bytes.into())
    }
}
