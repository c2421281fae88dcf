#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use super::*;

fn told(name: &str, bytes: &[u8]) -> String {
    let head =
        Head { bytes: &bytes[..bytes.len().min(HEAD_BYTES as usize)], is_whole: bytes.len() as u64 <= HEAD_BYTES };
    match tell(name, head, "text") {
        Ok(kind) => kind.to_string(),
        Err(problem) => format!("refused: {problem}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

const ROWS: &str = "{\"text\": \"one\"}\n{\"text\": \"two\", \"n\": NaN}\n";

#[test]
fn d1_content_is_believed_before_the_name() {
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let long = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(100_000));
    for (name, bytes, kind) in [
        ("a.json", ROWS.as_bytes(), "JSON lines"),
        ("a.jsonl", ROWS.as_bytes(), "JSON lines"),
        ("a.txt", ROWS.as_bytes(), "JSON lines"),
        ("part-0", ROWS.as_bytes(), "JSON lines"),
        ("a.csv", ROWS.as_bytes(), "JSON lines"),
        ("a.jsonl.gz", ROWS.as_bytes(), "JSON lines"),
        ("c4.json.gz", &gzip(ROWS.as_bytes()), "JSON lines in gzip"),
        ("a.jsonl", &gzip(ROWS.as_bytes()), "JSON lines in gzip"),
        ("a.json.zst", &zstd(ROWS.as_bytes()), "JSON lines in zstd"),
        ("a.txt", &gzip(b"some words"), "text in gzip"),
        ("a.json", format!("\u{feff}{ROWS}").as_bytes(), "JSON lines"),
        ("a.json", b"[{\"text\": \"one\"},\n {\"text\": \"two\"}]", "JSON array"),
        ("a.txt", b"[\n  {\"text\": \"one\"},\n {\"text\": \"two\"}]", "JSON array"),
        ("a.json", b"[\"one\", \"two\"]", "JSON array"),
        ("a.json", b"[]", "JSON array"),
        ("a.jsonl", long.as_bytes(), "JSON lines"),
        ("book.txt", long.as_bytes(), "JSON lines"),
        ("a.json.gz", &gzip(long.as_bytes()), "JSON lines in gzip"),
        ("a.txt", b"PAR1\x15\x04\x15", "Parquet"),
        ("a.txt", b"[Illustration: a house]\n\nChapter", "text"),
        ("a.txt", b"[\"Hello,\" she said] and left", "text"),
        ("a.txt", b"{ curly } braces", "text"),
        ("a.md", b"# Title\n", "text"),
        ("a.txt", b"BZh is how bzip2 begins\n", "text"),
        ("a.txt", b"", "empty"),
        ("a.bin", &[1, 2, 3, 4], "tokens"),
        ("a.jsonl", b"plain words", "JSON lines"),
    ] {
        assert_eq!(told(name, bytes), kind, "{name}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
    }
}

#[test]
fn d1_what_is_not_read_is_called_by_its_name() {
    let utf16: Vec<u8> = "\u{feff}text".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (name, bytes, words) in [
        ("a.json", b"{\n  \"text\": \"one\"\n}\n" as &[u8], "one JSON object over several lines"),
        ("a.txt", b"{\n  \"text\": \"one\"\n}\n", "one JSON object over several lines"),
        ("a.jsonl", b"{\n  \"text\": \"one\"\n}\n{\n  \"text\": \"two\"\n}\n", "objects over several lines"),
        ("a.json", b"[\"a\", \"b\"]\n[\"c\"]\n", "one list per line"),
        ("a.json", b"[1, 2, 3]", "values other than objects or strings"),
        ("a.json", b"<!DOCTYPE html><html>", "HTML"),
        ("a.csv", b"text\n\"one\"\n", "CSV"),
        ("a.tsv", b"id\tbody\n1\tx\n", "CSV or TSV"),
        ("a.txt", b"id,text\n1,hello\n", "CSV"),
        ("a.txt", b"text\n\"Note 0: copper\"\n", "CSV"),
        ("a.csv.gz", &gzip(b"text\n\"one\"\n"), "CSV or TSV table, which is not supported"),
        ("a.txt", &utf16, "UTF-16"),
        ("a.jsonl", b"\0\0\xfe\xff\0\0\0{", "UTF-32"),
        ("a.jsonl.gz", &gzip(&gzip(ROWS.as_bytes())), "compressed twice"),
        ("a.parquet", ROWS.as_bytes(), "named .parquet but seems to be JSON"),
        ("a.parquet.gz", &gzip(b"PAR1\x15\x04\x15"), "compressed Parquet file"),
        ("a.jsonl", b"PK\x03\x04\x14\0\0\0", "zip archive"),
        ("a.jsonl.bz2", b"BZh91AY&SY\x01\xff\0", "bzip2"),
        ("a.jsonl.xz", b"\xfd7zXZ\0\0\x04", "xz"),
        ("data.arrow", b"ARROW1\0\0\xff\xff", "Arrow IPC"),
        ("a.bin", b"\x93NUMPY\x01\0v\0{'descr'", "NumPy"),
        ("a.npy", b"\x93NUMPY\x01\0v\0{'descr'", "NumPy"),
        ("a.idx", b"MMIDIDX\0\0\x01\0", "Megatron"),
        ("a.pkl", b"\x80\x04\x95\x10\0\0\0\0\0\0\0", "pickle"),
        ("train.bin", b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0", "zip archive"),
        ("train.bin", b"a text of many words that is no file of tokens at all", "contains text"),
        ("a.txt", b"\x7fELF\x02\x01\x01\0", "program"),
        ("a.txt", b"%PDF-1.7\n", "PDF"),
        ("a.txt", b"ab\0cd", "zero bytes"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.tar.gz", &gzip(&tar), "tar archive"),
    ] {
        let found = told(name, bytes);
        assert!(found.starts_with("refused: ") && found.contains(words), "{name}: {found}");
    }
}

#[test]
fn d1_more_lines_than_the_first_tell_a_table_or_rows() {
    let rows = "{\"text\": broken\n".to_owned() + &"{\"text\": \"a row\"}\n".repeat(5);
    assert_eq!(told("a.txt", rows.as_bytes()), "JSON lines");
    assert_eq!(told("a.txt", format!("# rows\n{rows}").as_bytes()), "JSON lines");
    let table = "id,content,year\n".to_owned() + &"1,\"some, quoted\",1999\n".repeat(6);
    assert!(told("a.txt", table.as_bytes()).contains("CSV or TSV table"));
    assert!(
        told("a.txt", b"id;Text\n1;words\n2;more\n").contains("CSV or TSV table"),
        "a column name in a different case"
    );
    assert!(told("a.wet", b"WARC/1.0\r\nWARC-Type: warcinfo\r\n").contains("web archive"));
    let prose = ["text, and other stories\n\nOnce, long ago.\n", "Introduction, text\nOnce upon, a time\n"];
    let verses = "Roses, red,\nviolets blue,\nsugar, sweet,\nand so, are you.\n";
    for text in prose.into_iter().chain([verses]) {
        assert_eq!(told("a.txt", text.as_bytes()), "text", "{text}");
    }
}

#[test]
fn d5_a_block_of_zstd_that_is_longer_than_what_is_looked_at_is_read() {
    // Hardly compressible, so a block of 128 KiB keeps its length.
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + (state >> 58) as u8)
    };
    let text: String = (0..600_000).map(|_| letter()).collect();
    let packed =
        zstd::encode_all(format!("{{\"text\": \"{}\"}}\n", text.replace(['\\', '\"'], "x")).as_bytes(), 3).unwrap();
    assert!(packed.len() as u64 > HEAD_BYTES);
    assert_eq!(told("a.jsonl.zst", &packed), "JSON lines in zstd");
}
