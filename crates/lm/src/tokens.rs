//! Token sets: a corpus as token ids, split into a training and a validation part.
//!
//! A folder of `tokens.json` (what is in it), `train.bin` and `validation.bin` (ids, little-endian, two
//! bytes each while the vocabulary allows it, else four), and the tokenizer's own files beside them.
//! Documents follow each other, each ended by the end-of-text token where the tokenizer has one.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use inheritune_domain::id::Sha256Digest;
use serde::{Deserialize, Serialize};

use crate::error::LmError;
use crate::files::{self, Mapped};

/// The file that says what is in a token set; written last.
pub const TOKENS_FILE: &str = "tokens.json";
/// The training part.
pub const TRAIN_FILE: &str = "train.bin";
/// The validation part.
pub const VALIDATION_FILE: &str = "validation.bin";

const VERSION: u32 = 1;
/// Bytes that move at a time when the validation part is cut off.
const COPY_BYTES: usize = 1 << 20;

/// How a token id is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes, little-endian.
    U16,
    /// Four bytes, little-endian.
    U32,
}

impl TokenType {
    /// The smaller type that holds every id below `vocab_size`.
    pub fn of_vocabulary(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of one id.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// `tokens.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSetMeta {
    /// Version of this file; 1.
    pub version: u32,
    /// The tokenizer's vocabulary; every id is below it.
    pub vocab_size: u32,
    /// The token that ends every document.
    pub end_of_text_id: Option<u32>,
    /// Tokens in `train.bin`.
    pub train_tokens: u64,
    /// Tokens in `validation.bin`.
    pub validation_tokens: u64,
    /// Documents in both.
    pub documents: u64,
    /// Bytes of UTF-8 text in both.
    pub text_bytes: u64,
    /// How an id is written.
    pub dtype: TokenType,
    /// Digest of the tokenizer's vocabulary ([`crate::tokenizer::vocabulary_sha256`]).
    pub tokenizer_sha256: Option<Sha256Digest>,
    /// Tokens in `train.bin` of each source, which follow each other; empty where the corpus is one source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_train_tokens: Vec<u64>,
}

impl TokenSetMeta {
    /// Where in the training part each source's tokens are.
    pub fn train_sources(&self) -> Vec<Range<u64>> {
        if self.source_train_tokens.is_empty() {
            return std::iter::once(0..self.train_tokens).collect();
        }
        let mut start = 0;
        let ranges = self.source_train_tokens.iter().map(|tokens| {
            start += tokens;
            start - tokens..start
        });
        ranges.collect()
    }
}

/// A token set that is read through memory maps; shared by threads.
#[derive(Debug)]
pub struct TokenSet {
    meta: TokenSetMeta,
    train: Part,
    validation: Part,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: Mapped,
}

impl TokenSet {
    /// Opens the token set in `dir`.
    ///
    /// # Errors
    /// A missing or malformed file; files whose sizes differ from what `tokens.json` says;
    /// [`LmError::EmptyCorpus`] for a training part without a token.
    pub fn open(dir: &Path) -> Result<Self, LmError> {
        let path = dir.join(TOKENS_FILE);
        let meta: TokenSetMeta = files::read_json(&path)?;
        if meta.version != VERSION {
            return Err(LmError::file(&path, format!("is of version {}; {VERSION} is read", meta.version)));
        }
        if meta.end_of_text_id.is_some_and(|id| id >= meta.vocab_size) {
            return Err(LmError::file(&path, format!("end_of_text_id is not below vocab_size ({})", meta.vocab_size)));
        }
        let by_source = meta.source_train_tokens.iter().try_fold(0_u64, |sum, tokens| sum.checked_add(*tokens));
        if !meta.source_train_tokens.is_empty() && by_source != Some(meta.train_tokens) {
            let problem = format!("source_train_tokens do not add up to train_tokens ({})", meta.train_tokens);
            return Err(LmError::file(&path, problem));
        }
        if meta.train_tokens == 0 {
            return Err(LmError::EmptyCorpus { problem: format!("{} says 0 train_tokens", path.display()) });
        }
        let train = Part::open(dir.join(TRAIN_FILE), (meta.train_tokens, meta.dtype))?;
        let validation = Part::open(dir.join(VALIDATION_FILE), (meta.validation_tokens, meta.dtype))?;
        Ok(Self { meta, train, validation })
    }

    /// What is in it.
    pub fn meta(&self) -> &TokenSetMeta {
        &self.meta
    }

