//! The replacements that a model applies to text before it looks for pieces:
//! `precompiled_charsmap`.
//!
//! ```text
//! 4 bytes   length of the double array, little endian
//! n bytes   the double array (darts-clone): units of 4 bytes; a leaf is an offset into the texts
//! the rest  the replacement texts, each terminated by a NUL
//! ```
//! A unit of darts-clone: bits 0-7 are the label, bit 8 is set if a leaf follows, bit 9 if the
//! offset is shifted by 8 more bits, and bits 10-31 are the offset. In a leaf, bit 31 is set and
//! the others are the value.

const UNIT_BYTES: usize = 4;
/// Units are allocated in blocks.
const BLOCK_UNITS: usize = 256;
const LEAF: u32 = 1 << 31;
/// The library considers at most this many rules per position in a text (`kMaxTrieResultsSize`).
const MAX_RULES: usize = 32;

/// Replacements of byte strings; the longest match wins.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    texts: Vec<u8>,
}

impl Charsmap {
    /// Parses the bytes in a model.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (length, rest) = bytes.split_first_chunk::<UNIT_BYTES>().ok_or("has no length")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (array, texts) = rest
            .split_at_checked(length)
            .ok_or_else(|| format!("has a double array of {length} bytes, but only {} bytes follow", rest.len()))?;
        if length == 0 || !length.is_multiple_of(BLOCK_UNITS * UNIT_BYTES) {
            return Err(format!("has a double array of {length} bytes, which is not a multiple of 1024"));
        }
        if texts.last() != Some(&0) {
            return Err("does not end with a NUL".to_owned());
        }
        let units =
            array.chunks_exact(UNIT_BYTES).map(|unit| unit.iter().rev().fold(0, |all, b| all << 8 | u32::from(*b)));
        let map = Self { units: units.collect(), texts: texts.to_vec() };
        map.check()?;
        Ok(map)
    }

    /// Checks that every unit and every text that a lookup can reach exists.
    fn check(&self) -> Result<(), String> {
        let size = self.units.len();
        for (at, &unit) in self.units.iter().enumerate() {
            let problem = if label(unit) > 0xff {
                (at == 0 || value(unit) >= self.texts.len()).then_some("a leaf with an invalid value")
            } else if (at ^ offset(unit)) | 0xff >= size {
                Some("a node with an offset outside the array")
            } else if at == 0 {
                (unit & 0xff != 0 || has_leaf(unit) || offset(unit) == 0).then_some("not a root")
            } else {
                (has_leaf(unit) && label(self.units[at ^ offset(unit)]) <= 0xff).then_some("a node without its leaf")
            };
            if let Some(problem) = problem {
                return Err(format!("has an invalid double array: unit {at} is {problem}"));
            }
        }
        Ok(())
    }

    /// The longest rule that matches the start of `input`: its length and its replacement.
    pub(super) fn longest(&self, input: &[u8]) -> Option<(usize, &[u8])> {
        let mut at = offset(*self.units.first()?);
        let (mut found, mut rules) = (None, 0);
        for (i, byte) in input.iter().enumerate() {
            at ^= usize::from(*byte);
            let unit = *self.units.get(at)?;
            if label(unit) != u32::from(*byte) {
                break;
            }
            at ^= offset(unit);
            if has_leaf(unit) {
                found = Some((i + 1, value(*self.units.get(at)?)));
                rules += 1;
                if rules == MAX_RULES {
                    break;
                }
            }
        }
        let (length, start) = found?;
        let text = self.texts.get(start..)?;
        Some((length, text.split(|byte| *byte == 0).next()?))
    }
}

/// For a leaf, a label that no byte has.
fn label(unit: u32) -> u32 {
    unit & (LEAF | 0xff)
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & !LEAF) as usize
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Charsmap;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A map that passes the checks never panics.
        #[test]
        fn no_bytes_make_it_panic(
            unit in prop::collection::vec(any::<u32>(), 256),
            small in 0..4u32,
            texts in prop::collection::vec(any::<u8>(), 0..20),
            input in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = 1024u32.to_le_bytes().to_vec();
            // Small numbers make valid offsets more likely.
            bytes.extend(unit.iter().flat_map(|unit| (unit >> (8 * small)).to_le_bytes()));
            bytes.extend(&texts);
            bytes.push(0);
            if let Ok(map) = Charsmap::parse(&bytes) {
                map.longest(&input);
            }
            let _ = Charsmap::parse(&input);
        }
    }
}
