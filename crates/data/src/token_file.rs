//! Token files: nanoGPT's `train.bin` (consecutive little-endian ids of 16 or 32 bits), and llm.c's
//! files, whose header contains the number of tokens. The id width of a file without a header is
//! derived from its content and never guessed.

use std::io::{BufRead, Read};

use crate::DataError;

/// llm.c's header: 256 numbers of 32 bits, of which only magic, version and count are used.
const HEADER_BYTES: usize = 1024;
/// Length of a part in bytes: whole ids of either width.
const PART_BYTES: usize = 1 << 20;
/// Number of bytes from the start of the file used to detect the width.
const TOLD_BY: usize = 64 * 1024;

/// The width of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Two,
    Four,
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// The ids of a token file, part by part.
pub struct TokenFile<R> {
    reader: R,
    file: String,
    vocab_size: u32,
    /// Known after the first part.
    layout: Option<Layout>,
    /// Number of ids returned so far.
    position: u64,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    width: Width,
    /// The number of tokens in the header.
    tokens: Option<u64>,
}

impl<R: BufRead> TokenFile<R> {
    /// Reads a decompressed file that messages call `file`. Its ids must be below `vocab_size`.
    pub fn new(reader: R, file: &str, vocab_size: u32) -> Self {
        Self { reader, file: file.to_owned(), vocab_size, layout: None, position: 0, ended: false }
    }

    /// Returns the next ids, or `None` at the end.
    ///
    /// # Errors
    /// The file is not a token file of this vocabulary. The message says what it seems to be, and
    /// where.
    pub fn next_part(&mut self) -> Result<Option<Vec<u32>>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let header = if self.layout.is_none() { HEADER_BYTES } else { 0 };
        let wanted = (PART_BYTES + header) as u64;
        (&mut self.reader).take(wanted).read_to_end(&mut bytes).map_err(DataError::Io)?;
        let mut ids = bytes.as_slice();
        let layout = match self.layout {
            Some(layout) => layout,
            None => {
                let (layout, without_header) = layout(ids, self.vocab_size).map_err(|problem| self.bad(problem))?;
                self.layout = Some(layout);
                ids = without_header;
                layout
            }
        };
        self.ended = (bytes.len() as u64) < wanted;
        if ids.len() % layout.width.bytes() != 0 {
            return Err(self.bad(format!(
                "does not contain whole {}-bit token ids like nanoGPT's train.bin",
                layout.width.bytes() * 8
            )));
        }
        let ids = ids_of(ids, layout.width);
        if let Some(at) = ids.iter().position(|id| *id >= self.vocab_size) {
            return Err(self.bad(format!(
                "token {} at position {} is not below the vocabulary size ({}): the ids come from another tokenizer, or \
                 are not {} bits wide",
                ids[at],
                self.position + at as u64,
                self.vocab_size,
                layout.width.bytes() * 8
            )));
        }
        self.position += ids.len() as u64;
        if let Some(promised) = layout.tokens
            && (self.position > promised || (self.ended && self.position < promised))
        {
            let found = if self.ended { self.position.to_string() } else { "more".to_owned() };
            return Err(self.bad(format!(
                "its header declares {promised} tokens but it contains {found}; it is truncated or \
                                         malformed"
            )));
        }
        Ok((!ids.is_empty()).then_some(ids))
    }

    fn bad(&self, problem: String) -> DataError {
        DataError::Bad { file: self.file.clone(), problem }
    }
}

fn ids_of(bytes: &[u8], width: Width) -> Vec<u32> {
    match width {
        Width::Two => bytes.as_chunks().0.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect(),
        Width::Four => bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
    }
}

/// Returns the layout of the file that starts with `bytes`, and its ids without the header.
fn layout(bytes: &[u8], vocab_size: u32) -> Result<(Layout, &[u8]), String> {
    let number =
        |at: usize| bytes.get(at * 4..).and_then(|rest| rest.first_chunk()).map(|four| u32::from_le_bytes(*four));
    let with_header = |width, version: u32| {
        let name = number(0).unwrap_or_default();
        match (number(1), number(2), bytes.get(HEADER_BYTES..)) {
            (Some(found), _, _) if found != version => Err(format!(
                "has llm.c's header {name} in version {found}, which is not supported (expected {version})"
            )),
            (_, Some(tokens), Some(ids)) => Ok((Layout { width, tokens: Some(u64::from(tokens)) }, ids)),
            _ => Err(format!("is truncated within llm.c's header of {HEADER_BYTES} bytes")),
        }
    };
    match number(0) {
        Some(20_240_520) => with_header(Width::Two, 1),
        Some(20_240_801) => with_header(Width::Four, 7),
        Some(20_240_522) => Err("contains questions of an llm.c evaluation, not training tokens".to_owned()),
        Some(20_240_326 | 20_240_327 | 20_240_527) => {
            Err("contains a model or training state of llm.c, not tokens".to_owned())
        }
        Some(other @ 20_240_000..=20_261_231) if number(1).is_some_and(|n| n < 64) && number(3) == Some(0) => {
            Err(format!("starts with the number {other}, which looks like an unknown llm.c header"))
        }
        Some(_) | None => Ok((Layout { width: width(bytes, vocab_size)?, tokens: None }, bytes)),
    }
}