    /// The training part; never empty.
    pub fn train(&self) -> TokenSlice<'_> {
        TokenSlice { part: &self.train, meta: &self.meta }
    }

    /// The validation part; empty where the set was made without one.
    pub fn validation(&self) -> TokenSlice<'_> {
        TokenSlice { part: &self.validation, meta: &self.meta }
    }
}

impl Part {
    fn open(path: PathBuf, (tokens, dtype): (u64, TokenType)) -> Result<Self, LmError> {
        let bytes = files::map(&path)?;
        let found = bytes.len() as u64;
        if tokens.checked_mul(dtype.size_bytes()) != Some(found) {
            let problem =
                format!("is {found} bytes; {TOKENS_FILE} says {tokens} tokens of {} bytes", dtype.size_bytes());
            return Err(LmError::file(&path, problem));
        }
        Ok(Self { path, bytes })
    }
}

/// One part of a token set.
#[derive(Debug, Clone, Copy)]
pub struct TokenSlice<'a> {
    part: &'a Part,
    meta: &'a TokenSetMeta,
}

impl TokenSlice<'_> {
    /// Tokens in it.
    pub fn len(&self) -> u64 {
        self.part.bytes.len() as u64 / self.meta.dtype.size_bytes()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids at the positions of `range`, as embeddings take them.
    ///
    /// # Errors
    /// [`LmError::TooFewTokens`] where the range ends behind the last token, [`LmError::BadFile`] for an id
    /// that is not below the vocabulary.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<i64>, LmError> {
        self.require(range.end)?;
        let size = self.meta.dtype.size_bytes();
        // The whole file is in the address space, so offsets fit into usize.
        let bytes = &self.part.bytes[(range.start.min(range.end) * size) as usize..(range.end * size) as usize];
        let ids: Vec<i64> = match self.meta.dtype {
            TokenType::U16 => bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))).collect(),
            TokenType::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
        };
        let vocab_size = i64::from(self.meta.vocab_size);
        match ids.iter().position(|id| *id >= vocab_size) {
            None => Ok(ids),
            Some(at) => {
                let problem = format!(
                    "token {} is {}, not below the vocabulary ({vocab_size})",
                    range.start + at as u64,
                    ids[at]
                );
                Err(LmError::file(&self.part.path, problem))
            }
        }
    }

    /// Sees to it that there are at least `needed` tokens.
    ///
    /// # Errors
    /// [`LmError::TooFewTokens`].
    pub fn require(&self, needed: u64) -> Result<(), LmError> {
        if needed <= self.len() {
            return Ok(());
        }
        Err(LmError::TooFewTokens { path: self.part.path.clone(), needed, found: self.len() })
    }
}

/// What a [`TokenSetWriter`] must know before the first document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTokenSet {
    /// The tokenizer's vocabulary.
    pub vocab_size: u32,
    /// Written after every document.
    pub end_of_text_id: Option<u32>,
    /// Digest of the tokenizer's vocabulary ([`crate::tokenizer::vocabulary_sha256`]).
    pub tokenizer_sha256: Option<Sha256Digest>,
}

/// Writes a token set document by document, without holding it in memory.
#[derive(Debug)]
pub struct TokenSetWriter {
    dir: PathBuf,
    meta: TokenSetMeta,
    /// Also holds the tokens of the open source that will be the validation part's.
    train: BufWriter<File>,
    validation: File,
    /// Where the open source starts in `train`.
    source_start: u64,
    /// Tokens of the document that is not ended yet.
    open_tokens: u64,
    /// Every id is below this; the vocabulary grows up to it with the ids that there are.
    ids: u32,
}

/// Which tokens at a source's end go into the validation part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldOut {
    /// A share of the source's tokens, at least 0 and below 1. The cut moves to the end of a document where there is one
    /// within half the share, so that long documents are split and short ones are not.
    Share(f64),
    /// So many tokens.
    Last(u64),
}

