//! Documents of files of every kind, intact and damaged.

#![allow(clippy::unwrap_used)]

use std::io::{BufReader, Cursor, Write as _};

use inheritune_data::kind::{HEAD_BYTES, Head, tell};
use inheritune_data::{ChunkReader, Documents, Length, ReadAs, Tally};

/// A file in memory.
#[derive(Clone)]
struct Stored(Vec<u8>);

impl Length for Stored {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl ChunkReader for Stored {
    type T = BufReader<Cursor<Vec<u8>>>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(Cursor::new(self.0[start as usize..].to_vec())))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        Ok(self.0[start as usize..start as usize + length].to_vec().into())
    }
}

struct Read {
    documents: Vec<String>,
    empty: u64,
    bad: u64,
}

fn read_with(name: &str, bytes: &[u8], text_column: &str, max_bad_rows: u64) -> Result<Read, String> {
    let head =
        Head { bytes: &bytes[..bytes.len().min(HEAD_BYTES as usize)], is_whole: bytes.len() as u64 <= HEAD_BYTES };
    let kind = tell(name, head, text_column)?;
    let tally = std::sync::Arc::<Tally>::default();
    let read_as = ReadAs { text_column: text_column.into(), max_bad_rows, tally: tally.clone() };
    let mut reader = Documents::open(Stored(bytes.to_vec()), kind, name, read_as).map_err(|e| e.to_string())?;
    let (mut documents, mut open) = (Vec::new(), String::new());
    while let Some(part) = reader.next_part().map_err(|e| e.to_string())? {
        open.push_str(&part.text);
        if part.ends_document {
            documents.push(std::mem::take(&mut open));
        }
    }
    assert!(open.is_empty(), "a document without an end");
    Ok(Read { documents, empty: tally.rows_without_text(), bad: tally.bad_rows() })
}

