//! Token sets: a corpus as token ids, split into a training and a validation part.
//!
//! A token set is a folder with `tokens.json` (a description), `train.bin` and `validation.bin`
//! (little-endian ids, two bytes each if the vocabulary allows it, else four), and the tokenizer's
//! own files. Documents are concatenated; each is ended by the end-of-text token if the tokenizer
//! has one.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use inheritune_domain::id::Sha256Digest;
use serde::{Deserialize, Serialize};

use crate::error::LmError;
use crate::files::{self, Mapped};

/// The file that describes a token set; written last.
pub const TOKENS_FILE: &str = "tokens.json";
/// The file of the training part.
pub const TRAIN_FILE: &str = "train.bin";
/// The file of the validation part.
pub const VALIDATION_FILE: &str = "validation.bin";

const VERSION: u32 = 1;
/// Bytes that are copied at a time when the validation part is split off.
const COPY_BYTES: usize = 1 << 20;

/// The encoding of a token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes, little-endian.
    U16,
    /// Four bytes, little-endian.
    U32,
}

impl TokenType {
    /// The smallest type that can represent every id below `vocab_size`.
    pub fn of_vocabulary(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Size of one id in bytes.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// The content of `tokens.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSetMeta {
    /// Version of the file format; 1.
    pub version: u32,
    /// Size of the tokenizer's vocabulary; every id is below it.
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
    /// The encoding of an id.
    pub dtype: TokenType,
    /// Digest of the tokenizer's vocabulary ([`crate::tokenizer::vocabulary_sha256`]).
    pub tokenizer_sha256: Option<Sha256Digest>,
    /// Tokens of each source in `train.bin`, where the sources are concatenated. Empty if the
    /// corpus has one source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_train_tokens: Vec<u64>,
}

impl TokenSetMeta {
    /// The token range of each source in the training part.
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

/// A token set that is read through memory maps; threads can share it.
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
    /// A file is missing or malformed, or its size does not match `tokens.json`;
    /// [`LmError::EmptyCorpus`] for a training part without tokens.
    pub fn open(dir: &Path) -> Result<Self, LmError> {
        let path = dir.join(TOKENS_FILE);
        let meta: TokenSetMeta = files::read_json(&path)?;
        if meta.version != VERSION {
            return Err(LmError::file(
                &path,
                format!("version {} is not supported (expected {VERSION})", meta.version),
            ));
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

    /// The description in `tokens.json`.
    pub fn meta(&self) -> &TokenSetMeta {
        &self.meta
    }

    /// The training part; never empty.
    pub fn train(&self) -> TokenSlice<'_> {
        TokenSlice { part: &self.train, meta: &self.meta }
    }

    /// The validation part; empty if the set has none.
    pub fn validation(&self) -> TokenSlice<'_> {
        TokenSlice { part: &self.validation, meta: &self.meta }
    }
}

impl Part {
    fn open(path: PathBuf, (tokens, dtype): (u64, TokenType)) -> Result<Self, LmError> {
        let bytes = files::map(&path)?;
        let found = bytes.len() as u64;
        if tokens.checked_mul(dtype.size_bytes()) != Some(found) {
            let problem = format!(
                "is {found} bytes long, but {TOKENS_FILE} says {tokens} tokens of {} bytes",
                dtype.size_bytes()
            );
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
    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.part.bytes.len() as u64 / self.meta.dtype.size_bytes()
    }

    /// Whether it has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids at the positions in `range`, in the type that embeddings expect.
    ///
    /// # Errors
    /// [`LmError::TooFewTokens`] if the range ends after the last token, [`LmError::BadFile`] for
    /// an id outside the vocabulary.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<i64>, LmError> {
        self.require(range.end)?;
        let size = self.meta.dtype.size_bytes();
        // The whole file fits in the address space, so offsets fit into usize.
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
                    "token {} has id {}, which is not below the vocabulary size ({vocab_size})",
                    range.start + at as u64,
                    ids[at]
                );
                Err(LmError::file(&self.part.path, problem))
            }
        }
    }

    /// Checks that there are at least `needed` tokens.
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

/// The parameters of a [`TokenSetWriter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTokenSet {
    /// Size of the tokenizer's vocabulary.
    pub vocab_size: u32,
    /// The token that is written after every document.
    pub end_of_text_id: Option<u32>,
    /// Digest of the tokenizer's vocabulary ([`crate::tokenizer::vocabulary_sha256`]).
    pub tokenizer_sha256: Option<Sha256Digest>,
}

