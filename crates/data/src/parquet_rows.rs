//! Rows of Parquet files: the strings of one column, one document per row. Only the bytes of that
//! column are read, one row at a time, because a batch of rows would keep the pages of all of them
//! in memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use crate::text::{self, BYTE_ORDER_MARK};
use crate::{DataError, Part, ReadAs, text_column_advice};

/// Maximum number of columns named in a message.
const NAMES_SHOWN: usize = 40;

/// Maximum number of rows, and of bytes of text, per stored byte. A few bytes can encode any number
/// of equal rows.
const MAX_ROWS_RATIO: u64 = 256;
const MAX_TEXT_RATIO: u64 = 256;
/// Limits that apply to small files instead.
const FREE_ROWS: u64 = 1 << 18;
const FREE_BYTES: u64 = 1 << 30;

/// The documents of a Parquet file.
pub(crate) struct ParquetRows<F: ChunkReader + 'static> {
    reader: SerializedFileReader<F>,
    file: Arc<str>,
    read_as: ReadAs,
    column: usize,
    max_def_level: i16,
    group: usize,
    /// The column reader of the open row group, the number of rows read, and the number of rows in
    /// the group.
    open: Option<(ColumnReaderImpl<ByteArrayType>, i64, i64)>,
    row: u64,
    most_rows: u64,
    /// Remaining budget of text bytes.
    bytes_left: u64,
    /// The cell being returned in parts, and the offset of the next part.
    cell: Option<(ByteArray, usize)>,
}

impl<F: ChunkReader + 'static> ParquetRows<F> {
    pub(crate) fn open(stored: F, file: Arc<str>, read_as: ReadAs) -> Result<Self, DataError> {
        let stored_bytes = stored.len();
        let most_rows = stored_bytes.saturating_mul(MAX_ROWS_RATIO).max(FREE_ROWS);
        let bytes_left = stored_bytes.saturating_mul(MAX_TEXT_RATIO).max(FREE_BYTES);
        let reader = caught(|| SerializedFileReader::new(stored)).map_err(|error| failed(&file, error))?;
        let bad = |problem: String| DataError::Bad { file: file.to_string(), problem };
        rows_of(reader.metadata()).map_err(bad)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let column = text_column(schema, &read_as.text_column).map_err(bad)?;
        let max_def_level = schema.column(column).max_def_level();
        let (group, row) = (0, 0);
        Ok(Self {
            reader,
            file,
            read_as,
            column,
            max_def_level,
            group,
            open: None,
            row,
            most_rows,
            bytes_left,
            cell: None,
        })
    }

    pub(crate) fn next_part(&mut self) -> Result<Option<Part>, DataError> {
        loop {
            if let Some(part) = self.next_of_cell() {
                return Ok(Some(part));
            }
            match caught(|| self.next_cell()).map_err(|error| failed(&self.file, error))? {
                Next::End => return Ok(None),
                Next::Null => self.read_as.tally.count_empty(),
                Next::Cell(cell) => match std::str::from_utf8(cell.data()) {
                    Ok(document) => {
                        let at = if document.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
                        if document.len() == at {
                            self.read_as.tally.count_empty();
                        }
                        self.cell = Some((cell, at));
                    }
                    Err(_) => {
                        let column = &self.read_as.text_column;
                        let problem =
                            format!("row {}: column `{column}` contains bytes that are not valid UTF-8", self.row);
                        self.read_as.bad_row(&self.file, &problem)?;
                    }
                },
            }
        }
    }

    /// Returns the next part of the open cell. A long cell is never copied as a whole.
    fn next_of_cell(&mut self) -> Option<Part> {
        let (cell, at) = self.cell.as_mut()?;
        let bytes = cell.data();
        let mut end = bytes.len().min(*at + text::PART_BYTES);
        // Do not split a character. The whole cell is known to be UTF-8.
        while bytes.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
            end -= 1;
        }
        let text = String::from_utf8_lossy(&bytes[*at..end]).into_owned();
        let part = Part { text, ends_document: end == bytes.len() };
        *at = end;
        if part.ends_document {
            self.cell = None;
        }
        (!part.text.is_empty()).then_some(part)
    }

    fn next_cell(&mut self) -> Result<Next, ParquetError> {
        loop {
            let Some((column, read, rows)) = &mut self.open else {
                if self.group == self.reader.num_row_groups() {
                    return Ok(Next::End);
                }
                let group = self.reader.get_row_group(self.group)?;
                self.group += 1;
                let descriptor = group.metadata().column(self.column).column_descr_ptr();
                let pages = group.get_column_page_reader(self.column)?;
                let pages = Box::new(CheckedPages { pages, kind: descriptor.physical_type() });
                let ColumnReader::ByteArrayColumnReader(column) = get_column_reader(descriptor, pages) else {
                    return Err(ParquetError::General("the type of its text column changes".to_owned()));
                };
                self.open = Some((column, 0, group.metadata().num_rows()));
                continue;
            };
            if read == rows {
                self.open = None;
                continue;
            }
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (records, _, _) = column.read_records(1, Some(&mut levels), None, &mut values)?;
            if records == 0 {
                return Err(ParquetError::EOF(format!("a row group of {rows} rows ends after {read}")));
            }
            *read += 1;
            self.row += 1;
            if self.row > self.most_rows {
                let problem = format!(
                    "it has more than {} rows, far more than a text file of its size should have",
                    self.most_rows
                );
                return Err(ParquetError::General(problem));
            }
            let is_null = self.max_def_level > 0 && levels.first().is_none_or(|level| *level < self.max_def_level);
            return Ok(match values.pop() {
                Some(cell) if !is_null => {
                    let left = self.bytes_left.checked_sub(cell.len() as u64);
                    self.bytes_left = left.ok_or_else(|| {
                        ParquetError::General(
                            "its rows contain far more text than a file of its size should".to_owned(),
                        )
                    })?;
                    Next::Cell(cell)
                }
                Some(_) | None => Next::Null,
            });
        }
    }
}