/// Returns the id width of a file without a header. Read as 16-bit numbers, every second number of
/// a 32-bit file is the upper half of an id.
fn width(bytes: &[u8], vocab_size: u32) -> Result<Width, String> {
    let told_by = &bytes[..bytes.len().min(TOLD_BY)];
    let (two, four) = (ids_of(told_by, Width::Two), ids_of(told_by, Width::Four));
    let fits = |ids: &[u32]| ids.iter().all(|id| *id < vocab_size);
    let swapped = |ids: &[u32]| ids.iter().all(|id| id.swap_bytes() >> 16 < vocab_size);
    let may_be_four = bytes.len().is_multiple_of(4) && fits(&four);
    let upper_is_zero = two.len() > 1 && two.iter().skip(1).step_by(2).all(|half| *half == 0);
    if may_be_four
        && four.len() > 1
        && four.iter().skip(1).step_by(2).all(|half| *half == 0)
        && !four.iter().all(|id| *id == 0)
    {
        return Err(
            "seems to contain 64-bit ids; write them with 16 or 32 bits: `ids.astype(\"uint16\").tofile(path)`"
                .to_owned(),
        );
    }
    match (fits(&two), may_be_four) {
        // Ids of a vocabulary that exceeds 16 bits are written with 32 bits. Short ids would belong
        // to another tokenizer.
        (true, true) if vocab_size > 1 << 16 && !upper_is_zero => Ok(Width::Four),
        (true, true) if upper_is_zero => match two.iter().step_by(2).collect::<std::collections::BTreeSet<_>>().len() {
            // Every second number is zero, and the others differ.
            2.. => Ok(Width::Four),
            _ => Err("may contain 16-bit or 32-bit ids: its first numbers fit both; use a longer file".to_owned()),
        },
        (true, false) if vocab_size > 1 << 16 && !two.is_empty() => Err(format!(
            "contains 16-bit ids, but the vocabulary of {vocab_size} needs 32 bits: they come from another tokenizer"
        )),
        (false, true) => Ok(Width::Four),
        (false, false) if two.len() > 8 && swapped(&two) => {
            Err("seems to contain big-endian ids; write them little-endian: `ids.astype(\"<u2\").tofile(path)`"
                .to_owned())
        }
        // Reading reports the first id that is too large.
        (true, _) | (false, false) => Ok(Width::Two),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(bytes: &[u8], vocab_size: u32) -> Result<Vec<u32>, String> {
        let mut file = TokenFile::new(bytes, "x.bin", vocab_size);
        let mut ids = Vec::new();
        while let Some(part) = file.next_part().map_err(|e| e.to_string())? {
            ids.extend(part);
        }
        Ok(ids)
    }

    fn two(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect()
    }

    fn four(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn header(numbers: [u32; 3], ids: &[u8]) -> Vec<u8> {
        let mut bytes = numbers.map(u32::to_le_bytes).concat();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(ids);
        bytes
    }

    #[test]
    fn d3_the_width_of_ids_is_told_by_their_numbers() {
        let ids: Vec<u32> = (0..1000).map(|i| i * 37 % 900).collect();
        assert_eq!(read(&two(&ids), 1000).unwrap(), ids);
        assert_eq!(read(&four(&ids), 1000).unwrap(), ids);
        let large: Vec<u32> = ids.iter().map(|id| id * 140).collect();
        assert_eq!(read(&four(&large), 128_256).unwrap(), large);
        assert_eq!(read(&four(&ids), 128_256).unwrap(), ids);
        // Longer than one part.
        let long: Vec<u32> = (0..800_000).map(|i| i % 50_000).collect();
        assert_eq!(read(&two(&long), 50_257).unwrap(), long);
        assert_eq!(read(&four(&long), 50_257).unwrap(), long);
        let wide: Vec<u8> = ids.iter().flat_map(|id| u64::from(*id).to_le_bytes()).collect();
        for (bytes, vocab_size, words) in [
            (two(&[7, 0, 7, 0]), 1000, "16-bit or 32-bit ids"),
            (two(&[0; 64]), 1000, "16-bit or 32-bit ids"),
            (wide, 1000, "64-bit"),
            (two(&[4, 5, 6]), 128_256, "needs 32 bits"),
            (ids.iter().flat_map(|id| (*id as u16).to_be_bytes()).collect(), 1000, "big-endian"),
            (two(&[1, 2, 1000, 3, 4]), 1000, "token 1000 at position 2"),
            (b"abc".to_vec(), 30_000, "whole 16-bit"),
        ] {
            let error = read(&bytes, vocab_size).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn d3_a_header_is_held_to_its_word() {
        let ids: Vec<u32> = (0..100).collect();
        assert_eq!(read(&header([20_240_520, 1, 100], &two(&ids)), 100).unwrap(), ids);
        assert_eq!(read(&header([20_240_801, 7, 100], &four(&ids)), 100).unwrap(), ids);
        for (bytes, words) in [
            (header([20_240_520, 1, 101], &two(&ids)), "declares 101 tokens but it contains 100"),
            (header([20_240_520, 1, 99], &two(&ids)), "declares 99 tokens but it contains 100"),
            (header([20_240_520, 2, 100], &two(&ids)), "version 2, which is not supported (expected 1)"),
            (header([20_240_801, 1, 100], &four(&ids)), "version 1, which is not supported (expected 7)"),
            (header([20_240_522, 1, 100], &two(&ids)), "evaluation"),
            (header([20_240_326, 3, 100], &two(&ids)), "a model"),
            (header([20_241_111, 1, 100], &two(&ids)), "unknown llm.c header"),
            (header([20_240_520, 1, 100], &two(&ids))[..600].to_vec(), "truncated within llm.c's header"),
        ] {
            let error = read(&bytes, 30_000).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
