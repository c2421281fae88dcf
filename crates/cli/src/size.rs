//! Sizes in the notation of transformers' `max_shard_size`: `5GB`, `500MB`.

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Parses a size such as `5GB` or `512MiB` to bytes. A bare number is in bytes.
///
/// # Errors
/// A message if `text` is not a size. `Gb` is rejected, because transformers reads it as bits.
pub fn parse(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = UNITS.into_iter().find(|(name, _)| *name == unit).map(|(_, scale)| scale);
    let bytes = scale.zip(number.parse::<u64>().ok()).and_then(|(scale, number)| number.checked_mul(scale));
    bytes.ok_or_else(|| {
        let units = UNITS.map(|(name, _)| name)[1..].join(", ");
        format!("`{text}` is not a size: use a whole number of bytes, or a number with a unit ({units}), such as 5GB")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::parse;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("500MB", 500_000_000), ("1MiB", 1 << 20), ("1048576", 1 << 20), ("0", 0)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "5Gb", "5gb", "2.5GB", "-1", "5 GB", "99999999999999TB", "5GBs"] {
            assert!(parse(text).unwrap_err().contains(&format!("`{text}` is not a size")), "{text}");
        }
    }
}