/// Writes a token set document by document, without keeping it in memory.
#[derive(Debug)]
pub struct TokenSetWriter {
    dir: PathBuf,
    meta: TokenSetMeta,
    /// Also contains the tokens of the current source that will move to the validation part.
    train: BufWriter<File>,
    validation: File,
    /// Position in `train` at which the current source starts.
    source_start: u64,
    /// Tokens of the unfinished document.
    open_tokens: u64,
    /// Upper bound of all ids. The vocabulary size grows up to it as larger ids are written.
    ids: u32,
}

/// The tokens at the end of a source that go into the validation part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldOut {
    /// A share of the source's tokens, at least 0 and below 1. The cut moves to the nearest end of
    /// a document within half the share, so long documents are split and short ones are not.
    Share(f64),
    /// A number of tokens.
    Last(u64),
}

impl TokenSetWriter {
    /// Starts a token set in `dir`, which must exist. The set is complete after
    /// [`TokenSetWriter::finish`].
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

    /// Also accepts ids from the vocabulary size up to `ids`. Such an id enlarges the vocabulary to
    /// include it.
    #[must_use]
    pub fn with_ids_below(mut self, ids: u32) -> Self {
        self.ids = self.ids.max(ids);
        self.meta.dtype = TokenType::of_vocabulary(self.ids);
        self
    }

    /// Appends a document with `text_bytes` bytes of text, followed by the end-of-text token. A
    /// document without tokens is not counted.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for an id outside the vocabulary, [`LmError::Io`].
    pub fn push_document(&mut self, tokens: &[u32], text_bytes: u64) -> Result<(), LmError> {
        self.push_part(tokens)?;
        self.end_document(text_bytes)
    }

    /// Appends tokens to the current document, which [`TokenSetWriter::end_document`] ends.
    ///
    /// # Errors
    /// See [`TokenSetWriter::push_document`].
    pub fn push_part(&mut self, tokens: &[u32]) -> Result<(), LmError> {
        self.write(tokens)?;
        self.open_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Ends the current document. A document without tokens is not counted.
    ///
    /// # Errors
    /// See [`TokenSetWriter::push_document`].
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

    /// Appends tokens that include their end-of-text tokens, each of which counts as a document.
    ///
    /// # Errors
    /// See [`TokenSetWriter::push_document`].
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
            // `check_ids` ensures that ids are below the vocabulary size, which fits into two
            // bytes.
            TokenType::U16 => tokens.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect(),
            TokenType::U32 => tokens.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        self.train.write_all(&bytes).map_err(|error| LmError::io(&self.dir.join(TRAIN_FILE), error))?;
        self.meta.train_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Number of tokens written so far, in both parts.
    pub fn tokens(&self) -> u64 {
        self.meta.train_tokens + self.meta.validation_tokens
    }

    /// Ends a source: moves its held-out tokens to the validation part. Later tokens belong to the
    /// next source.
    ///
    /// # Errors
    /// [`LmError::BadTokens`] for a share outside 0 to 1 or more tokens than the source has,
    /// [`LmError::Io`].
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
                    let problem = format!("cannot hold out {tokens} tokens from a source of {total} tokens");
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

    /// Ends the current source, holds out the last `validation_fraction` of its tokens, and writes
    /// `tokens.json`.
    ///
    /// # Errors
    /// See [`TokenSetWriter::end_source`]; [`LmError::EmptyCorpus`] if either part would have no
    /// tokens.
    pub fn finish(mut self, validation_fraction: f64) -> Result<TokenSetMeta, LmError> {
        if self.meta.train_tokens > self.source_start || self.meta.source_train_tokens.is_empty() {
            self.end_source(HeldOut::Share(validation_fraction))?;
        }
        let (train, validation) = (self.meta.train_tokens, self.meta.validation_tokens);
        if train + validation == 0 {
            return Err(LmError::EmptyCorpus { problem: "no document contains any tokens".to_owned() });
        }
        if train == 0 || (validation == 0 && validation_fraction > 0.0) {
            let problem = format!(
                "{} tokens cannot be split into a training part and a validation part (validation_fraction = \
                 {validation_fraction})",
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

    /// Returns the first position after the end of a document that is nearest to `wanted`, within
    /// `reach` tokens; `wanted` itself if there is none. Never returns the start or the end of the
    /// current source.
    fn cut_near(&self, wanted: u64, reach: u64) -> Result<u64, LmError> {
        let Some(end_of_text_id) = self.meta.end_of_text_id else { return Ok(wanted) };
        let first = self.source_start + 1;
        let (low, high) = (wanted.saturating_sub(reach).max(first), (wanted + reach).min(self.meta.train_tokens - 1));
        // Position p is a document's first token if the previous token ends a document.
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

/// Removes the files that an earlier, unfinished attempt left in `dir`.
///
/// # Errors
/// [`LmError::Io`] with the file's path.
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
        Some(id) => Err(LmError::BadTokens {
            problem: format!("token id {id} is not below the vocabulary size ({vocab_size})"),
        }),
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
