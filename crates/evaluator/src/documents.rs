//! Text files as documents: plain text or JSONL, each as it is or compressed with gzip or zstd.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use inheritune_runtime::unpacking::BoundedDecoder;
use inheritune_runtime::worker::JobError;
use serde::Deserialize;

use crate::metrics::TextLength;

pub mod wikitext;

/// Longest document.
const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What the model is asked about.
    pub text: String,
    /// The length that per-word and per-byte numbers divide by: of the text as the file has it.
    pub length: TextLength,
}

/// Calls `each` with every document of the files below `dir`, in the order of their names and then of their lines.
///
/// A file called `*.jsonl` or `*.ndjson` has a document a line: an object with `text`, or with `page`, WikiText's
/// column, which is detokenized as lm-evaluation-harness does it ([`wikitext::detokenize`]). Any other file is one
/// document as it stands. `.gz` and `.zst` after either are unpacked. Documents without a character are left out.
///
/// # Errors
/// A file cannot be read, is no UTF-8, or has a line that is no such object; what `each` returns.
pub fn for_each_document<F>(dir: &Path, mut each: F) -> Result<(), JobError>
where
    F: FnMut(Document) -> Result<(), JobError>,
{
    let mut paths = Vec::new();
    list_files(dir, &mut paths)?;
    paths.sort();
    for path in &paths {
        let (reader, name) = open(path)?;
        if name.ends_with(".jsonl") || name.ends_with(".ndjson") {
            for_each_row(path, reader, &mut each)?;
        } else {
            let mut text = String::new();
            read_limited(path, "the file", reader, |limited| limited.read_to_string(&mut text))?;
            if !text.is_empty() {
                each(Document { length: TextLength::of(&text), text })?;
            }
        }
    }
    Ok(())
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

/// The unpacked content, and the name without the compression's suffix.
pub(crate) fn open(path: &Path) -> Result<(Box<dyn BufRead>, String), JobError> {
    let file = File::open(path).map_err(|e| io_error(path, &e))?;
    let stored_bytes = file.metadata().map_err(|e| io_error(path, &e))?.len();
    let file = BufReader::new(file);
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if let Some(name) = name.strip_suffix(".gz") {
        let unpacked = flate2::bufread::MultiGzDecoder::new(file);
        return Ok((Box::new(BufReader::new(BoundedDecoder::new(unpacked, stored_bytes))), name.to_owned()));
    }
    if let Some(name) = name.strip_suffix(".zst") {
        let unpacked = zstd::stream::read::Decoder::with_buffer(file).map_err(|e| io_error(path, &e))?;
        return Ok((Box::new(BufReader::new(BoundedDecoder::new(unpacked, stored_bytes))), name.to_owned()));
    }
    Ok((Box::new(file), name))
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
        let row: Row = serde_json::from_str(line).map_err(|e| problem(format!("is no JSON object with text: {e}")))?;
        let document = match (row.text, row.page) {
            (Some(text), _) => Document { length: TextLength::of(&text), text },
            (None, Some(page)) => Document { length: TextLength::of(&page), text: wikitext::detokenize(&page) },
            (None, None) => return Err(problem("has neither `text` nor `page`".to_owned())),
        };
        if document.text.is_empty() { Ok(()) } else { each(document) }
    })
}

/// Calls `each` with every line that is not blank, and its number from 1.
pub(crate) fn for_each_line<F>(path: &Path, mut reader: Box<dyn BufRead>, mut each: F) -> Result<(), JobError>
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

/// Reads one document's worth with `read`; gives back how many bytes that was.
fn read_limited<R, F>(path: &Path, what: &str, reader: R, read: F) -> Result<usize, JobError>
where
    R: BufRead,
    F: FnOnce(&mut std::io::Take<R>) -> std::io::Result<usize>,
{
    let mut limited = reader.take(MAX_DOCUMENT_BYTES + 1);
    let count = read(&mut limited).map_err(|e| io_error(path, &e))?;
    if count as u64 > MAX_DOCUMENT_BYTES {
        return Err(JobError::Permanent(format!(
            "{}: {what} is longer than {MAX_DOCUMENT_BYTES} bytes, the most a document may have",
            path.display()
        )));
    }
    Ok(count)
}

fn io_error(path: &Path, error: &std::io::Error) -> JobError {
    JobError::io(path.display(), error)
}