/// Checked pages of a column. The parquet library allocates memory for as many values as a
/// dictionary's header declares before it reads one.
struct CheckedPages {
    pages: Box<dyn PageReader>,
    kind: PhysicalType,
}

/// Checks the dictionaries of every column, for readers that do not accept [`CheckedPages`].
///
/// # Errors
/// A dictionary declares more values than it has bytes for.
pub(crate) fn check_dictionaries<F: ChunkReader + 'static>(
    reader: &SerializedFileReader<F>,
) -> Result<(), ParquetError> {
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for column in 0..group.num_columns() {
            // A dictionary page always comes first.
            let kind = group.metadata().column(column).column_type();
            CheckedPages { pages: group.get_column_page_reader(column)?, kind }.get_next_page()?;
        }
    }
    Ok(())
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        // Each string starts with a 4-byte length. Values of a fixed length have at least one byte.
        let least_bytes = if self.kind == PhysicalType::BYTE_ARRAY { 4 } else { 1 };
        let page = self.pages.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && *num_values as usize > buf.len() / least_bytes
        {
            let problem = format!("a dictionary of {} bytes declares {num_values} values", buf.len());
            return Err(ParquetError::General(problem));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

enum Next {
    Cell(ByteArray),
    Null,
    End,
}

/// Returns the number of rows that the footer of a Parquet file declares.
///
/// # Errors
/// The file is not a Parquet file, or has no text column called `text_column`.
pub fn row_count(stored: impl ChunkReader + 'static, file: &str, text_column: &str) -> Result<u64, DataError> {
    let reader = caught(|| SerializedFileReader::new(stored)).map_err(|error| failed(file, error))?;
    let bad = |problem: String| DataError::Bad { file: file.to_owned(), problem };
    self::text_column(reader.metadata().file_metadata().schema_descr(), text_column).map_err(bad)?;
    rows_of(reader.metadata()).map_err(bad)
}

/// Returns the number of rows. The footer and the row groups must agree on it.
fn rows_of(metadata: &ParquetMetaData) -> Result<u64, String> {
    let whole = metadata.file_metadata().num_rows();
    let groups = metadata.row_groups().iter().try_fold(0_i64, |sum, group| {
        let rows = group.num_rows();
        if rows < 0 { None } else { sum.checked_add(rows) }
    });
    match groups {
        Some(groups) if groups == whole => Ok(groups.unsigned_abs()),
        Some(groups) => Err(format!("declares {whole} rows, but its row groups have {groups}: it is damaged")),
        None => Err("has row groups of invalid lengths: it is damaged".to_owned()),
    }
}

/// Returns the index of the column called `wanted`, which must contain one string per row.
fn text_column(schema: &SchemaDescriptor, wanted: &str) -> Result<usize, String> {
    let columns = schema.columns();
    let names = || {
        let mut names: Vec<String> = columns.iter().take(NAMES_SHOWN).map(|column| column.path().string()).collect();
        if columns.len() > NAMES_SHOWN {
            names.push(format!("{} more", columns.len() - NAMES_SHOWN));
        }
        names.join(", ")
    };
    let below = format!("{wanted}.");
    let found = columns.iter().position(|column| column.path().string() == wanted);
    let Some(at) = found else {
        return Err(match columns.iter().find(|column| column.path().string().starts_with(&below)) {
            Some(column) if column.max_rep_level() > 0 => {
                format!("column `{wanted}` contains a list in each row, not a string; join it into one string per row")
            }
            Some(_) => {
                format!("column `{wanted}` has nested columns; set text_column to one of them: {}", names())
            }
            None => {
                let advice = text_column_advice(
                    columns.iter().filter_map(|column| column.path().parts().first().map(String::as_str)),
                );
                format!("has no column `{wanted}` (found: {}); {advice}", names())
            }
        });
    };
    let column = &columns[at];
    if column.max_rep_level() > 0 {
        return Err(format!(
            "column `{wanted}` contains a list in each row, not a string; join it into one string per row"
        ));
    }
    match column.physical_type() {
        PhysicalType::BYTE_ARRAY if !is_number(column) => Ok(at),
        other => Err(format!(
            "column `{wanted}` contains {}, not text; the columns are: {}",
            if other == PhysicalType::BYTE_ARRAY { "decimal numbers".to_owned() } else { format!("{other} values") },
            names()
        )),
    }
}

fn is_number(column: &ColumnDescriptor) -> bool {
    matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }))
        || column.converted_type() == ConvertedType::DECIMAL
}

/// Runs `read` and turns a panic into an error, because the parquet library panics on some damaged
/// files. After a panic, the reader that `read` used must not be used again.
pub(crate) fn caught<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let said = said.unwrap_or("it panicked").chars().filter(|c| !c.is_control()).take(200).collect();
        Err(ParquetError::General(said))
    })
}

fn failed(file: &str, error: ParquetError) -> DataError {
    let problem = |error: String| DataError::Bad {
        file: file.to_owned(),
        problem: format!("cannot be read as Parquet: {error}; if the file is truncated, fetch it again"),
    };
    match error {
        // An error of the underlying reader, wrapped by the parquet library.
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => DataError::Io(*error),
            Err(source) => match source.downcast::<DataError>() {
                Ok(error) => *error,
                Err(source) => problem(source.to_string()),
            },
        },
        error => problem(error.to_string()),
    }
}
