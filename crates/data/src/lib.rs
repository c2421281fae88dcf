//! Readers of data files.
//!
//! Owns: detecting a file's kind from its first bytes ([`kind`]), selecting the files of a folder
//! to read ([`folder`], [`names`]), and reading the documents of text, rows of JSON and Parquet,
//! and token files ([`Documents`], [`token_file`]). Everything is read in parts, so that neither a
//! file nor a document has to fit in memory.
//!
//! Entry point: [`kind::tell`], then [`Documents::open`].
//!
//! Must never: trust a name over the content, keep a whole document in memory, or end a file early
//! without an error.

pub mod kind;
pub mod names;
pub mod folder;
pub mod unpack;
mod json;
mod text;
mod rows;
mod parquet_rows;
mod documents;
mod values;
pub mod token_file;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub use documents::Documents;
pub use parquet::file::reader::{ChunkReader, Length};
pub use parquet_rows::row_count;
pub use values::values;

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The text of the part. It is empty only if the document ends with it.
    pub text: String,
    /// Whether it is the last part of the document.
    pub ends_document: bool,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An error of the underlying reader. The caller knows which file it belongs to.
    #[error("{0}")]
    Io(std::io::Error),
    /// The content of the file cannot be used.
    #[error("{file}: {problem}")]
    Bad {
        /// The name of the file in messages.
        file: String,
        /// What is wrong, where, and what to do about it.
        problem: String,
    },
}

/// How rows are read.
#[derive(Debug, Clone)]
pub struct ReadAs {
    /// The column that contains the documents. `a.b` means `b` inside `a`.
    pub text_column: Arc<str>,
    /// Maximum number of unusable rows to skip, over all files together.
    pub max_bad_rows: u64,
    /// Counts of what was skipped.
    pub tally: Arc<Tally>,
}

/// Counts of the rows that were skipped.
#[derive(Debug, Default)]
pub struct Tally {
    rows_without_text: AtomicU64,
    bad_rows: AtomicU64,
    first_bad_row: Mutex<Option<String>>,
}

impl Tally {
    /// Returns the number of rows whose text is null or empty.
    pub fn rows_without_text(&self) -> u64 {
        self.rows_without_text.load(Ordering::Relaxed)
    }

    /// Returns the number of unusable rows.
    pub fn bad_rows(&self) -> u64 {
        self.bad_rows.load(Ordering::Relaxed)
    }

    /// Returns the position of the first unusable row, and what is wrong with it.
    pub fn first_bad_row(&self) -> Option<String> {
        self.first_bad_row.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(crate) fn count_empty(&self) {
        self.rows_without_text.fetch_add(1, Ordering::Relaxed);
    }
}

/// What to do about rows that have the columns `names` and not the text column.
fn text_column_advice<'a>(mut names: impl Iterator<Item = &'a str>) -> &'static str {
    if names.any(|name| matches!(name, "messages" | "conversations" | "conversation")) {
        "turn each chat into one text first, for example with `tokenizer.apply_chat_template(row, tokenize=False)`"
    } else {
        "set text_column to the column with the text"
    }
}

impl ReadAs {
    /// Counts an unusable row.
    ///
    /// # Errors
    /// There are more unusable rows than may be skipped.
    pub(crate) fn bad_row(&self, file: &str, problem: &str) -> Result<(), DataError> {
        let mut first = self.tally.first_bad_row.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{file}: {problem}"));
        let bad = self.tally.bad_rows.fetch_add(1, Ordering::Relaxed) + 1;
        if bad <= self.max_bad_rows {
            return Ok(());
        }
        let allowed = match self.max_bad_rows {
            0 => "(to skip bad rows, raise max_bad_rows, which is 0)".to_owned(),
            most => {
                format!("(more than max_bad_rows = {most}; the first was {})", first.as_deref().unwrap_or_default())
            }
        };
        Err(DataError::Bad { file: file.to_owned(), problem: format!("{problem} {allowed}") })
    }
}
