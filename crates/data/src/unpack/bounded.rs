//! Decompression with a size limit: a few kilobytes of gzip or zstd may decompress to terabytes.

use std::io::{self, Read};

/// Decompressed size allowed for any file. A short file of one repeated line is legitimate.
const FREE_BYTES: u64 = 1 << 30;
/// Decompressed bytes allowed per stored byte beyond that. Text compresses to about a tenth, logs
/// and repetitive markup to a hundredth.
const MAX_RATIO: u64 = 256;
/// Maximum decompressed size of any file.
const MAX_BYTES: u64 = 4 << 40;

/// A decoder's output, which fails if it is larger than is plausible for the size of the compressed
/// file.
#[derive(Debug)]
pub struct BoundedDecoder<R> {
    unpacked: R,
    stored_bytes: u64,
    most: u64,
    left: u64,
}

impl<R> BoundedDecoder<R> {
    /// Limits `unpacked`, the decoder of a file of `stored_bytes`.
    pub fn new(unpacked: R, stored_bytes: u64) -> Self {
        let most = stored_bytes.saturating_mul(MAX_RATIO).clamp(FREE_BYTES, MAX_BYTES);
        Self { unpacked, stored_bytes, most, left: most }
    }

    fn take(&mut self, bytes: usize) -> io::Result<()> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "its {} bytes decompress to more than {}, which is not plausible for text: it may be a \
                     decompression bomb; if it is legitimate, decompress it or split it",
                    self.stored_bytes, self.most
                ),
            )),
        }
    }
}

impl<R: Read> Read for BoundedDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.unpacked.read(buffer)?;
        self.take(bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(bytes: u64, stored_bytes: u64) -> Result<u64, String> {
        let mut reader = BoundedDecoder::new(io::repeat(b'a').take(bytes), stored_bytes);
        io::copy(&mut reader, &mut io::sink()).map_err(|e| e.to_string())
    }

    #[test]
    fn s7_what_unpacks_without_end_is_an_error() {
        assert_eq!(unpacked(FREE_BYTES, 10), Ok(FREE_BYTES), "a short file of one line");
        let problem = unpacked(FREE_BYTES + 1, 10).err().unwrap_or_default();
        assert!(problem.starts_with("its 10 bytes decompress to more than 1073741824"), "{problem}");
        let stored_bytes = 5 << 20;
        assert_eq!(unpacked(MAX_RATIO * stored_bytes, stored_bytes), Ok(MAX_RATIO * stored_bytes));
        assert!(unpacked(MAX_RATIO * stored_bytes + 1, stored_bytes).is_err());
    }

    #[test]
    fn s7_no_size_is_too_large_to_bound() {
        assert_eq!(BoundedDecoder::new(io::empty(), u64::MAX).most, MAX_BYTES);
    }
}
