//! What data files hold.
//!
//! Owns: telling a file's kind by its first bytes ([`kind`]), which files of a folder are
//! read ([`folder`], [`names`]), and reading
//! the documents of text, rows of JSON and Parquet, and files of tokens ([`Documents`], [`token_file`]), all in parts, so
//! that neither a file nor a document has to fit in memory.
//!
//! Entry point: [`kind::tell`], then [`Documents::open`].
//!
//! Must never: believe a name against the content, hold a document whole, or end a file early without an error.

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

/// Part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its text; empty only where the document ends with it.
    pub text: String,
    /// It is the document's last.
    pub ends_document: bool,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The reader's own error; the caller knows what it is of.
    #[error("{0}")]
    Io(std::io::Error),
    /// What the file holds cannot be used.
    #[error("{file}: {problem}")]
    Bad {
        /// The file, as messages call it.
        file: String,
        /// What is wrong, where, and what to do.
        problem: String,
    },
}

/// How rows are read.
#[derive(Debug, Clone)]
pub struct ReadAs {
    /// The column that holds a document; `a.b` is `b` within `a`.
    pub text_column: Arc<str>,
    /// Rows that cannot be used and may be left out, in all files together.
    pub max_bad_rows: u64,
    /// What was left out.
    pub tally: Arc<Tally>,
}

/// What was left out while rows were read.
#[derive(Debug, Default)]
pub struct Tally {
    rows_without_text: AtomicU64,
    bad_rows: AtomicU64,
    first_bad_row: Mutex<Option<String>>,
}

impl Tally {
    /// Rows whose text is null or empty.
    pub fn rows_without_text(&self) -> u64 {
        self.rows_without_text.load(Ordering::Relaxed)
    }

    /// Rows that could not be used.
    pub fn bad_rows(&self) -> u64 {
        self.bad_rows.load(Ordering::Relaxed)
    }

    /// Where the first of them is, and what is wrong with it.
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
        "chats are made into one text a row first, as `tokenizer.apply_chat_template(row, tokenize=False)` does"
    } else {
        "name it with text_column"
    }
}

impl ReadAs {
    /// Counts a row that cannot be used.
    ///
    /// # Errors
    /// There are more than may be left out.
    pub(crate) fn bad_row(&self, file: &str, problem: &str) -> Result<(), DataError> {
        let mut first = self.tally.first_bad_row.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{file}: {problem}"));
        let bad = self.tally.bad_rows.fetch_add(1, Ordering::Relaxed) + 1;
        if bad <= self.max_bad_rows {
            return Ok(());
        }
        let allowed = match self.max_bad_rows {
            0 => "(max_bad_rows says how many such rows may be left out; 0 now)".to_owned(),
            most => {
                format!("(more than max_bad_rows = {most}; the first was {})", first.as_deref().unwrap_or_default())
            }
        };
        Err(DataError::Bad { file: file.to_owned(), problem: format!("{problem} {allowed}") })
    }
}
