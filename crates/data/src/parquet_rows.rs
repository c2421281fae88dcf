//! Rows of Parquet: the strings of one column, one document a row. Only that column's bytes are read, and one row at a time:
//! a batch of rows would hold the pages of all of them.

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

/// Columns that a message names at most.
const NAMES_SHOWN: usize = 40;

/// Rows, and bytes of text, for each stored byte: a few bytes can stand for any number of equal rows.
const MAX_ROWS_RATIO: u64 = 256;
const MAX_TEXT_RATIO: u64 = 256;
/// What any file may hold all the same.
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
    /// Of the open row group: its column, and rows read and to be read.
    open: Option<(ColumnReaderImpl<ByteArrayType>, i64, i64)>,
    row: u64,
    most_rows: u64,
    /// Bytes of text that may still come.
    bytes_left: u64,
    /// A cell that is handed out part by part, and from where on.
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
                        let problem = format!("row {}: column `{column}` holds bytes that are no UTF-8 text", self.row);
                        self.read_as.bad_row(&self.file, &problem)?;
                    }
                },
            }
        }
    }

    /// The next part of the cell that is open: a long one is not copied whole.
    fn next_of_cell(&mut self) -> Option<Part> {
        let (cell, at) = self.cell.as_mut()?;
        let bytes = cell.data();
        let mut end = bytes.len().min(*at + text::PART_BYTES);
        // Not within a character: all of it is UTF-8.
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
                    return Err(ParquetError::General("its text column changes its type".to_owned()));
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
                let problem = format!("it has more than {} rows, far more than a text of its size has", self.most_rows);
                return Err(ParquetError::General(problem));
            }
            let is_null = self.max_def_level > 0 && levels.first().is_none_or(|level| *level < self.max_def_level);
            return Ok(match values.pop() {
                Some(cell) if !is_null => {
                    let left = self.bytes_left.checked_sub(cell.len() as u64);
                    self.bytes_left = left.ok_or_else(|| {
                        ParquetError::General("its rows hold far more text than a file of its size does".to_owned())
                    })?;
                    Next::Cell(cell)
                }
                Some(_) | None => Next::Null,
            });
        }
    }
}

/// Pages of a column. The library makes room for as many as a dictionary's header promises before it reads one.
struct CheckedPages {
    pages: Box<dyn PageReader>,
    kind: PhysicalType,
}

/// Looks at the dictionaries of every column: for readers that take no pages of ours.
///
/// # Errors
/// One promises more values than it has bytes for.
pub(crate) fn check_dictionaries<F: ChunkReader + 'static>(
    reader: &SerializedFileReader<F>,
) -> Result<(), ParquetError> {
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for column in 0..group.num_columns() {
            // A dictionary comes first.
            let kind = group.metadata().column(column).column_type();
            CheckedPages { pages: group.get_column_page_reader(column)?, kind }.get_next_page()?;
        }
    }
    Ok(())
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        // Each string begins with its length; values of a fixed length may have one byte.
        let least_bytes = if self.kind == PhysicalType::BYTE_ARRAY { 4 } else { 1 };
        let page = self.pages.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && *num_values as usize > buf.len() / least_bytes
        {
            let problem = format!("a dictionary of {} bytes promises {num_values} values", buf.len());
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

/// Rows of a Parquet file, as its end says.
///
/// # Errors
/// It is no Parquet file, or has no column of text called `text_column`.
pub fn row_count(stored: impl ChunkReader + 'static, file: &str, text_column: &str) -> Result<u64, DataError> {
    let reader = caught(|| SerializedFileReader::new(stored)).map_err(|error| failed(file, error))?;
    let bad = |problem: String| DataError::Bad { file: file.to_owned(), problem };
    self::text_column(reader.metadata().file_metadata().schema_descr(), text_column).map_err(bad)?;
    rows_of(reader.metadata()).map_err(bad)
}

/// The rows of a file, of which its end and its row groups must say the same.
fn rows_of(metadata: &ParquetMetaData) -> Result<u64, String> {
    let whole = metadata.file_metadata().num_rows();
    let groups = metadata.row_groups().iter().try_fold(0_i64, |sum, group| {
        let rows = group.num_rows();
        if rows < 0 { None } else { sum.checked_add(rows) }
    });
    match groups {
        Some(groups) if groups == whole => Ok(groups.unsigned_abs()),
        Some(groups) => Err(format!("says that it has {whole} rows, and its row groups have {groups}: it is damaged")),
        None => Err("has row groups of impossible lengths: it is damaged".to_owned()),
    }
}

/// The place of the column called `wanted`, which holds one string a row.
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
                format!("column `{wanted}` holds a list in each row, not one text; join it to one text a row first")
            }
            Some(_) => {
                format!("column `{wanted}` has columns of its own; name one of them with text_column: {}", names())
            }
            None => {
                let advice = text_column_advice(
                    columns.iter().filter_map(|column| column.path().parts().first().map(String::as_str)),
                );
                format!("has no column `{wanted}` but {}; {advice}", names())
            }
        });
    };
    let column = &columns[at];
    if column.max_rep_level() > 0 {
        return Err(format!(
            "column `{wanted}` holds a list in each row, not one text; join it to one text a row first"
        ));
    }
    match column.physical_type() {
        PhysicalType::BYTE_ARRAY if !is_number(column) => Ok(at),
        other => Err(format!(
            "column `{wanted}` holds {}, no text; the columns are {}",
            if other == PhysicalType::BYTE_ARRAY { "decimal numbers".to_owned() } else { format!("{other} values") },
            names()
        )),
    }
}

fn is_number(column: &ColumnDescriptor) -> bool {
    matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }))
        || column.converted_type() == ConvertedType::DECIMAL
}

/// Runs the parquet library, which panics on some damaged files: that is an error of the file. What it was reading with is
/// not to be used any more.
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
        problem: format!(
            "is not a Parquet file that is read: {error}; a file that was cut off has to be fetched again"
        ),
    };
    match error {
        // What the reader itself said, on its way through parquet.
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
