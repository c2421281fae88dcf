//! Reads the directory of a zip archive as written by `torch.save`: all entries are stored without
//! compression, and each is located by its byte range.
//!
//! ```text
//! local header, name, padding, data     for every entry; the data starts at a multiple of 64
//! …
//! central directory                     one record an entry: name, sizes, where its local header is
//! zip64 end record and its locator      where a number needs more than 32 bits (older writers: always)
//! end record                            where the central directory is
//! ```
//! Reading starts at the end: [`DirectoryEnd::find`], [`ZipDirectory::parse`], then
//! [`ZipEntry::data`] for each needed entry. Nothing is decompressed, and every offset is validated
//! before it is used.

use std::ops::Range;

use super::safetensors_header::shortened;

#[cfg(test)]
mod tests;

/// Size of the end of a file that contains its end records: the longest comment and both records
/// before it.
pub const END_BYTES: u64 = (1 << 16) + 256;
/// Maximum size of the central directory.
pub const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Maximum number of entries: the tensors of a checkpoint, and the few other entries that PyTorch
/// writes.
pub const MAX_ENTRIES: u64 = (1 << 16) + 64;
/// Maximum length of an entry's name.
pub const MAX_NAME_BYTES: usize = 512;
/// Size of a local header before the entry's name.
pub const LOCAL_HEADER_BYTES: u64 = 30;

const END_SIGNATURE: u32 = 0x0605_4b50;
const END_RECORD_BYTES: usize = 22;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_RECORD_BYTES: usize = 56;
const LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const LOCATOR_BYTES: usize = 20;
const ENTRY_SIGNATURE: u32 = 0x0201_4b50;
const ENTRY_BYTES: usize = 46;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const ZIP64_EXTRA: u16 = 1;
const ENCRYPTED: u16 = 1;

/// The location of the central directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEnd {
    /// Its byte range in the file.
    pub directory: Range<u64>,
    entries: u64,
}

/// The entries of an archive, by position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipDirectory {
    entries: Vec<ZipEntry>,
}

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipEntry {
    /// The name.
    pub name: String,
    /// Size of the data, in bytes.
    pub size_bytes: u64,
    /// The range from its local header to whatever comes next, which contains header, name, padding
    /// and data.
    pub span: Range<u64>,
}

/// Why an archive cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZipError {
    /// There is no end record.
    #[error("is not a zip archive, or is truncated: it has no end record")]
    NoEnd,
    /// The archive exceeds a limit.
    #[error("has {found} {what}; at most {limit} are allowed")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The actual amount.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The directory contradicts itself or the file.
    #[error("has a zip directory that is not valid: {problem}")]
    Directory {
        /// What is wrong.
        problem: String,
    },
    /// An entry is not valid.
    #[error("entry `{entry}` {problem}")]
    Entry {
        /// The name of the entry.
        entry: String,
        /// What is wrong.
        problem: String,
    },
}

impl DirectoryEnd {
    /// Finds the end records in `tail`, the last bytes of a file of `file_bytes`: the whole file,
    /// or [`END_BYTES`].
    ///
    /// # Errors
    /// There is no end record, or the directory is not within the file or exceeds a limit.
    pub fn find(tail: &[u8], file_bytes: u64) -> Result<Self, ZipError> {
        let invalid = |problem: &str| ZipError::Directory { problem: problem.to_owned() };
        let tail_start = file_bytes.checked_sub(tail.len() as u64).ok_or(ZipError::NoEnd)?;
        let at = end_record(tail).ok_or(ZipError::NoEnd)?;
        let record = Fields(&tail[at..]);
        let (mut entries, mut size) = (u64::from(record.u16(10)?), u64::from(record.u32(12)?));
        let mut start = u64::from(record.u32(16)?);
        if record.u16(4)? != record.u16(6)? || record.u16(8)? != record.u16(10)? {
            return Err(invalid("it is one part of a split archive"));
        }
        let mut before = tail_start + at as u64;
        if let Some(locator) = at.checked_sub(LOCATOR_BYTES).map(|at| Fields(&tail[at..]))
            && locator.u32(0)? == LOCATOR_SIGNATURE
        {
            let end64 = locator.u64(8)?;
            let here = end64.checked_sub(tail_start).and_then(|at| usize::try_from(at).ok());
            let record = here
                .filter(|from| at.checked_sub(END64_RECORD_BYTES + LOCATOR_BYTES).is_some_and(|last| *from <= last))
                .map(|at| &tail[at..]);
            let record = Fields(record.ok_or_else(|| invalid("its zip64 end record is not before the end record"))?);
            if record.u32(0)? != END64_SIGNATURE {
                return Err(invalid("its zip64 end record is not where its locator says"));
            }
            if record.u64(24)? != record.u64(32)? {
                return Err(invalid("it is one part of a split archive"));
            }
            (entries, size, start) = (record.u64(32)?, record.u64(40)?, record.u64(48)?);
            before = end64;
        }
        at_most("entries", entries, MAX_ENTRIES)?;
        at_most("bytes of zip directory", size, MAX_DIRECTORY_BYTES)?;
        let end = start.checked_add(size).filter(|end| *end <= before);
        let end = end.ok_or_else(|| invalid("it does not end before its end record"))?;
        Ok(Self { directory: start..end, entries })
    }
}

