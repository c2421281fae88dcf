//! Reads files through a memory map, and writes them atomically.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::LmError;

/// Largest JSON file that is read: a tokenizer with a million entries has about 60 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 256 << 20;

/// The bytes of a file; an empty file needs no map.
#[derive(Debug)]
pub(crate) struct Mapped(Option<Mmap>);

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Mapped, LmError> {
    let file = File::open(path).map_err(|error| LmError::io(path, error))?;
    let length = file.metadata().map_err(|error| LmError::io(path, error))?.len();
    if length == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: the caller's folder is a job's own cache of immutable artifacts; no process writes to
    // a file in it once it has its final name.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| LmError::io(path, error))?;
    Ok(Mapped(Some(map)))
}

/// Reads a file of at most `max_bytes`.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, LmError> {
    let length = fs::metadata(path).map_err(|error| LmError::io(path, error))?.len();
    if length > max_bytes {
        return Err(LmError::file(path, format!("is {length} bytes long; the limit is {max_bytes}")));
    }
    fs::read(path).map_err(|error| LmError::io(path, error))
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LmError> {
    serde_json::from_slice(&read(path, MAX_JSON_BYTES)?).map_err(|error| LmError::file(path, error.to_string()))
}

/// Writes a JSON file, with a final newline.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LmError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| LmError::file(path, error.to_string()))?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// Writes a file atomically.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), LmError> {
    replace(path, |temporary| fs::write(temporary, bytes).map_err(|error| LmError::io(path, error)))
}

/// Lets `fill` write a temporary file and renames it to `path` on success.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(&Path) -> Result<(), LmError>) -> Result<(), LmError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let temporary = path.with_file_name(name);
    let filled = fill(&temporary).and_then(|()| fs::rename(&temporary, path).map_err(|error| LmError::io(path, error)));
    if filled.is_err() {
        // The error above matters; the temporary file may never have been created.
        let _ = fs::remove_file(&temporary);
    }
    filled
}