impl TokenSetWriter {
    /// Starts a token set in `dir`, which must exist. It becomes one with [`TokenSetWriter::finish`].
    ///
    /// # Errors
    /// [`LmError::Io`]; [`LmError::BadTokens`] for an end-of-text token outside the vocabulary.
    pub fn create(dir: &Path, new: NewTokenSet) -> Result<Self, LmError> {
        let NewTokenSet { vocab_size, end_of_text_id, tokenizer_sha256 } = new;
        if let Some(id) = end_of_text_id {
            check_ids(&[id], vocab_size)?;
        }
        let create = |name| {
            let path = dir.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
            file.map_err(|error| LmError::io(&path, error))
        };
        let meta = TokenSetMeta {
            version: VERSION,
            vocab_size,
            end_of_text_id,
            train_tokens: 0,
            validation_tokens: 0,
            documents: 0,
            text_bytes: 0,
            dtype: TokenType::of_vocabulary(vocab_size),
            tokenizer_sha256,
            source_train_tokens: Vec::new(),
        };
        let train = BufWriter::with_capacity(COPY_BYTES, create(TRAIN_FILE)?);
        let validation = create(VALIDATION_FILE)?;
        Ok(Self { dir: dir.to_owned(), meta, train, validation, source_start: 0, open_tokens: 0, ids: vocab_size })
    }

    /// Takes ids below `ids` as well: where one is beyond the vocabulary, the vocabulary becomes as large as it says.
    #[must_use]
    pub fn with_ids_below(mut self, ids: u32) -> Self {
        self.ids = self.ids.max(ids);
        self.meta.dtype = TokenType::of_vocabulary(self.ids);
        self
    }

    /// Appends a document of `text_bytes` bytes of text, and the end-of-text token after it. A document
    /// without a token is not counted.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for an id outside the vocabulary, [`LmError::Io`].
    pub fn push_document(&mut self, tokens: &[u32], text_bytes: u64) -> Result<(), LmError> {
        self.push_part(tokens)?;
        self.end_document(text_bytes)
    }