impl ZipDirectory {
    /// Parses the bytes of the central directory.
    ///
    /// # Errors
    /// [`ZipError`]: an entry is compressed, encrypted, outside of the file, a duplicate, or
    /// overlaps another.
    pub fn parse(bytes: &[u8], end: &DirectoryEnd) -> Result<Self, ZipError> {
        let mut entries = Vec::with_capacity((end.entries as usize).min(bytes.len() / ENTRY_BYTES));
        let mut rest = bytes;
        for _ in 0..end.entries {
            let (entry, length) = parse_entry(rest)?;
            entries.push(entry);
            rest = &rest[length..];
        }
        if !rest.is_empty() {
            let problem = format!("{} bytes follow its last entry", rest.len());
            return Err(ZipError::Directory { problem });
        }
        check_names(&entries)?;
        entries.sort_by_key(|entry| entry.span.start);
        let starts: Vec<u64> = entries.iter().skip(1).map(|next| next.span.start).collect();
        for (entry, next) in entries.iter_mut().zip(starts.into_iter().chain([end.directory.start])) {
            // The length of the padding is only in the local header. The entry must fit even
            // without it.
            let least = (LOCAL_HEADER_BYTES + entry.name.len() as u64).checked_add(entry.size_bytes);
            let least = least.and_then(|size| entry.span.start.checked_add(size));
            if least.is_none_or(|least| least > next) {
                return Err(entry_error(
                    &entry.name,
                    "overlaps what follows it, or reaches beyond the file".to_owned(),
                ));
            }
            entry.span.end = next;
        }
        Ok(Self { entries })
    }

    /// The entries, by position.
    pub fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }

    /// Returns the entry with this name.
    pub fn entry(&self, name: &str) -> Option<&ZipEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

impl ZipEntry {
    /// Returns the byte range that [`ZipEntry::data`] needs.
    pub fn local_header(&self) -> Range<u64> {
        self.span.start..self.span.start + LOCAL_HEADER_BYTES + self.name.len() as u64
    }

    /// Returns the byte range of the data in the file, according to the entry's local header.
    /// `header` starts with the bytes at [`ZipEntry::local_header`].
    ///
    /// # Errors
    /// The header is not valid, belongs to another entry, or puts the data beyond the end of the
    /// entry.
    pub fn data(&self, header: &[u8]) -> Result<Range<u64>, ZipError> {
        let bad = |problem: &str| entry_error(&self.name, problem.to_owned());
        let fields = Fields(header);
        if fields.u32(0)? != LOCAL_SIGNATURE {
            return Err(bad("has no header where the zip directory says"));
        }
        check_stored(&self.name, fields.u16(6)?, fields.u16(8)?)?;
        let (name_bytes, extra_bytes) = (usize::from(fields.u16(26)?), u64::from(fields.u16(28)?));
        let name = header.get(LOCAL_HEADER_BYTES as usize..).and_then(|rest| rest.get(..name_bytes));
        if name != Some(self.name.as_bytes()) {
            return Err(bad("has a different name in its own header"));
        }
        let before = LOCAL_HEADER_BYTES + name_bytes as u64 + extra_bytes;
        let start = self.span.start.checked_add(before);
        match start.and_then(|start| Some(start..start.checked_add(self.size_bytes)?)) {
            Some(data) if data.end <= self.span.end => Ok(data),
            Some(_) | None => Err(bad("overlaps what follows it")),
        }
    }
}

