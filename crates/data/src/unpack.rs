//! Compressed files: gzip with one or more members, and zstd.

use std::io::{self, BufRead, BufReader, Read};

use bounded::BoundedDecoder;

mod bounded;

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packing {
    /// Not compressed.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Size of one read.
const READ_BYTES: usize = 256 * 1024;
/// The largest zstd window that is supported, `zstd --long=29`: 512 MiB. The decoder keeps that
/// much of the decompressed file in memory.
const MAX_WINDOW_LOG: u32 = 29;

/// Returns a reader of the decompressed content of `stored`, a file of `stored_bytes`. Reading
/// fails if there is more content than is plausible for text.
///
/// # Errors
/// The decoder cannot be created.
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

/// Returns at most `limit` bytes of what can be decompressed from the first bytes of a file.
pub fn head(stored: &[u8], packing: Packing, limit: usize) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(reader) = unpacked(stored, stored.len() as u64, packing) {
        let mut reader = reader.take(limit as u64);
        let mut chunk = [0; 4096];
        // The stored bytes may end in the middle of a block. Everything before the error counts.
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            head.extend_from_slice(&chunk[..count]);
        }
    }
    head
}

/// Returns a reason if the zstd file that starts with `stored` needs a larger window than may be
/// kept in memory (RFC 8878, section 3.1.1.1.2).
pub fn too_long_a_window(stored: &[u8]) -> Option<String> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] = stored else { return None };
    let is_single_segment = descriptor & 0x20 != 0;
    let log = u32::from(window >> 3) + 10;
    (!is_single_segment && log > MAX_WINDOW_LOG).then(|| {
        format!(
            "is compressed with a window of {} MiB, all of which a reader keeps in memory, and the limit is {} MiB; \
             recompress it with `zstd --long={MAX_WINDOW_LOG}` or less, or decompress it",
            1u64 << (log - 20),
            1u64 << (MAX_WINDOW_LOG - 20)
        )
    })
}

/// Returns whether a whole compressed file is intact and empty.
pub fn is_empty(stored: &[u8], packing: Packing) -> bool {
    let count = unpacked(stored, stored.len() as u64, packing).and_then(|mut reader| Ok(reader.fill_buf()?.len()));
    count.is_ok_and(|count| count == 0)
}

/// Consecutive gzip members, optionally followed by the zero padding that tapes and block devices
/// leave.
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

#[cfg(test)]
mod tests {
    use super::too_long_a_window;

    #[test]
    fn d5_a_window_of_half_a_gigabyte_is_the_longest() {
        let starts = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x04, window, 0, 0];
        assert_eq!(too_long_a_window(&starts((29 - 10) << 3)), None);
        let problem = too_long_a_window(&starts((31 - 10) << 3)).unwrap_or_default();
        assert!(problem.contains("window of 2048 MiB") && problem.contains("--long=29"), "{problem}");
        assert_eq!(too_long_a_window(&[0x28, 0xb5, 0x2f, 0xfd, 0x24, 0xff, 0]), None, "a length, not a window");
    }
}