fn documents(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    read_with(name, bytes, "text", 0).map(|read| read.documents)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn d4_rows_as_the_world_writes_them() {
    for (bytes, expected) in [
        ("{\"text\": \"a\"}\n{\"text\": \"b\"}", vec!["a", "b"]),
        ("\u{feff}{\"text\": \"a\"}\n\u{feff}{\"text\": \"b\"}\n", vec!["a", "b"]),
        ("{\"text\": \"\u{feff}a\"}\n", vec!["a"]),
        ("{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n", vec!["a", "b"]),
        ("{\"text\": \"a\u{2028}b\u{85}c\"}\n", vec!["a\u{2028}b\u{85}c"]),
        ("{\"text\": \"a\"},\n{\"text\": \"b\",},\n", vec!["a", "b"]),
        (r#"{"x": NaN, "y": -Infinity, "z": [1e5, {"q": null}], "text": "a", "w": true}"#, vec!["a"]),
        (
            r#"{"text": "half \ud83d pair \ud83d\ude00 and \ude00 and \ud83d\u0041 \ud83d\n"}"#,
            vec!["half \u{fffd} pair 😀 and \u{fffd} and \u{fffd}A \u{fffd}\n"],
        ),
        (r#"{"other": "\udfff", "text": "tab\t\u0000 \/"}"#, vec!["tab\t\0 /"]),
        ("\"a string\"\n{\"text\": \"b\"}\n", vec!["a string", "b"]),
    ] {
        assert_eq!(documents("a.jsonl", bytes.as_bytes()).unwrap(), expected, "{bytes}");
        assert_eq!(documents("a.json.gz", &gzip(bytes.as_bytes())).unwrap(), expected, "{bytes}");
    }
    let read = read_with("a.jsonl", b"{\"text\": null}\n{\"text\": \"\"}\n{\"text\": \"a\"}\n", "text", 0).unwrap();
    assert_eq!((read.documents, read.empty, read.bad), (vec!["a".to_owned()], 2, 0));
    let array = "[\n{\"text\": \"a\"},\n\"b\", {\"text\": null},\n {\"id\": 1, \"text\": \"c\"},\n]\n";
    assert_eq!(documents("a.json", array.as_bytes()).unwrap(), ["a", "b", "c"]);
    assert_eq!(documents("a.txt", "\u{feff}one\r\ntwo".as_bytes()).unwrap(), ["one\r\ntwo"]);
    assert!(documents("a.txt", b"").unwrap().is_empty());
    assert!(documents("a.jsonl.gz", &gzip(b"")).unwrap().is_empty());
    let members = [gzip(b"{\"text\": \"a\"}\n"), gzip(b""), gzip(b"{\"text\": \"b\"}\n"), vec![0; 512]].concat();
    assert_eq!(documents("a.jsonl.gz", &members).unwrap(), ["a", "b"]);
}

#[test]
fn d4_bad_rows_are_named_and_left_out_up_to_a_number() {
    let bad = [
        ("{\"txt\": \"bad\", \"id\": 2}", "has no column `text` (found: txt, id); set text_column"),
        (
            "{\"messages\": [{\"role\": \"user\"}]}",
            "has no column `text` (found: messages); turn each chat into one text",
        ),
        ("{\"text\": 5}", "column `text` is a number, not a string"),
        ("{\"text\": [\"a\"]}", "column `text` is a list, not a string"),
        ("{\"text\": \"a\", \"text\": \"b\"}", "has the column `text` twice"),
        ("{\"text\": \"a\" \"b\"}", "expected `,` or `}`, found `\"` at column 14"),
        ("{\"text\": \"a", "is not closed on its line"),
        ("{\"text\": \"a\"", "ends in the middle of a row, at column"),
        ("{\"text\": \"a\", \"n\": 1x}", "`1x` is not a JSON value"),
        ("no json", "`no` is not a JSON value"),
        ("[1]", "is not an object"),
        ("{\"text\": \"a\"} {\"text\": \"b\"}", "unexpected data after the object"),
        ("{\"text\": \"a\tb\"}", "control character 0x09"),
        ("{}", "has no column `text` (found: none)"),
    ];
    for (line, words) in bad {
        let file = format!("{{\"text\": \"one\"}}\n{line}\n{{\"text\": \"two\"}}\n");
        let error = documents("a.jsonl", file.as_bytes()).unwrap_err();
        assert!(error.contains("a.jsonl: line 2: ") && error.contains(words), "{error}");
        assert!(error.contains("max_bad_rows"), "{error}");
        let read = read_with("a.jsonl", file.as_bytes(), "text", 1).unwrap();
        assert_eq!((read.documents, read.bad), (vec!["one".to_owned(), "two".to_owned()], 1), "{line}");
    }
    let mut file = b"{\"text\": \"one\"}\n{\"text\": \"caf\xe9\"}\n{\"text\": \"two\"}\n".to_vec();
    assert_eq!(read_with("a.jsonl", &file, "text", 1).unwrap().documents, ["one", "two"]);
    file.extend_from_slice(b"{\"text\": 1}\n");
    let error = read_with("a.jsonl", &file, "text", 1).err().unwrap();
    assert!(error.contains("line 4") && error.contains("the first was a.jsonl: line 2"), "{error}");
    // In an array, a syntax error is the end. A row that can be read but not used is skipped.
    let read = read_with("a.json", b"[{\"text\": 1}, {\"text\": \"a\"}, 5]", "text", 2).unwrap();
    assert_eq!((read.documents, read.bad), (vec!["a".to_owned()], 2));
    for cut in [
        "[{\"text\": \"a\"}",
        "[{\"text\": \"a\"},",
        "[{\"text\": \"a",
        "[{\"text\": \"a\"} {\"text\": \"b\"}]",
        "[{\"text\": \"a\"}] x",
    ] {
        assert!(read_with("a.json", cut.as_bytes(), "text", 9).is_err(), "{cut}");
    }
}

#[test]
fn d4_a_file_that_is_cut_off_is_an_error() {
    let mut numbers = 1_u64;
    let rows: String = (0..40_000)
        .map(|i| {
            numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format!("{{\"text\": \"row {i} {numbers}\"}}\n")
        })
        .collect();
    for (name, packed) in
        [("a.jsonl.gz", gzip(rows.as_bytes())), ("a.jsonl.zst", zstd::encode_all(rows.as_bytes(), 3).unwrap())]
    {
        assert_eq!(documents(name, &packed).unwrap().len(), 40_000);
        for end in [packed.len() - 1, packed.len() - 9, packed.len() / 2, 40] {
            assert!(documents(name, &packed[..end]).is_err(), "{name} of {} bytes, cut at {end}", packed.len());
        }
    }
    let error = documents("a.jsonl", &rows.as_bytes()[..rows.len() - 5]).unwrap_err();
    assert!(error.contains("line 40000") && error.contains("truncated"), "{error}");
}

#[test]
fn d6_a_row_longer_than_a_part_keeps_its_text() {
    // Longer than the buffer, with escapes and characters of every length at all positions.
    let text: String = (0..600_000).map(|i| ["a\n", "\u{e9}", "漢", "😀 ", "\\ \""][i % 5]).collect();
    let row = serde_json::json!({"id": 1, "meta": {"text": "no"}, "text": text, "tail": [1, {"a": "b"}]}).to_string();
    let file = format!("{{\"text\": \"before\"}}\n{row}\n{{\"text\": \"after\"}}\n");
    assert_eq!(documents("a.jsonl", file.as_bytes()).unwrap(), ["before", &text, "after"]);
    let file = format!("[{row}, {row}]");
    assert_eq!(documents("a.json", file.as_bytes()).unwrap(), [&*text, &*text]);
    assert_eq!(documents("a.txt", text.as_bytes()).unwrap(), [&*text]);
    let cut = &row[..row.len() - 3];
    let error = read_with("a.jsonl", cut.as_bytes(), "text", 9).err().unwrap();
    assert!(error.contains("ends in the middle of a row"), "{error}");
}

#[test]
fn d7_a_column_is_found_by_its_path() {
    let row = r#"{"a": {"text": "inner", "b": {"c": "deep"}}, "content": "outer", "x.y": "dotted"}"#;
    for (column, expected) in [("content", "outer"), ("a.text", "inner"), ("a.b.c", "deep"), ("x.y", "dotted")] {
        assert_eq!(read_with("a.jsonl", row.as_bytes(), column, 0).unwrap().documents, [expected], "{column}");
    }
    for column in ["text", "a.b", "a.c", "content.text"] {
        let error = read_with("a.jsonl", row.as_bytes(), column, 0).err().unwrap();
        assert!(error.contains(&format!("column `{column}`")), "{error}");
    }
}
