//! Detects the kind of a file from its first bytes. The name is a hint where the bytes are
//! ambiguous: whether `{` starts a row or a text, and whether bytes without a signature are tokens.
//! If name and content contradict each other, the file is read as its content says, or rejected
//! with a message that says what it seems to be.

use std::fmt;

use crate::json::{Fault, Scanner, Within};
use crate::unpack::{self, Packing};

/// Number of bytes from the start of a file that are enough to detect its kind. A zstd block, which
/// cannot be decompressed before its end, has up to 128 KiB.
pub const HEAD_BYTES: u64 = 192 * 1024;
/// Maximum number of decompressed bytes to inspect.
const UNPACKED_HEAD_BYTES: usize = 64 * 1024;
/// Minimum length at which a token file that reads as text is rejected.
const FEWEST_TEXT_BYTES: usize = 32;

/// The content of a file, and its compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// The compression.
    pub packing: Packing,
    /// The content.
    pub content: Content,
}

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Plain text: one document.
    Text,
    /// One JSON object per line.
    JsonLines,
    /// One JSON array of objects or strings.
    JsonArray,
    /// A Parquet file.
    Parquet,
    /// Token ids.
    Tokens,
    /// Nothing.
    Empty,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = match self.content {
            Content::Text => "text",
            Content::JsonLines => "JSON lines",
            Content::JsonArray => "JSON array",
            Content::Parquet => "Parquet",
            Content::Tokens => "tokens",
            Content::Empty => "empty",
        };
        let packing = match self.packing {
            Packing::Plain => "",
            Packing::Gzip => " in gzip",
            Packing::Zstd => " in zstd",
        };
        write!(f, "{content}{packing}")
    }
}

/// The first bytes of a file, as stored.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// At most [`HEAD_BYTES`] of them.
    pub bytes: &'a [u8],
    /// Whether they are the whole file.
    pub is_whole: bool,
}

/// Returns the kind of the file `name`. `text_column` is the column that contains the text of its
/// rows.
///
/// # Errors
/// The kind is not supported. The message says what the file seems to be, and what to do.
pub fn tell(name: &str, head: Head<'_>, text_column: &str) -> Result<Kind, String> {
    let hint = Hint::of(name);
    let packing = packing_of(head.bytes);
    if let Some(problem) = unpack::too_long_a_window(head.bytes) {
        return Err(problem);
    }
    let unpacked = unpack::head(head.bytes, packing, UNPACKED_HEAD_BYTES);
    // Decompressed content that does not reach its end may be truncated, or there may be more of
    // it.
    let is_whole = head.is_whole && packing == Packing::Plain && unpacked.len() == head.bytes.len();
    let content = content_of(&unpacked, is_whole, hint, text_column);
    match (packing, content) {
        (Packing::Plain, content) => content.map(|content| Kind { packing, content }),
        (_, Ok(Content::Parquet)) => Err("is a compressed Parquet file; decompress it".to_owned()),
        (_, Ok(Content::Empty)) if !head.is_whole || !unpack::is_empty(head.bytes, packing) => {
            Err(format!("cannot be decompressed, although it starts like {}", of_packing(packing)))
        }
        (_, Err(_)) if packing_of(&unpacked) != Packing::Plain => {
            Err("is compressed twice; decompress it once".to_owned())
        }
        (_, Ok(content)) => Ok(Kind { packing, content }),
        (_, Err(problem)) => Err(format!("{problem} (decompressed from {})", of_packing(packing))),
    }
}

/// Returns what a file seems to be, for messages.
pub fn describe(head: &[u8]) -> &'static str {
    match packing_of(head) {
        Packing::Gzip => return "gzip",
        Packing::Zstd => return "zstd",
        Packing::Plain => {}
    }
    if let Some((_, what, _)) = known(head) {
        return what;
    }
    let dense = dense(head);
    match dense.first() {
        _ if head.starts_with(b"PAR1") => "Parquet",
        _ if !is_text(head) => "a binary file of unknown kind",
        Some(b'{' | b'[') => "JSON",
        Some(b'<') => "HTML or XML",
        Some(_) => "plain text",
        None => "an empty file",
    }
}

fn of_packing(packing: Packing) -> &'static str {
    match packing {
        Packing::Plain => "a plain file",
        Packing::Gzip => "gzip",
        Packing::Zstd => "zstd",
    }
}

