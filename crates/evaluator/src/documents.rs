//! Reads text files as documents: plain text or JSONL, optionally compressed with gzip or zstd.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use inheritune_data::folder;
use inheritune_data::kind::{self, Content, HEAD_BYTES, Head, Kind};
use inheritune_data::unpack::unpacked;
use inheritune_domain::spec::defaults;
use inheritune_runtime::worker::JobError;
use serde::Deserialize;

use crate::metrics::TextLength;

pub mod wikitext;

/// Maximum size of a document.
const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text to score.
    pub text: String,
    /// The length of the text as in the file. Metrics per word and per byte divide by it.
    pub length: TextLength,
}

/// Calls `each` with every document of the files in `dir`, ordered by file name and then by line.
///
/// A file of JSON lines, which its content identifies, has one document per line: an object with
/// `text`, or with `page`, WikiText's column, which is detokenized as lm-evaluation-harness does
/// ([`wikitext::detokenize`]). A text file is one document, unchanged. Both may be compressed with
/// gzip or zstd. Empty documents are skipped.
///
/// # Errors
/// A file cannot be read, is not UTF-8, or has a line that is not such an object; errors of `each`.
pub fn for_each_document<F>(dir: &Path, mut each: F) -> Result<(), JobError>
where
    F: FnMut(Document) -> Result<(), JobError>,
{
    let all = relative_files(dir)?;
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut candidates = folder::candidates(&all, all.len() == 1);
    let mut kinds = Vec::with_capacity(candidates.files.len());
    for place in &candidates.files {
        kinds.push(tell(&dir.join(all[*place]), all[*place])?);
    }
    let files = folder::files(&all, &mut candidates, kinds, all.len() == 1).map_err(|(place, problem)| {
        let subject = place.map_or_else(String::new, |place| format!("{}: ", all[place]));
        JobError::Permanent(format!("{subject}{problem}"))
    })?;
    for file in files {
        let path = dir.join(all[file.place]);
        match file.kind.content {
            Content::Text => {
                let mut text = String::new();
                read_limited(&path, "the file", open(&path, file.kind)?, |limited| limited.read_to_string(&mut text))?;
                let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
                if !text.is_empty() {
                    each(Document { length: TextLength::of(&text), text })?;
                }
            }
            Content::JsonLines => for_each_row(&path, open(&path, file.kind)?, &mut each)?,
            Content::Empty => {}
            Content::JsonArray | Content::Parquet | Content::Tokens => {
                return Err(JobError::Permanent(format!(
                    "{}: is {}; only text and JSON lines are supported",
                    all[file.place], file.kind
                )));
            }
        }
    }
    Ok(())
}

/// Detects the kind of the file at `path`.
fn tell(path: &Path, name: &str) -> Result<Result<Kind, String>, JobError> {
    let failed = |e| io_error(path, &e);
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(failed)?;
    Ok(kind::tell(name, Head { bytes: &head, is_whole: head.len() as u64 == size_bytes }, defaults::text_column()))
}

/// Opens the uncompressed content of a file.
fn open(path: &Path, kind: Kind) -> Result<Box<dyn BufRead>, JobError> {
    let failed = |e| io_error(path, &e);
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    Ok(Box::new(unpacked(file, size_bytes, kind.packing).map_err(failed)?))
}

fn list_files(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<(), JobError> {
    for entry in std::fs::read_dir(dir).map_err(|e| io_error(dir, &e))? {
        let path = entry.map_err(|e| io_error(dir, &e))?.path();
        if path.is_dir() {
            list_files(&path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// Returns the names of all files in `dir` and its subfolders, relative to it and sorted. Empty if
/// `dir` does not exist.
pub(crate) fn relative_files(dir: &Path) -> Result<Vec<String>, JobError> {
    let mut paths = Vec::new();
    if dir.is_dir() {
        list_files(dir, &mut paths)?;
    }
    let relative = paths.iter().filter_map(|path| Some(path.strip_prefix(dir).ok()?.to_string_lossy().into_owned()));
    let mut names: Vec<String> = relative.collect();
    names.sort();
    Ok(names)
}

#[derive(Deserialize)]
struct Row {
    text: Option<String>,
    page: Option<String>,
}

fn for_each_row<F>(path: &Path, reader: Box<dyn BufRead>, each: &mut F) -> Result<(), JobError>
where
    F: FnMut(Document) -> Result<(), JobError>,
{
    for_each_line(path, reader, |number, line| {
        let problem = |problem: String| JobError::Permanent(format!("{}: line {number}: {problem}", path.display()));
        let row: Row = serde_json::from_str(line.trim_start_matches('\u{feff}'))
            .map_err(|e| problem(format!("is not a JSON object with text: {e}")))?;
        let document = match (row.text, row.page) {
            (Some(text), _) => Document { length: TextLength::of(&text), text },
            (None, Some(page)) => Document { length: TextLength::of(&page), text: wikitext::detokenize(&page) },
            (None, None) => return Err(problem("has neither `text` nor `page`".to_owned())),
        };
        if document.text.is_empty() { Ok(()) } else { each(document) }
    })
}

/// Calls `each` with every non-blank line and its number, from 1.
fn for_each_line<F>(path: &Path, mut reader: Box<dyn BufRead>, mut each: F) -> Result<(), JobError>
where
    F: FnMut(u64, &str) -> Result<(), JobError>,
{
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        if read_limited(path, &format!("line {number}"), &mut reader, |limited| limited.read_line(&mut line))? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            each(number, &line)?;
        }
    }
    Ok(())
}

/// Reads at most one document with `read`. Returns the number of bytes read.
fn read_limited<R, F>(path: &Path, what: &str, reader: R, read: F) -> Result<usize, JobError>
where
    R: BufRead,
    F: FnOnce(&mut std::io::Take<R>) -> std::io::Result<usize>,
{
    let mut limited = reader.take(MAX_DOCUMENT_BYTES + 1);
    let count = read(&mut limited).map_err(|e| io_error(path, &e))?;
    if count as u64 > MAX_DOCUMENT_BYTES {
        return Err(JobError::Permanent(format!(
            "{}: {what} is longer than {MAX_DOCUMENT_BYTES} bytes, the maximum size of a document",
            path.display()
        )));
    }
    Ok(count)
}

pub(crate) fn io_error(path: &Path, error: &std::io::Error) -> JobError {
    JobError::io(path.display(), error)
}
