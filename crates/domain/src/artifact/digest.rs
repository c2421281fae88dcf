//! Digests of files, and checks of files against them.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::Sha256Digest;

/// The digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileDigest {
    /// The digest of the whole file.
    #[serde(rename = "sha256")]
    Whole(Sha256Digest),
    /// The digests of consecutive segments that cover the whole file. A weights file has one
    /// segment for its header and one for each tensor: they are hashed in parallel, and a copied
    /// tensor keeps its known digest without being read.
    #[serde(rename = "segments")]
    Segments(Vec<SegmentDigest>),
}

/// The digest of a segment of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentDigest {
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its digest.
    pub sha256: Sha256Digest,
}

impl FileDigest {
    /// Returns the digest of the whole file, if it is known.
    pub fn whole(&self) -> Option<Sha256Digest> {
        match self {
            Self::Whole(sha256) => Some(*sha256),
            Self::Segments(_) => None,
        }
    }

    /// Returns the digest of exactly the bytes `range` of a file of `size_bytes`, if it is known.
    pub fn of_range(&self, size_bytes: u64, range: &Range<u64>) -> Option<Sha256Digest> {
        match self {
            Self::Whole(sha256) => (*range == (0..size_bytes)).then_some(*sha256),
            Self::Segments(segments) => {
                let mut at = 0u64;
                let starts = segments.iter().map(|segment| {
                    let start = at;
                    at = at.saturating_add(segment.size_bytes);
                    (start, segment)
                });
                let found = starts.skip_while(|(start, _)| *start < range.start).find(|(start, segment)| {
                    *start == range.start && range.end.checked_sub(*start) == Some(segment.size_bytes)
                });
                found.map(|(_, segment)| segment.sha256)
            }
        }
    }
}

/// Bytes that do not match their digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is damaged{}: its SHA-256 is {actual}, expected {expected}", between(.bytes.as_ref()))]
pub struct Damage {
    /// The byte range; `None` if only the whole file has a digest.
    pub bytes: Option<Range<u64>>,
    /// The digest of the bytes.
    pub actual: Sha256Digest,
    /// The expected digest.
    pub expected: Sha256Digest,
}

fn between(bytes: Option<&Range<u64>>) -> String {
    bytes.map(|bytes| format!(" between bytes {} and {}", bytes.start, bytes.end)).unwrap_or_default()
}

/// Checks the bytes of one file against its digest, incrementally. The caller must check the number
/// of bytes.
#[derive(Debug, Clone)]
pub struct DigestCheck {
    digest: FileDigest,
    /// The segment that is being hashed; it began at `start`.
    segment: usize,
    start: u64,
    at: u64,
    hasher: Sha256,
}

