//! A whole `pytorch_model.bin`, `ckpt.pt` or `lit_model.pth`.

use std::collections::BTreeMap;
use std::ops::Range;

use inheritune_checkpoint::nanogpt::{NANOGPT_FILE, NanoGpt};
use inheritune_checkpoint::pickle::MAX_PICKLE_BYTES;
use inheritune_checkpoint::safetensors_header::{HeaderTensor, MAX_RANK, MAX_TENSORS, size_bytes};
use inheritune_checkpoint::torch_archive::{ArchiveError, MAX_WORD_BYTES, StateDict, TorchArchive};
use inheritune_checkpoint::zip_directory::{DirectoryEnd, END_BYTES, MAX_ENTRIES, ZipDirectory, ZipEntry};

use super::{Heap, refused};

/// For a file that consists of its pickle.
const HEAP: Heap = Heap { fixed: 64 << 10, per_byte: 200, most: 256 << 20 };

pub fn check(file: &[u8]) {
    match HEAP.hold(file, |file| read(file, StateDict::parse, |state_dict| state_dict)) {
        Ok((_, tensors)) => accepted(&tensors, file),
        // Then it is not an archive of the other formats either.
        Err(error @ (ArchiveError::Legacy | ArchiveError::Zip(_) | ArchiveError::Pickle(_))) => return refused(&error),
        Err(error) => refused(&error),
    }
    match HEAP.hold(file, |file| read(file, NanoGpt::parse, NanoGpt::state_dict)) {
        Ok((model, tensors)) => {
            accepted(&tensors, file);
            if let Err(error) = model.inventory(NANOGPT_FILE, &tensors) {
                refused(&error);
            }
        }
        Err(error) => refused(&error),
    }
}

/// Checks that every tensor is within the file, with the size that its shape implies.
fn accepted(tensors: &[HeaderTensor], file: &[u8]) {
    assert!(tensors.len() <= MAX_TENSORS);
    for HeaderTensor { dtype, shape, bytes, .. } in tensors {
        assert!(shape.len() <= MAX_RANK);
        assert_eq!(bytes.end.checked_sub(bytes.start), size_bytes(*dtype, shape));
        assert!(bytes.end <= file.len() as u64);
    }
}

/// Does the same as `inheritune-slicer` by ranges (`source/archive.rs`), for a file in memory. A
/// range outside of the file panics.
fn read<T>(
    file: &[u8],
    parse: fn(&[u8]) -> Result<T, ArchiveError>,
    state_dict: fn(&T) -> &StateDict,
) -> Result<(T, Vec<HeaderTensor>), ArchiveError> {
    TorchArchive::check_start(file)?;
    let archive = TorchArchive::new(directory(file)?)?;
    let content = |entry: &ZipEntry| Ok::<_, ArchiveError>(part(file, &entry.data(part(file, &entry.span))?));
    if let Some(entry) = archive.byte_order().filter(|entry| entry.size_bytes <= MAX_WORD_BYTES) {
        TorchArchive::check_byte_order(content(entry)?)?;
    }
    assert!((file.len() as u64) < MAX_PICKLE_BYTES, "otherwise the pickle's size must be checked first");
    let parsed = parse(content(archive.pickle())?)?;
    let mut storages = BTreeMap::new();
    for (key, entry) in archive.storages(state_dict(&parsed))? {
        storages.insert(key, entry.data(part(file, &entry.local_header()))?);
    }
    let tensors = state_dict(&parsed).located(&storages)?;
    Ok((parsed, tensors))
}

fn directory(file: &[u8]) -> Result<ZipDirectory, ArchiveError> {
    let tail = &file[file.len().saturating_sub(END_BYTES as usize)..];
    let end = DirectoryEnd::find(tail, file.len() as u64)?;
    let directory = ZipDirectory::parse(part(file, &end.directory), &end)?;
    assert!(directory.entries().len() as u64 <= MAX_ENTRIES);
    // Entries are consecutive, and do not overlap the directory.
    let mut at = directory.entries().first().map_or(0, |first| first.span.start);
    for entry in directory.entries() {
        assert!(entry.span.start == at && entry.local_header().end <= entry.span.end);
        at = entry.span.end;
    }
    assert!(directory.entries().is_empty() || at == end.directory.start);
    Ok(directory)
}

fn part<'a>(file: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &file[range.start as usize..range.end as usize]
}

/// Returns the names and contents of an archive's entries, or `None` if it is empty or not
/// readable.
pub fn entries(file: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let directory = directory(file).ok()?;
    let content = |entry: &ZipEntry| Some(part(file, &entry.data(part(file, &entry.span)).ok()?).to_vec());
    let entries: Option<Vec<_>> =
        directory.entries().iter().map(|entry| Some((entry.name.clone(), content(entry)?))).collect();
    entries.filter(|entries| !entries.is_empty())
}

/// Returns an archive of `entries`, aligned as by `torch.save`. The checksums are never read.
pub fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let start = file.len() as u32;
        let padding = file.len().wrapping_add(30 + name.len()).wrapping_neg() % 64;
        let size = (data.len() as u32).to_le_bytes();
        let name_bytes = (name.len() as u16).to_le_bytes();
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([size, size].concat());
        file.extend(name_bytes);
        file.extend((padding as u16).to_le_bytes());
        file.extend(name.bytes().chain(std::iter::repeat_n(b'Z', padding)));
        file.extend(data);
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([size, size].concat());
        directory.extend(name_bytes);
        directory.extend([0; 12]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (start, count) = (file.len() as u32, (entries.len() as u16).to_le_bytes());
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count, count].concat());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}
