//! Packed files: gzip of one or more members, and zstd.

use std::io::{self, BufRead, BufReader, Read};

use bounded::BoundedDecoder;

mod bounded;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Read at once.
const READ_BYTES: usize = 256 * 1024;
/// The longest window that is read, `zstd --long=29`: 512 MiB. A decoder holds as much of the unpacked file.
const MAX_WINDOW_LOG: u32 = 29;

/// What `stored`, a file of `stored_bytes`, holds, unpacked; reading it fails where that is more than any text becomes.
///
/// # Errors
/// A decoder cannot be made.
pub fn unpacked<'a>(
    stored: impl Read + Send + 'a,
    stored_bytes: u64,
    packing: Packing,
) -> io::Result<BufReader<Box<dyn Read + Send + 'a>>> {
    let reader: Box<dyn Read + Send> = match packing {
        Packing::Plain => Box::new(stored),
        Packing::Gzip => {
            let members = GzipMembers::new(BufReader::with_capacity(READ_BYTES, stored));
            Box::new(BoundedDecoder::new(members, stored_bytes))
        }
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(stored)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(BoundedDecoder::new(decoder, stored_bytes))
        }
    };
    Ok(BufReader::with_capacity(READ_BYTES, reader))
}

/// What can be unpacked of the first bytes of a file, at most `limit`.
pub fn head(stored: &[u8], packing: Packing, limit: usize) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(reader) = unpacked(stored, stored.len() as u64, packing) {
        let mut reader = reader.take(limit as u64);
        let mut chunk = [0; 4096];
        // The stored bytes end in the middle of a block; what came before the error counts.
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            head.extend_from_slice(&chunk[..count]);
        }
    }
    head
}

/// Whether a whole packed file holds nothing, and is not damaged.
pub fn is_empty(stored: &[u8], packing: Packing) -> bool {
    let count = unpacked(stored, stored.len() as u64, packing).and_then(|mut reader| Ok(reader.fill_buf()?.len()));
    count.is_ok_and(|count| count == 0)
}

/// gzip members one after the other, and zeros after the last as tapes and block devices leave them.
struct GzipMembers<R: BufRead> {
    member: Option<flate2::bufread::GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(reader: R) -> Self {
        Self { member: Some(flate2::bufread::GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(member) = self.member.take() else { return Ok(0) };
            let mut rest = member.into_inner();
            loop {
                let next = rest.fill_buf()?;
                let zeros = next.iter().take_while(|byte| **byte == 0).count();
                let ended = next.is_empty();
                if ended {
                    return Ok(0);
                }
                if zeros == 0 {
                    break;
                }
                rest.consume(zeros);
            }
            self.member = Some(flate2::bufread::GzDecoder::new(rest));
        }
    }
}
