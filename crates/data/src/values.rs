//! Small tables, row by row, such as the data of benchmarks.

use std::io::Read as _;

use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader as _};
use parquet::file::serialized_reader::SerializedFileReader;
use serde_json::{Map, Value};

use crate::DataError;
use crate::kind::{self, Content, HEAD_BYTES, Head};
use crate::parquet_rows::{caught, check_dictionaries};
use crate::unpack::unpacked;

/// Maximum decompressed size of a JSON file.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Returns the first `limit` rows of a file that messages call `name`: JSON lines or an array,
/// compressed or not, or Parquet, with its columns converted to JSON.
///
/// # Errors
/// The file cannot be read, or is of another kind. The message names the row.
pub fn values<F>(stored: F, name: &str, limit: usize) -> Result<Vec<Value>, DataError>
where
    F: ChunkReader + 'static,
    F::T: Send + 'static,
{
    let bad = |problem: String| DataError::Bad { file: name.to_owned(), problem };
    let length = stored.len();
    let head_bytes = length.min(HEAD_BYTES);
    let head = stored.get_bytes(0, head_bytes as usize).map_err(|error| bad(error.to_string()))?;
    let kind = kind::tell(name, Head { bytes: &head, is_whole: head_bytes == length }, "").map_err(bad)?;
    match kind.content {
        Content::Parquet => parquet_values(stored, limit).map_err(bad),
        Content::JsonLines | Content::JsonArray => {
            let stored = stored.get_read(0).map_err(|error| bad(error.to_string()))?;
            let mut text = String::new();
            let reader = unpacked(stored, length, kind.packing).map_err(DataError::Io)?;
            let count = reader.take(MAX_JSON_BYTES + 1).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
            if count as u64 > MAX_JSON_BYTES {
                return Err(bad(format!("is longer than {MAX_JSON_BYTES} bytes, the limit for a benchmark")));
            }
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            if kind.content == Content::JsonArray {
                let rows: Vec<Value> =
                    serde_json::from_str(text).map_err(|e| bad(format!("is not a JSON array of objects: {e}")))?;
                return Ok(rows.into_iter().take(limit).collect());
            }
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(limit);
            lines
                .map(|(number, line)| {
                    let row = serde_json::from_str(line.trim_start_matches('\u{feff}'));
                    row.map_err(|e| bad(format!("line {}: is not a JSON object: {e}", number + 1)))
                })
                .collect()
        }
        Content::Empty => Ok(Vec::new()),
        Content::Text | Content::Tokens => {
            Err(bad(format!("seems to be {}, but rows must be JSON lines or Parquet", kind::describe(&head))))
        }
    }
}

fn parquet_values(stored: impl ChunkReader + 'static, limit: usize) -> Result<Vec<Value>, String> {
    let read = || {
        let reader = SerializedFileReader::new(stored)
            .map_err(|e| ParquetError::General(format!("cannot be read as Parquet: {e}")))?;
        check_dictionaries(&reader)?;
        let rows = reader.get_row_iter(None)?;
        rows.take(limit)
            .enumerate()
            .map(|(number, row)| match row {
                Ok(row) => Ok(Value::Object(columns(&row))),
                Err(e) => Err(ParquetError::General(format!("row {number}: {}", message(e)))),
            })
            .collect()
    };
    caught(read).map_err(message)
}

fn message(error: ParquetError) -> String {
    match error {
        ParquetError::General(message) => message,
        error => error.to_string(),
    }
}

fn columns(row: &parquet::record::Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Like `Field::to_json_value`, but returns bytes as the text they contain, because some writers do
/// not declare that a column is a string.
fn value(field: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => field.to_json_value(),
        },
        Field::Group(row) => Value::Object(columns(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        other => other.to_json_value(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use bytes::Bytes;
    use parquet::data_type::{ByteArray, FixedLenByteArray, FixedLenByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::values;

    /// Dictionaries of values shorter than four bytes, such as half floats, are valid.
    #[test]
    fn a_dictionary_of_short_values_is_read() {
        let schema = Arc::new(parse_message_type("message m { required fixed_len_byte_array(1) label; }").unwrap());
        let mut file = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(WriterProperties::default())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let labels: Vec<FixedLenByteArray> =
            (0..100_u8).map(|label| FixedLenByteArray::from(ByteArray::from(vec![label]))).collect();
        column.typed::<FixedLenByteArrayType>().write_batch(&labels, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(values(Bytes::from(file), "a.parquet", 1000).unwrap().len(), 100);
    }
}
