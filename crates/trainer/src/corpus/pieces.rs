//! One pass over a source, which yields its documents in pieces and its tokens in parts.

use std::collections::VecDeque;
use std::io::{BufReader, Read};

use inheritune_data::kind::Content;
use inheritune_data::token_file::TokenFile;
use inheritune_data::unpack::unpacked;
use inheritune_data::{DataError, Documents, ReadAs};

use super::cutting::{Cutter, Cutting};
use super::stored::{Reader, Stored};
use super::{CorpusError, CorpusFile};

/// A part of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part of a document.
    Text {
        /// The text; only the last piece of a document may be empty.
        text: String,
        /// Whether this is the document's last piece.
        ends_document: bool,
        /// Whether it is for validation.
        held_out: bool,
    },
    /// Tokens of documents, including their end-of-text tokens.
    Tokens {
        /// The token ids.
        ids: Vec<u32>,
        /// Whether they are for validation.
        held_out: bool,
    },
}

impl Piece {
    /// Returns the piece with `held_out` set to `is`.
    fn held_out(mut self, is: bool) -> Self {
        match &mut self {
            Self::Text { held_out, .. } | Self::Tokens { held_out, .. } => *held_out = is,
        }
        self
    }
}

/// How a source is read.
#[derive(Clone)]
pub struct Reading<'a> {
    /// What determines where long documents are cut.
    pub cutting: Cutting<'a>,
    /// How rows of structured files are read.
    pub read_as: ReadAs,
    /// Exclusive upper bound of the ids in token files.
    pub vocab_size: u32,
}

/// The pieces of a source, in order.
pub struct Pieces<'a> {
    files: std::vec::IntoIter<CorpusFile>,
    reading: Reading<'a>,
    reader: Reader,
    cutter: Cutter<'a>,
    open: Option<(String, Open)>,
    ready: VecDeque<Piece>,
}

enum Open {
    Documents { documents: Box<Documents<Stored>>, held_out: bool },
    Tokens { file: TokenFile<BufReader<Box<dyn Read + Send>>>, held_out: bool },
}

impl<'a> Pieces<'a> {
    pub(super) fn new(files: Vec<CorpusFile>, reading: Reading<'a>, reader: Reader) -> Self {
        let cutter = Cutter::new(reading.cutting);
        Self { files: files.into_iter(), reading, reader, cutter, open: None, ready: VecDeque::new() }
    }

    /// The number of cuts so far that had to be made where there is no token boundary.
    pub fn forced_cuts(&self) -> u64 {
        self.cutter.forced()
    }

    fn advance(&mut self) -> Result<Option<Piece>, CorpusError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            let Some((shown, open)) = &mut self.open else {
                let Some(file) = self.files.next() else { return Ok(None) };
                let shown = file.shown.clone();
                let open = self.open_file(file).map_err(|error| CorpusError::of(&shown, error))?;
                self.open = Some((shown, open));
                continue;
            };
            let failed = |error| CorpusError::of(shown, error);
            match open {
                Open::Documents { documents, held_out } => match documents.next_part().map_err(failed)? {
                    Some(part) => {
                        let cut = self.cutter.push(&part.text, part.ends_document);
                        self.ready.extend(cut.into_iter().map(|piece| piece.held_out(*held_out)));
                    }
                    None => self.open = None,
                },
                Open::Tokens { file, held_out } => {
                    let held_out = *held_out;
                    match file.next_part().map_err(failed)? {
                        Some(ids) => return Ok(Some(Piece::Tokens { ids, held_out })),
                        None => self.open = None,
                    }
                }
            }
        }
    }

    fn open_file(&self, file: CorpusFile) -> Result<Open, DataError> {
        let (kind, shown, held_out, size_bytes) = (file.kind, file.shown.clone(), file.held_out, file.size_bytes);
        let stored = Stored::new(file, self.reader.clone());
        if kind.content != Content::Tokens {
            let documents = Documents::open(stored, kind, &shown, self.reading.read_as.clone())?;
            return Ok(Open::Documents { documents: Box::new(documents), held_out });
        }
        let reader =
            unpacked(stored.whole().map_err(DataError::Io)?, size_bytes, kind.packing).map_err(DataError::Io)?;
        Ok(Open::Tokens { file: TokenFile::new(reader, &shown, self.reading.vocab_size), held_out })
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, Some(Err(_))) {
            // After an error the iterator is exhausted.
            (self.open, self.files) = (None, Vec::new().into_iter());
            self.ready.clear();
        }
        next
    }
}
