#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A writer of test archives: `(name, data)`, with fields that may be false.
#[derive(Clone)]
struct Writer {
    entries: Vec<(String, Vec<u8>)>,
    method: u16,
    flags: u16,
    wide: bool,
    comment: Vec<u8>,
}

impl Writer {
    fn new(entries: &[(&str, &[u8])]) -> Self {
        let entries = entries.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())).collect();
        Self { entries, method: 0, flags: 0x808, wide: false, comment: Vec::new() }
    }

    /// Returns the archive and the data range of each entry.
    fn write(&self) -> (Vec<u8>, Vec<Range<u64>>) {
        let (mut file, mut directory, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (name, data) in &self.entries {
            let start = file.len() as u64;
            let padding = (64 - (file.len() + 30 + name.len()) % 64) % 64;
            file.extend(LOCAL_SIGNATURE.to_le_bytes());
            file.extend([0; 2]);
            file.extend(self.flags.to_le_bytes());
            file.extend(self.method.to_le_bytes());
            file.extend([0; 16]);
            file.extend((name.len() as u16).to_le_bytes());
            file.extend((padding as u16).to_le_bytes());
            file.extend(name.bytes());
            file.extend(vec![b'Z'; padding]);
            places.push(file.len() as u64..(file.len() + data.len()) as u64);
            file.extend(data);

            let mut extra = Vec::new();
            if self.wide {
                extra.extend([9, 9, 1, 0, 7, 1, 0, 24, 0]);
                for number in [data.len() as u64, data.len() as u64, start] {
                    extra.extend(number.to_le_bytes());
                }
            }
            let narrow = |number: u64| if self.wide { u32::MAX } else { number as u32 };
            directory.extend(ENTRY_SIGNATURE.to_le_bytes());
            directory.extend([0; 4]);
            directory.extend(self.flags.to_le_bytes());
            directory.extend(self.method.to_le_bytes());
            directory.extend([0; 8]);
            directory.extend(narrow(data.len() as u64).to_le_bytes());
            directory.extend(narrow(data.len() as u64).to_le_bytes());
            directory.extend((name.len() as u16).to_le_bytes());
            directory.extend((extra.len() as u16).to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(narrow(start).to_le_bytes());
            directory.extend(name.bytes());
            directory.extend(extra);
        }
        let (start, count) = (file.len() as u64, self.entries.len());
        file.extend(&directory);
        let end64 = file.len() as u64;
        if self.wide {
            file.extend(END64_SIGNATURE.to_le_bytes());
            file.extend([0; 20]);
            for number in [count as u64, count as u64, directory.len() as u64, start] {
                file.extend(number.to_le_bytes());
            }
            file.extend(LOCATOR_SIGNATURE.to_le_bytes());
            file.extend([0; 4]);
            file.extend(end64.to_le_bytes());
            file.extend([1, 0, 0, 0]);
        }
        let narrow = |number: u64| if self.wide { u32::MAX } else { number as u32 };
        file.extend(END_SIGNATURE.to_le_bytes());
        file.extend([0; 4]);
        file.extend((count as u16).to_le_bytes());
        file.extend((count as u16).to_le_bytes());
        file.extend(narrow(directory.len() as u64).to_le_bytes());
        file.extend(narrow(start).to_le_bytes());
        file.extend((self.comment.len() as u16).to_le_bytes());
        file.extend(&self.comment);
        (file, places)
    }
}

/// Returns names and data ranges, as a reader that reads by ranges sees them.
fn read(file: &[u8]) -> Result<Vec<(String, Range<u64>)>, ZipError> {
    let tail = &file[file.len().saturating_sub(END_BYTES as usize)..];
    let end = DirectoryEnd::find(tail, file.len() as u64)?;
    let bytes = |range: &Range<u64>| &file[range.start as usize..range.end as usize];
    let directory = ZipDirectory::parse(bytes(&end.directory), &end)?;
    directory.entries().iter().map(|e| Ok((e.name.clone(), e.data(bytes(&e.local_header()))?))).collect()
}

fn refused(file: &[u8], expected: Expect) {
    expected.assert_eq(&read(file).unwrap_err().to_string());
}

/// Returns `file` with `bytes` written `at` bytes into the record that starts with the `nth`
/// occurrence of `signature`.
fn patched(file: &[u8], (signature, nth): (u32, usize), at: usize, bytes: &[u8]) -> Vec<u8> {
    let found = file.windows(4).enumerate().filter(|(_, window)| *window == signature.to_le_bytes());
    let record = found.map(|(at, _)| at).nth(nth).unwrap();
    let mut file = file.to_vec();
    file[record + at..record + at + bytes.len()].copy_from_slice(bytes);
    file
}

fn two() -> Writer {
    Writer::new(&[("m/data.pkl", b"pickle"), ("m/data/0", &[7; 100])])
}

#[test]
fn entries_are_found_where_they_are() {
    for wide in [false, true] {
        for comment in [Vec::new(), b"PK\x05\x06 is no end record here, it is too near the end".to_vec()] {
            let (file, places) = Writer { wide, comment, ..two() }.write();
            let names = ["m/data.pkl", "m/data/0"].map(str::to_owned);
            assert_eq!(read(&file).unwrap(), names.into_iter().zip(places).collect::<Vec<_>>());
        }
    }
    assert_eq!(read(&Writer::new(&[]).write().0).unwrap(), []);
}

#[test]
fn what_is_no_plain_archive_is_refused() {
    let (file, _) = two().write();
    refused(b"", expect!["is not a zip archive, or is truncated: it has no end record"]);
    refused(&file[..file.len() - 1], expect!["is not a zip archive, or is truncated: it has no end record"]);
    refused(&file[1..], expect!["has a zip directory that is not valid: it does not end before its end record"]);
    let (deflated, _) = Writer { method: 8, ..two() }.write();
    refused(
        &deflated,
        expect![
            "entry `m/data.pkl` is compressed (method 8); only stored entries, as PyTorch writes them, are supported"
        ],
    );
    let (secret, _) = Writer { flags: 1, ..two() }.write();
    refused(&secret, expect!["entry `m/data.pkl` is encrypted"]);
    let (twice, _) = Writer::new(&[("a", b"1"), ("a", b"2")]).write();
    refused(&twice, expect!["entry `a` occurs twice"]);
    let (nameless, _) = Writer::new(&[("", b"1")]).write();
    refused(
        &nameless,
        expect![
            "has a zip directory that is not valid: an entry has a name that is empty, not UTF-8, or longer than 512 bytes"
        ],
    );
}

#[test]
fn lies_are_refused() {
    let (file, _) = two().write();
    let entry = (ENTRY_SIGNATURE, 0);
    // Overlapping: the second entry's header is within the first entry's data.
    refused(
        &patched(&file, (ENTRY_SIGNATURE, 1), 42, &10_u32.to_le_bytes()),
        expect!["entry `m/data.pkl` overlaps what follows it, or reaches beyond the file"],
    );
    refused(
        &patched(&file, (ENTRY_SIGNATURE, 1), 42, &0xffff_fff0_u32.to_le_bytes()),
        expect!["entry `m/data/0` overlaps what follows it, or reaches beyond the file"],
    );
    let huge = [0xf0, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff];
    refused(
        &patched(&file, entry, 20, &huge),
        expect!["entry `m/data.pkl` overlaps what follows it, or reaches beyond the file"],
    );
    refused(&patched(&file, entry, 20, &[1]), expect!["entry `m/data.pkl` is stored, but takes 1 bytes for 6"]);
    refused(
        &patched(&file, entry, 20, &[0xff; 8]),
        expect!["entry `m/data.pkl` needs zip64 numbers that are not there"],
    );
    refused(
        &patched(&file, (LOCAL_SIGNATURE, 0), 0, b"XX"),
        expect!["entry `m/data.pkl` has no header where the zip directory says"],
    );
    refused(
        &patched(&file, (LOCAL_SIGNATURE, 0), 30, b"X"),
        expect!["entry `m/data.pkl` has a different name in its own header"],
    );
    refused(
        &patched(&file, (LOCAL_SIGNATURE, 0), 28, &u16::MAX.to_le_bytes()),
        expect!["entry `m/data.pkl` overlaps what follows it"],
    );
    let end = (END_SIGNATURE, 0);
    refused(
        &patched(&file, end, 8, &[0xff; 4]),
        expect!["has a zip directory that is not valid: it ends inside a record"],
    );
    refused(
        &patched(&file, end, 12, &[0xff; 4]),
        expect!["has 4294967295 bytes of zip directory; at most 16777216 are allowed"],
    );
    refused(
        &patched(&file, end, 16, &[0xff; 4]),
        expect!["has a zip directory that is not valid: it does not end before its end record"],
    );
    refused(
        &patched(&file, end, 4, &[1]),
        expect!["has a zip directory that is not valid: it is one part of a split archive"],
    );
    let (wide, _) = Writer { wide: true, ..two() }.write();
    refused(
        &patched(&wide, (END64_SIGNATURE, 0), 24, &[0xff; 16]),
        expect!["has 18446744073709551615 entries; at most 65600 are allowed"],
    );
    refused(
        &patched(&wide, (END64_SIGNATURE, 0), 48, &[0xff; 8]),
        expect!["has a zip directory that is not valid: it does not end before its end record"],
    );
    refused(
        &patched(&wide, (LOCATOR_SIGNATURE, 0), 8, &[0xff; 8]),
        expect!["has a zip directory that is not valid: its zip64 end record is not before the end record"],
    );
    refused(
        &patched(&wide, (LOCATOR_SIGNATURE, 0), 8, &[0; 8]),
        expect!["has a zip directory that is not valid: its zip64 end record is not where its locator says"],
    );
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
    }

    #[test]
    fn mutations_never_panic_and_stay_inside(
        wide in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let (mut file, _) = Writer { wide, ..two() }.write();
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if cuts {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(mut entries) = read(&file) {
            entries.sort_by_key(|(_, data)| data.start);
            let mut at = 0;
            for (_, data) in entries {
                prop_assert!(at <= data.start && data.start <= data.end && data.end <= file.len() as u64);
                at = data.end;
            }
        }
    }
}