fn packing_of(head: &[u8]) -> Packing {
    match head {
        [0x1f, 0x8b, 8, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// What the name of a file suggests about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Text,
    Json,
    Table,
    Parquet,
    Tokens,
    Nothing,
}

impl Hint {
    fn of(name: &str) -> Self {
        match crate::names::ending(name) {
            "txt" | "text" | "md" => Self::Text,
            "json" | "jsonl" | "ndjson" | "jsonlines" | "jl" => Self::Json,
            "csv" | "tsv" => Self::Table,
            "parquet" => Self::Parquet,
            "bin" => Self::Tokens,
            _ => Self::Nothing,
        }
    }
}

const JQ: &str = "write one object per line, for example with `jq -c .` (`jq -c '.[]'` for an array, `jq -c \
                  '.data[]'` for an array under the key `data`), or use Parquet";

/// Magic bytes of kinds that are not supported, what they are, and what to do.
const KNOWN: [(&[u8], &str, &str); 37] = [
    (b"WARC/1.", "a web archive (WARC, WET)", "extract the texts first, one per row"),
    (b"<mediawiki", "a wiki dump", "extract the texts first, one per row"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "write its ids with `.tofile(\"train.bin\")`"),
    (b"MMIDIDX\0\0", "the index (.idx) of a Megatron dataset", "convert its tokens to nanoGPT's train.bin"),
    (b"TNTIDX\0\0", "the index of a fairseq dataset", "convert its tokens to nanoGPT's train.bin"),
    (b"LITPKDS", "a packed lit-gpt dataset", "convert its tokens to nanoGPT's train.bin"),
    (b"PARE", "an encrypted Parquet file", "decrypt it"),
    (b"ARROW1\0\0", "an Arrow IPC (Feather) file", "write it as Parquet: `Dataset.to_parquet`"),
    (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow IPC stream", "write it as Parquet: `Dataset.to_parquet`"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream", "write it as Parquet: `Dataset.to_parquet`"),
    (b"FEA1", "a Feather file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"\x89HDF\r\n", "an HDF5 file", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "write it as Parquet"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"PK\x05\x06", "an empty zip archive", "specify a data file"),
    (b"BZh", "bzip2", "decompress it, or recompress it with gzip or zstd"),
    (b"\xfd7zXZ\0", "xz", "decompress it, or recompress it with gzip or zstd"),
    (b"\x04\x22\x4d\x18", "lz4", "decompress it, or recompress it with gzip or zstd"),
    (b"\xff\x06\0\0sNaPpY", "snappy", "decompress it, or recompress it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (b"%PDF-", "a PDF file", "extract its text first"),
    (b"{\\rtf", "an RTF file", "extract its text first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "extract its text first"),
    (b"\x7fELF", "a program (ELF)", "specify a data file"),
    (b"\x89PNG\r\n", "an image (PNG)", "specify a data file"),
    (b"\xff\xd8\xff", "an image (JPEG)", "specify a data file"),
    (b"GIF8", "an image (GIF)", "specify a data file"),
    (b"RIFF", "a RIFF file (image, sound or video)", "specify a data file"),
    (b"GGUF", "a GGUF model", "specify a data file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: `git lfs pull`"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it: `iconv -f UTF-32 -t UTF-8`"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: `iconv -f UTF-32 -t UTF-8`"),
    (b"\xff\xfe", "UTF-16 text", "convert it: `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16 text", "convert it: `iconv -f UTF-16 -t UTF-8`"),
];

fn known(head: &[u8]) -> Option<(&'static [u8], &'static str, &'static str)> {
    let found = KNOWN.iter().copied().find(|(magic, ..)| head.starts_with(magic));
    let weak = |magic: &[u8]| magic.iter().all(u8::is_ascii_alphanumeric) && magic.len() <= 4;
    // A text may also start with these letters.
    let found = found.filter(|(magic, ..)| !weak(magic) || !is_text(head));
    let tar = || head.get(257..262).filter(|at| *at == b"ustar").map(|_| (&b"ustar"[..], "a tar archive", "unpack it"));
    let pickle = || match head {
        [0x80, 2..=5, ..] if !is_text(head) => {
            Some((&b"\x80"[..], "a Python pickle", "write it as JSON lines or Parquet"))
        }
        _ => None,
    };
    let safetensors = || {
        let length = u64::from_le_bytes(*head.first_chunk()?);
        (head.get(8) == Some(&b'{') && (2..1 << 32).contains(&length) && !is_text(head)).then_some((
            &b""[..],
            "a safetensors file",
            "specify a data file",
        ))
    };
    found.or_else(tar).or_else(pickle).or_else(safetensors)
}

/// Returns whether `head` is valid UTF-8 without NUL bytes. The last character may be truncated.
fn is_text(head: &[u8]) -> bool {
    !head.contains(&0) && std::str::from_utf8(head).err().is_none_or(|error| error.error_len().is_none())
}

fn dense(head: &[u8]) -> &[u8] {
    head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(head).trim_ascii_start()
}

fn content_of(head: &[u8], is_whole: bool, hint: Hint, text_column: &str) -> Result<Content, String> {
    if head.is_empty() {
        return Ok(Content::Empty);
    }
    if head.starts_with(b"PAR1") {
        return Ok(Content::Parquet);
    }
    if let Some((magic, what, advice)) = known(head) {
        // A short signature proves nothing about a token file, which may start with any number.
        if hint != Hint::Tokens || magic.len() > 3 {
            return Err(format!("seems to be {what}; {advice}"));
        }
    }
    if hint == Hint::Tokens {
        return if head.len() >= FEWEST_TEXT_BYTES && is_text(head) && mostly_printable(head) {
            Err("is named .bin like a token file but contains text; rename it to .txt or .jsonl".to_owned())
        } else {
            Ok(Content::Tokens)
        };
    }
    if hint == Hint::Parquet {
        return Err(format!("is named .parquet but seems to be {}", describe(head)));
    }
    if head.contains(&0) {
        return Err(
            "contains zero bytes: it is a binary file of unknown kind, or UTF-16 text; text must be UTF-8, and \
                    token files must be named .bin"
                .to_owned(),
        );
    }
    let text = dense(head);
    match text.first() {
        Some(b'{') => object(text, is_whole, hint),
        Some(b'[') => array(text, hint),
        Some(b'<') if hint == Hint::Json => {
            Err("is named as JSON but seems to be HTML or XML: was a web page saved instead of the file?".to_owned())
        }
        _ if hint == Hint::Json || is_rows(text) => Ok(Content::JsonLines),
        Some(_) | None if hint == Hint::Table || is_table(text, text_column) => {
            Err("seems to be a CSV or TSV table, which is not supported; convert it to JSON lines or Parquet, for \
                 example with `pandas.read_csv(f).to_json(out, orient=\"records\", lines=True)`"
                .to_owned())
        }
        Some(_) | None => Ok(Content::Text),
    }
}

/// Returns whether nearly all bytes are printable. Token ids rarely look like pairs of letters.
fn mostly_printable(head: &[u8]) -> bool {
    let printable = head.iter().filter(|byte| **byte >= b' ' || matches!(byte, b'\n' | b'\r' | b'\t')).count();
    printable * 100 >= head.len() * 99
}

/// Number of lines inspected to detect rows or a table.
const LINES_LOOKED_AT: usize = 20;
/// Minimum number of lines for a decision.
const FEWEST_LINES: usize = 4;

/// Returns whether most lines look like JSON objects. The first one may be damaged.
fn is_rows(text: &[u8]) -> bool {
    let lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii()).filter(|line| !line.is_empty());
    let lines: Vec<&[u8]> = lines.take(LINES_LOOKED_AT).collect();
    let objects = lines.iter().filter(|line| line.starts_with(b"{\"") && line.ends_with(b"}")).count();
    lines.len() >= FEWEST_LINES && objects * 3 >= lines.len() * 2
}

/// Returns whether the text has a heading of short names, and either one of them is the text column
/// or the lines below have the same number of cells.
fn is_table(text: &[u8], text_column: &str) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let heading = lines.next().unwrap_or_default();
    let below: Vec<&str> = lines.take(LINES_LOOKED_AT).collect();
    let unquoted = |cell: &str| cell.trim_matches('"').to_lowercase();
    // In prose, a space follows a comma.
    let is_name =
        |cell: &str| cell == cell.trim() && !cell.is_empty() && cell.len() <= 40 && cell.split(' ').count() <= 2;
    [',', '\t', ';', '|'].iter().any(|separator| {
        let cells: Vec<String> = heading.split(*separator).map(unquoted).collect();
        let has_text = cells.iter().any(|cell| *cell == text_column.to_lowercase());
        if cells.len() == 1 {
            return has_text && below.first().is_some_and(|line| line.starts_with('"'));
        }
        let separators = |line: &str| {
            let outside = line.split('"').step_by(2);
            outside.map(|part| part.matches(*separator).count()).sum::<usize>()
        };
        // The last line may be truncated.
        let whole = below.split_last().map_or(below.as_slice(), |(_, whole)| whole);
        let is_even = whole.len() >= FEWEST_LINES && whole.iter().all(|line| separators(line) == cells.len() - 1);
        let begins = below.first().is_some_and(|line| line.contains(*separator) || line.starts_with('"'));
        cells.iter().all(|cell| is_name(cell)) && ((has_text && begins) || is_even)
    })
}

fn object(text: &[u8], is_whole: bool, hint: Hint) -> Result<Content, String> {
    let rows_by_name = hint == Hint::Json;
    match first_value(text) {
        First::Whole { end } => {
            let (value, after) = text.split_at(end);
            let line = after.iter().position(|byte| *byte == b'\n').map_or(after, |at| &after[..at]);
            let alone_on_line = line.iter().all(|byte| byte.is_ascii_whitespace() || *byte == b',');
            if !value.contains(&b'\n') {
                return match (alone_on_line, rows_by_name) {
                    (true, _) => Ok(Content::JsonLines),
                    // Reading the row reports the position of the error.
                    (false, true) => Ok(Content::JsonLines),
                    (false, false) => Ok(Content::Text),
                };
            }
            let rest = after.trim_ascii();
            if is_whole && rest.is_empty() {
                return Err(format!("is one JSON object over several lines, not rows; {JQ}"));
            }
            Err(format!("contains JSON objects over several lines; {JQ}"))
        }
        First::CutOff if !text.contains(&b'\n') => {
            if is_whole && !rows_by_name {
                Ok(Content::Text)
            } else {
                Ok(Content::JsonLines)
            }
        }
        First::CutOff if is_whole && !rows_by_name => Ok(Content::Text),
        First::CutOff => Err(format!("starts with a JSON object over several lines; {JQ}")),
        First::Wrong if rows_by_name || is_rows(text) => Ok(Content::JsonLines),
        First::Wrong => Ok(Content::Text),
    }
}

fn array(text: &[u8], hint: Hint) -> Result<Content, String> {
    let rows_by_name = hint == Hint::Json;
    let inside = text[1..].trim_ascii_start();
    let is_line = |end: usize| !text[..end].contains(&b'\n') && !text[end..].trim_ascii().is_empty();
    if let First::Whole { end } = first_value(text)
        && is_line(end)
    {
        return match rows_by_name {
            true => Err(format!("contains one list per line, not an object; {JQ}")),
            false => Ok(Content::Text),
        };
    }
    let first = first_value(inside);
    let is_followed = |end: usize| matches!(inside[end..].trim_ascii_start().first(), Some(b',' | b']') | None);
    match (inside.first(), first) {
        (Some(b'{' | b'"'), First::Whole { end }) if is_followed(end) => Ok(Content::JsonArray),
        (Some(b'{'), First::CutOff) if rows_by_name || inside[1..].trim_ascii_start().starts_with(b"\"") => {
            Ok(Content::JsonArray)
        }
        (Some(b'"'), First::CutOff) if rows_by_name => Ok(Content::JsonArray),
        (Some(b']') | None, _) if rows_by_name => Ok(Content::JsonArray),
        (Some(b'{' | b'"'), _) if rows_by_name => Ok(Content::JsonArray),
        _ if rows_by_name => Err(format!("is a JSON array of values other than objects or strings; {JQ}")),
        _ => Ok(Content::Text),
    }
}

enum First {
    Whole { end: usize },
    CutOff,
    Wrong,
}

fn first_value(text: &[u8]) -> First {
    let mut scanner = Scanner::new(text, Within::File);
    match scanner.skip_value(0) {
        Ok(()) => First::Whole { end: scanner.offset as usize },
        Err(Fault::Ended) => First::CutOff,
        Err(Fault::Io(_) | Fault::Syntax(_)) => First::Wrong,
    }
}

#[cfg(test)]
mod tests;
