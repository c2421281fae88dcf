//! JSON lines and arrays: the documents are the same however the bytes arrive, and the same that
//! serde_json finds.

use inheritune_data::kind::Content;
use inheritune_data::unpack::Packing;
use serde_json::Value;

use super::{kind, read};

pub fn check(file: &[u8]) {
    for name in ["a.jsonl", "a.json", "a.txt", "a", "a.bin", "a.csv"] {
        let Ok(kind) = kind(name, file) else { continue };
        if kind.content == Content::Parquet || file.len() > 1 << 16 {
            continue;
        }
        for max_bad_rows in [0, u64::MAX] {
            let (documents, error) = read(file, kind, 1 << 16, max_bad_rows);
            let slowly = read(file, kind, 3, max_bad_rows);
            // How much a decoder returns before it fails may depend on the size of the reads.
            if kind.packing == Packing::Plain || (error.is_none() && slowly.1.is_none()) {
                assert_eq!((&documents, &error), (&slowly.0, &slowly.1), "with reads of another size");
            }
        }
    }
    check_lines(file);
}

/// Checks that a file whose lines are all objects with one string `text` is read as those strings.
fn check_lines(file: &[u8]) {
    let Ok(text) = std::str::from_utf8(file) else { return };
    let Ok(kind) = kind("a.jsonl", file) else { return };
    if kind.content != Content::JsonLines || text.contains('\u{feff}') {
        return;
    }
    let mut expected = Vec::new();
    for line in text.split('\n').filter(|line| !line.trim_matches([' ', '\t', '\r']).is_empty()) {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(row)) if line.matches("text").count() == 1 => match row.get("text") {
                Some(Value::String(text)) => expected.push(text.clone()),
                _ => return,
            },
            _ => return,
        }
    }
    let (documents, error) = read(file, kind, 1 << 16, 0);
    assert_eq!(error, None);
    let without_mark = |text: String| text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let expected: Vec<String> = expected.into_iter().map(without_mark).filter(|text| !text.is_empty()).collect();
    assert_eq!(documents, expected);
}
