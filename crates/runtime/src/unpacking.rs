//! Unpacked text that has an end: a few kilobytes of gzip or zstd may unpack to terabytes.

use std::io::{self, Read};

/// Bytes that any file may unpack to: a short file of one repeated line is honest.
const FREE_BYTES: u64 = 1 << 30;
/// Unpacked bytes for each stored one beyond that. Text packs to a tenth or so, logs and repeated markup to a hundredth.
const MAX_RATIO: u64 = 256;
/// Most bytes of any file.
const MAX_BYTES: u64 = 4 << 40;

/// A decoder's output, which fails where there is more of it than the packed file's size makes likely.
#[derive(Debug)]
pub struct BoundedDecoder<R> {
    unpacked: R,
    stored_bytes: u64,
    most: u64,
    left: u64,
}

impl<R> BoundedDecoder<R> {
    /// Reads what `unpacked` makes of a file of `stored_bytes`.
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
                    "its {} bytes unpack to more than {}, which no text does: it may be made to fill memory; if it is \
                     honest, unpack it or split it",
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
        assert!(problem.starts_with("its 10 bytes unpack to more than 1073741824"), "{problem}");
        let stored_bytes = 5 << 20;
        assert_eq!(unpacked(MAX_RATIO * stored_bytes, stored_bytes), Ok(MAX_RATIO * stored_bytes));
        assert!(unpacked(MAX_RATIO * stored_bytes + 1, stored_bytes).is_err());
    }

    #[test]
    fn s7_no_size_is_too_large_to_bound() {
        assert_eq!(BoundedDecoder::new(io::empty(), u64::MAX).most, MAX_BYTES);
    }
}
