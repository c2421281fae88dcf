//! The directory and the pickle of an archive that `torch.save` wrote.
//! `inheritune_checkpoint::torch_archive` interprets them; nothing is executed.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_checkpoint::pickle::{MAX_PICKLE_BYTES, PickleError};
use inheritune_checkpoint::safetensors_header::HeaderTensor;
use inheritune_checkpoint::torch_archive::{ArchiveError, MAX_WORD_BYTES, StateDict, TorchArchive};
use inheritune_checkpoint::zip_directory::{
    DirectoryEnd, END_BYTES, LOCAL_HEADER_BYTES, MAX_NAME_BYTES, ZipDirectory, ZipEntry,
};

use super::WeightsSource;
use crate::error::{BadCheckpoint, SlicerError};

/// Number of first bytes that identify a file's format.
const START_BYTES: u64 = 16;
/// Longest header and padding of an entry; PyTorch aligns to 64 bytes, so a kilobyte is plenty.
const MAX_ENTRY_HEADER_BYTES: u64 = LOCAL_HEADER_BYTES + MAX_NAME_BYTES as u64 + 1024;
/// Local headers of storages read concurrently.
const STORAGES_AT_ONCE: usize = 16;

/// Returns what `parse` makes of the pickle of one file, and the tensors of the state dict in it
/// with their positions. Reads the file's end, its directory, its pickle, and one small range per
/// storage.
pub(super) async fn read<T: Send + 'static>(
    file: &WeightsSource,
    parse: fn(&[u8]) -> Result<T, ArchiveError>,
    state_dict: fn(&T) -> &StateDict,
) -> Result<(T, Vec<HeaderTensor>), SlicerError> {
    let size = file.size_bytes();
    let start = read_range(file, 0..size.min(START_BYTES)).await?;
    TorchArchive::check_start(&start).map_err(|e| bad(file, e))?;
    let archive = TorchArchive::new(directory(file).await?).map_err(|e| bad(file, e))?;
    if let Some(entry) = archive.byte_order() {
        let word = entry_bytes(file, entry, MAX_WORD_BYTES).await?;
        TorchArchive::check_byte_order(&word).map_err(|e| bad(file, e))?;
    }
    let pickle = archive.pickle();
    if pickle.size_bytes > MAX_PICKLE_BYTES {
        return Err(bad(file, PickleError::TooLong { bytes: pickle.size_bytes }));
    }
    let pickle = entry_bytes(file, pickle, MAX_PICKLE_BYTES).await?;
    // Parsing millions of opcodes would block the executor's thread.
    let parsed = tokio::task::spawn_blocking(move || parse(&pickle)).await?;
    let parsed = parsed.map_err(|e| bad(file, e))?;
    let tensors = state_dict(&parsed);
    let storages = archive.storages(tensors).map_err(|e| bad(file, e))?;
    let storages: BTreeMap<String, Range<u64>> = futures::stream::iter(storages)
        .map(|(key, entry)| storage(file.clone(), key, entry))
        .buffer_unordered(STORAGES_AT_ONCE)
        .try_collect()
        .await?;
    let tensors = tensors.located(&storages).map_err(|e| bad(file, e))?;
    Ok((parsed, tensors))
}

async fn directory(file: &WeightsSource) -> Result<ZipDirectory, SlicerError> {
    let size = file.size_bytes();
    let tail_start = size.saturating_sub(END_BYTES);
    let tail = read_range(file, tail_start..size).await?;
    let end = DirectoryEnd::find(&tail, size).map_err(|e| bad(file, e))?;
    let Range { start, end: directory_end } = end.directory;
    let bytes = match start.checked_sub(tail_start) {
        Some(from) => tail.slice(from as usize..(directory_end - tail_start) as usize),
        None => read_range(file, start..directory_end).await?,
    };
    ZipDirectory::parse(&bytes, &end).map_err(|e| bad(file, e))
}

/// The data of a small entry, in one read.
async fn entry_bytes(file: &WeightsSource, entry: &ZipEntry, max_bytes: u64) -> Result<Bytes, SlicerError> {
    let Range { start, end } = entry.span;
    let end = end.min(start.saturating_add(max_bytes).saturating_add(MAX_ENTRY_HEADER_BYTES));
    let span = read_range(file, start..end).await?;
    let data = entry.data(&span).map_err(|e| bad(file, e))?;
    match (data.start.checked_sub(start), data.end.checked_sub(start)) {
        (Some(from), Some(to)) if to <= span.len() as u64 => Ok(span.slice(from as usize..to as usize)),
        _ => {
            let problem = format!("entry `{}` is longer than the limit of {max_bytes} bytes", entry.name);
            Err(bad(file, ArchiveError::NotCheckpoint { problem }))
        }
    }
}

async fn storage(file: WeightsSource, key: String, entry: ZipEntry) -> Result<(String, Range<u64>), SlicerError> {
    let header = read_range(&file, entry.local_header()).await?;
    Ok((key, entry.data(&header).map_err(|e| bad(&file, e))?))
}

/// Object stores reject requests for an empty range.
async fn read_range(file: &WeightsSource, range: Range<u64>) -> Result<Bytes, SlicerError> {
    if range.is_empty() { Ok(Bytes::new()) } else { file.read(range).await }
}

fn bad(file: &WeightsSource, problem: impl Into<ArchiveError>) -> SlicerError {
    file.bad(BadCheckpoint::Archive { file: file.name.clone(), problem: problem.into() })
}