impl DigestCheck {
    /// Creates a check before the first byte.
    pub fn new(digest: FileDigest) -> Self {
        Self { digest, segment: 0, start: 0, at: 0, hasher: Sha256::new() }
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// A segment that ends within these bytes does not match its digest.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), Damage> {
        loop {
            let left = match self.current() {
                None => u64::MAX,
                Some(segment) => self.start + segment.size_bytes - self.at,
            };
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.hasher.update(&bytes[..now]);
            self.at += now as u64;
            bytes = &bytes[now..];
            if now as u64 == left {
                self.end_segment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Finishes the check after the last byte.
    ///
    /// # Errors
    /// The file, or its last segment, does not match its digest.
    pub fn finish(mut self) -> Result<(), Damage> {
        // Ends empty segments at the end of the file.
        self.update(&[])?;
        let expected = match (&self.digest, self.current()) {
            (FileDigest::Whole(sha256), _) => *sha256,
            (FileDigest::Segments(_), Some(segment)) => segment.sha256,
            (FileDigest::Segments(_), None) => return Ok(()),
        };
        let bytes = self.digest.whole().is_none().then_some(self.start..self.at);
        self.compare(bytes, expected)
    }

    fn current(&self) -> Option<SegmentDigest> {
        match &self.digest {
            FileDigest::Whole(_) => None,
            FileDigest::Segments(segments) => segments.get(self.segment).copied(),
        }
    }

    fn end_segment(&mut self) -> Result<(), Damage> {
        if let Some(segment) = self.current() {
            self.compare(Some(self.start..self.at), segment.sha256)?;
            self.segment += 1;
            self.start = self.at;
        }
        Ok(())
    }

    fn compare(&mut self, bytes: Option<Range<u64>>, expected: Sha256Digest) -> Result<(), Damage> {
        let actual = Sha256Digest(std::mem::take(&mut self.hasher).finalize().into());
        if actual == expected { Ok(()) } else { Err(Damage { bytes, actual, expected }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TEXT: &[u8] = b"header|tensor one|tensor two|";

    fn segments() -> FileDigest {
        let parts: [&[u8]; 5] = [b"header|", b"tensor one|", b"", b"tensor two|", b""];
        let segment = |part: &[u8]| SegmentDigest { size_bytes: part.len() as u64, sha256: Sha256Digest::of(part) };
        FileDigest::Segments(parts.map(segment).to_vec())
    }

    fn check(digest: &FileDigest, bytes: &[u8], piece: usize) -> Result<(), Damage> {
        let mut check = DigestCheck::new(digest.clone());
        bytes.chunks(piece).try_for_each(|piece| check.update(piece))?;
        check.finish()
    }

    #[test]
    fn the_right_bytes_pass_in_any_pieces_and_no_others() {
        for digest in [FileDigest::Whole(Sha256Digest::of(TEXT)), segments()] {
            for piece in 1..=TEXT.len() {
                assert_eq!(check(&digest, TEXT, piece), Ok(()), "{digest:?}, pieces of {piece}");
                for at in 0..TEXT.len() {
                    let mut bytes = TEXT.to_vec();
                    bytes[at] ^= 1;
                    assert!(check(&digest, &bytes, piece).is_err(), "{digest:?}, byte {at}");
                }
            }
        }
    }

    #[test]
    fn damage_says_where() {
        let mut bytes = TEXT.to_vec();
        bytes[8] ^= 1;
        let damage = check(&segments(), &bytes, 3).unwrap_err();
        assert_eq!(damage.bytes, Some(7..18));
        assert!(damage.to_string().starts_with("is damaged between bytes 7 and 18: its SHA-256 is "), "{damage}");
        let damage = check(&FileDigest::Whole(Sha256Digest::of(TEXT)), &bytes, 3).unwrap_err();
        assert!(damage.to_string().starts_with("is damaged: its SHA-256 is "), "{damage}");
    }

    #[test]
    fn a_stretch_has_a_digest_where_it_is_a_segment() {
        let (digest, size) = (segments(), TEXT.len() as u64);
        assert_eq!(digest.of_range(size, &(7..18)), Some(Sha256Digest::of(b"tensor one|")));
        assert_eq!(digest.of_range(size, &(18..29)), Some(Sha256Digest::of(b"tensor two|")));
        assert_eq!(digest.of_range(size, &(18..18)), Some(Sha256Digest::of(b"")));
        for other in [0..18, 7..17, 8..18, 0..size, 29..30] {
            assert_eq!(digest.of_range(size, &other), None, "{other:?}");
        }
        let whole = FileDigest::Whole(Sha256Digest::of(TEXT));
        assert_eq!((whole.of_range(size, &(0..size)), whole.of_range(size, &(7..18))), (whole.whole(), None));
    }

    #[test]
    fn a_manifest_says_either() {
        let whole = r#"{"name":"a","size_bytes":1,"sha256":"ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}"#;
        let file: crate::artifact::ManifestFile = serde_json::from_str(whole).unwrap();
        assert_eq!(file.digest, FileDigest::Whole(Sha256Digest::of(b"a")));
        assert_eq!(serde_json::to_string(&file).unwrap(), whole);
        let file = crate::artifact::ManifestFile { digest: segments(), ..file };
        let json = serde_json::to_string(&file).unwrap();
        assert!(json.contains(r#""segments":[{"size_bytes":7,"sha256":"#), "{json}");
        assert_eq!(serde_json::from_str::<crate::artifact::ManifestFile>(&json).unwrap(), file);
    }
}