    /// Appends tokens of a document that [`TokenSetWriter::end_document`] ends.
    ///
    /// # Errors
    /// As [`TokenSetWriter::push_document`].
    pub fn push_part(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        self.write(tokens)?;
        self.open_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Ends the document whose parts were pushed; one without a token is not counted.
    ///
    /// # Errors
    /// As [`TokenSetWriter::push_document`].
    pub fn end_document(&mut self, text_bytes: u64) -> Result<(), LmError> {
        if std::mem::take(&mut self.open_tokens) == 0 {
            return Ok(());
        }
        let end = self.meta.end_of_text_id;
        self.write(end.as_slice())?;
        self.meta.documents += 1;
        self.meta.text_bytes += text_bytes;
        Ok(())
    }

    /// Appends tokens that have their end-of-text tokens among them, each of which is counted as a document.
    ///
    /// # Errors
    /// As [`TokenSetWriter::push_document`].
    pub fn push_tokens(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        self.write(tokens)?;
        self.meta.documents += tokens.iter().filter(|id| Some(**id) == self.meta.end_of_text_id).count() as u64;
        Ok(())
    }

    fn write(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        check_ids(tokens, self.ids)?;
        let highest = tokens.iter().max().copied().unwrap_or(0);
        self.meta.vocab_size = self.meta.vocab_size.max(highest.saturating_add(1));
        let bytes: Vec<u8> = match self.meta.dtype {
            // `check_ids` holds every id below the vocabulary, which two bytes hold.
            TokenType::U16 => tokens.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect(),
            TokenType::U32 => tokens.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        self.train.write_all(&bytes).map_err(|error| LmError::io(&self.dir.join(TRAIN_FILE), error))?;
        self.meta.train_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Tokens so far, in both parts.
    pub fn tokens(&self) -> u64 {
        self.meta.train_tokens + self.meta.validation_tokens
    }

    /// Ends a source: moves what is held out of it to the validation part. What comes next is another source's.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for a share outside 0 to 1 or more than the source has, [`LmError::Io`].
    pub fn end_source(&mut self, held_out: HeldOut) -> Result<(), LmError> {
        let (train, validation) = (self.dir.join(TRAIN_FILE), self.dir.join(VALIDATION_FILE));
        let on_train = |error| LmError::io(&train, error);
        self.train.flush().map_err(on_train)?;
        let end = self.meta.train_tokens;
        let total = end - self.source_start;
        let cut = match held_out {
            HeldOut::Share(share) if !(0.0..1.0).contains(&share) => {
                let problem = format!("validation_fraction is {share}; it must be at least 0 and below 1");
                return Err(LmError::BadTokens { problem });
            }
            HeldOut::Share(share) => match (total as f64 * share).round() as u64 {
                0 => end,
                wanted if wanted == total => end,
                wanted => self.cut_near(end - wanted, wanted / 2)?,
            },
            HeldOut::Last(tokens) => match end.checked_sub(tokens) {
                Some(cut) if cut >= self.source_start => cut,
                Some(_) | None => {
                    let problem = format!("{tokens} tokens cannot be held out of a source of {total}");
                    return Err(LmError::BadTokens { problem });
                }
            },
        };
        let size = self.meta.dtype.size_bytes();
        let mut file = self.train.get_ref();
        file.seek(SeekFrom::Start(cut * size)).map_err(on_train)?;
        std::io::copy(&mut file, &mut self.validation).map_err(|error| LmError::io(&validation, error))?;
        file.set_len(cut * size).map_err(on_train)?;
        file.seek(SeekFrom::Start(cut * size)).map_err(on_train)?;
        self.meta.source_train_tokens.push(cut - self.source_start);
        self.meta.validation_tokens += end - cut;
        self.meta.train_tokens = cut;
        self.source_start = cut;
        Ok(())
    }

    /// Ends the open source with the last `validation_fraction` of its tokens held out, and writes `tokens.json`.
    ///
    /// # Errors
    /// As [`TokenSetWriter::end_source`]; [`LmError::EmptyCorpus`] where either part would be without a token.
    pub fn finish(mut self, validation_fraction: f64) -> Result<TokenSetMeta, LmError> {
        if self.meta.train_tokens > self.source_start || self.meta.source_train_tokens.is_empty() {
            self.end_source(HeldOut::Share(validation_fraction))?;
        }
        let (train, validation) = (self.meta.train_tokens, self.meta.validation_tokens);
        if train + validation == 0 {
            return Err(LmError::EmptyCorpus { problem: "no document has a token".to_owned() });
        }
        if train == 0 || (validation == 0 && validation_fraction > 0.0) {
            let problem = format!(
                "{} tokens cannot be split into a training part and {validation_fraction} for validation",
                self.tokens()
            );
            return Err(LmError::EmptyCorpus { problem });
        }
        if let [_only] = self.meta.source_train_tokens.as_slice() {
            self.meta.source_train_tokens.clear();
        }
        files::write_json(&self.dir.join(TOKENS_FILE), &self.meta)?;
        Ok(self.meta)
    }

    /// The first position after the end of a document that is nearest to `wanted`, within `reach`
    /// tokens; `wanted` itself where there is none. Never the start of the open source and never its end.
    fn cut_near(&self, wanted: u64, reach: u64) -> Result<u64, LmError> {
        let Some(end_of_text_id) = self.meta.end_of_text_id else { return Ok(wanted) };
        let first = self.source_start + 1;
        let (low, high) = (wanted.saturating_sub(reach).max(first), (wanted + reach).min(self.meta.train_tokens - 1));
        // Position p is a document's first token when the one before it ends a document.
        let mut nearest: Option<u64> = None;
        for_each_id((self.train.get_ref(), self.meta.dtype), low - 1..high, |at, id| {
            let start = at + 1;
            if id == end_of_text_id && nearest.is_none_or(|best| start.abs_diff(wanted) < best.abs_diff(wanted)) {
                nearest = Some(start);
            }
        })
        .map_err(|error| LmError::io(&self.dir.join(TRAIN_FILE), error))?;
        Ok(nearest.unwrap_or(wanted))
    }
}

/// Removes what an earlier, unfinished attempt has left in `dir`.
///
/// # Errors
/// [`LmError::Io`] naming the file.
pub fn remove(dir: &Path) -> Result<(), LmError> {
    for name in [TOKENS_FILE, TRAIN_FILE, VALIDATION_FILE] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(LmError::io(&path, error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn check_ids(tokens: &[u32], vocab_size: u32) -> Result<(), LmError> {
    match tokens.iter().find(|id| **id >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(LmError::BadTokens { problem: format!("token {id} is not below the vocabulary ({vocab_size})") })
        }
    }
}

/// Calls `visit` with every position of `range` and its id.
fn for_each_id(
    (mut file, dtype): (&File, TokenType),
    range: Range<u64>,
    mut visit: impl FnMut(u64, u32),
) -> std::io::Result<()> {
    let size = dtype.size_bytes();
    file.seek(SeekFrom::Start(range.start * size))?;
    let mut left = (range.end - range.start) * size;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = range.start;
    while left > 0 {
        let chunk = &mut buffer[..left.min(COPY_BYTES as u64) as usize];
        file.read_exact(chunk)?;
        left -= chunk.len() as u64;
        for id in chunk.chunks_exact(size as usize) {
            visit(at, id.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)));
            at += 1;
        }
    }
    Ok(())
}