fn end_record(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_RECORD_BYTES)?;
    // The comment may also contain the signature. The comment of the correct record ends at the end
    // of the file.
    (0..=last).rev().find(|at| {
        let record = Fields(&tail[*at..]);
        let comment = record.u16(20).map(usize::from);
        record.u32(0) == Ok(END_SIGNATURE) && comment == Ok(last - at)
    })
}

/// Parses a record of the central directory, and returns it with its length. The end of the span is
/// not known yet.
fn parse_entry(bytes: &[u8]) -> Result<(ZipEntry, usize), ZipError> {
    let fields = Fields(bytes);
    if fields.u32(0)? != ENTRY_SIGNATURE {
        return Err(ZipError::Directory { problem: "an entry does not start with its signature".to_owned() });
    }
    let (name_bytes, extra_bytes) = (usize::from(fields.u16(28)?), usize::from(fields.u16(30)?));
    let extra_start = ENTRY_BYTES + name_bytes;
    let length = extra_start + extra_bytes + usize::from(fields.u16(32)?);
    if length > bytes.len() {
        return Err(ZipError::Directory { problem: "it ends inside an entry".to_owned() });
    }
    let name = std::str::from_utf8(&bytes[ENTRY_BYTES..extra_start]).unwrap_or_default();
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        let problem = format!("an entry has a name that is empty, not UTF-8, or longer than {MAX_NAME_BYTES} bytes");
        return Err(ZipError::Directory { problem });
    }
    check_stored(name, fields.u16(8)?, fields.u16(10)?)?;
    let (mut packed, mut size, mut start) =
        (u64::from(fields.u32(20)?), u64::from(fields.u32(24)?), u64::from(fields.u32(42)?));
    let mut wide = zip64_extra(&bytes[extra_start..extra_start + extra_bytes]).unwrap_or_default();
    for field in [&mut size, &mut packed, &mut start] {
        if *field == u64::from(u32::MAX) {
            let (value, rest) = wide
                .split_first_chunk::<8>()
                .ok_or_else(|| entry_error(name, "needs zip64 numbers that are not there".to_owned()))?;
            (*field, wide) = (u64::from_le_bytes(*value), rest);
        }
    }
    if packed != size {
        return Err(entry_error(name, format!("is stored, but takes {packed} bytes for {size}")));
    }
    Ok((ZipEntry { name: name.to_owned(), size_bytes: size, span: start..start }, length))
}

fn zip64_extra(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (head, rest) = extra.split_first_chunk::<4>()?;
        let [id, size] = [u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]])];
        let (data, rest) = rest.split_at_checked(size.into())?;
        if id == ZIP64_EXTRA {
            return Some(data);
        }
        extra = rest;
    }
}

fn check_stored(name: &str, flags: u16, method: u16) -> Result<(), ZipError> {
    if flags & ENCRYPTED != 0 {
        return Err(entry_error(name, "is encrypted".to_owned()));
    }
    if method == 0 {
        return Ok(());
    }
    Err(entry_error(
        name,
        format!("is compressed (method {method}); only stored entries, as PyTorch writes them, are supported"),
    ))
}

fn check_names(entries: &[ZipEntry]) -> Result<(), ZipError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(entry_error(pair[0], "occurs twice".to_owned())),
        None => Ok(()),
    }
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), ZipError> {
    if found <= limit { Ok(()) } else { Err(ZipError::Limit { what, found, limit }) }
}

fn entry_error(name: &str, problem: String) -> ZipError {
    ZipError::Entry { entry: shortened(name), problem }
}

/// Little-endian numbers at fixed offsets of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], ZipError> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().ok_or_else(|| ZipError::Directory { problem: "it ends inside a record".to_owned() })
    }

    fn u16(&self, at: usize) -> Result<u16, ZipError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, ZipError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, ZipError> {
        self.array(at).map(u64::from_le_bytes)
    }
}
