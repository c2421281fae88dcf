//! Parses SentencePiece's `tokenizer.model`, an untrusted file.
//!
//! The file is one protobuf message, `ModelProto` of google/sentencepiece's
//! `sentencepiece_model.proto`: the pieces, whose index is their id, how the model was trained, and
//! how text is normalised. Only the fields that affect ids or text are read. Everything that the
//! library rejects is rejected here, and so are its two model types that no language model uses
//! (WORD and CHAR).

use std::collections::HashSet;

use prost::Message;

use super::safetensors_header::shortened;

#[cfg(test)]
mod tests;

/// The file name of a model in a checkpoint's folder.
pub const MODEL_FILE: &str = "tokenizer.model";
/// Maximum size of a file. The largest known ones have about 5 MB.
pub const MAX_MODEL_BYTES: usize = 16 << 20;
/// Maximum number of pieces. The largest known vocabularies have 260,000.
pub const MAX_PIECES: usize = 1 << 20;
/// Maximum length of a piece, which is the library's own limit.
pub const MAX_PIECE_BYTES: usize = 7_999;

/// The algorithm that splits a text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Adjacent pieces are merged, in order of descending score.
    Bpe,
    /// The split with the highest sum of scores.
    Unigram,
}

/// The purpose of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Text found in training.
    Normal,
    /// Stands for text that no piece covers.
    Unknown,
    /// Never matched in text: `<s>`, `</s>`.
    Control,
    /// Text that always becomes this piece.
    UserDefined,
    /// One byte of text that no piece covers.
    Byte(u8),
    /// Used as an intermediate merge in BPE, and then split again.
    Unused,
}

/// An entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text, never empty, with `▁` in place of spaces.
    pub text: String,
    /// The score, always finite.
    pub score: f32,
    /// The purpose.
    pub kind: PieceKind,
}

/// How text that no piece covers is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnknownText {
    /// As bytes. Contains the id of each byte.
    Bytes(Box<[u32; 256]>),
    /// As this id, once for each run of such text.
    Piece(u32),
}

/// How text is normalised before it is split into pieces, or after it has been joined again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizerRules {
    /// Replacements, as a double array and the texts it points to. Empty if there are none.
    pub precompiled_charsmap: Vec<u8>,
    /// Whether a space is added before or after the text.
    pub add_dummy_prefix: bool,
    /// Whether spaces at both ends are removed, and runs of spaces become one.
    pub remove_extra_whitespaces: bool,
    /// Whether a space becomes `▁`.
    pub escape_whitespaces: bool,
    /// Whether the space of `add_dummy_prefix` is added after the text.
    pub treat_whitespace_as_suffix: bool,
}

/// A validated model.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePieceModel {
    algorithm: Algorithm,
    pieces: Vec<Piece>,
    unknown: UnknownText,
    unknown_surface: String,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    normalizer: NormalizerRules,
    denormalizer: Option<NormalizerRules>,
}

/// Why a file is not a usable model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SentencePieceError {
    /// The file is too large.
    #[error("is {file_bytes} bytes long; a SentencePiece model may have at most {MAX_MODEL_BYTES} bytes")]
    TooLong {
        /// The size of the file.
        file_bytes: usize,
    },
    /// The file is of another kind, as its content shows.
    #[error("is not a SentencePiece model but {kind}")]
    Other {
        /// What the file is, and what to do.
        kind: &'static str,
    },
    /// The file is not the expected message.
    #[error("is not a SentencePiece model: {problem}")]
    Protobuf {
        /// The decoder's message.
        problem: String,
    },
    /// A field is not valid.
    #[error("is not a usable SentencePiece model: {field} {problem}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl SentencePieceModel {
    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// The bytes are not such a message, or a field is not valid for the library either.
    pub fn parse(bytes: &[u8]) -> Result<Self, SentencePieceError> {
        if bytes.len() > MAX_MODEL_BYTES {
            return Err(SentencePieceError::TooLong { file_bytes: bytes.len() });
        }
        if let Some(kind) = other_kind(bytes) {
            return Err(SentencePieceError::Other { kind });
        }
        // Count before decoding, which allocates memory for the pieces.
        let count = count_pieces(bytes);
        if count > MAX_PIECES {
            return Err(bad("pieces", format!("has {count} entries; 1 to {MAX_PIECES} are supported")));
        }
        let proto =
            ModelProto::decode(bytes).map_err(|error| SentencePieceError::Protobuf { problem: error.to_string() })?;
        let trainer = proto.trainer_spec.unwrap_or_default();
        let algorithm = match trainer.model_type.unwrap_or(1) {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => {
                let known = ["WORD", "CHAR"].get((other.wrapping_sub(3)) as usize).copied().unwrap_or("unknown");
                return Err(bad(
                    "trainer_spec.model_type",
                    format!("is {other} ({known}); only UNIGRAM and BPE are supported"),
                ));
            }
        };
        let pieces = checked_pieces(proto.pieces, algorithm)?;
        let unknown = unknown_text(&pieces, trainer.byte_fallback.unwrap_or(false))?;
        let control = |name: Option<String>, default: &str| {
            let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| default.to_owned());
            let is_it = |piece: &Piece| piece.kind == PieceKind::Control && piece.text == name;
            pieces.iter().position(is_it).map(|id| id as u32)
        };
        let suffix = trainer.treat_whitespace_as_suffix.unwrap_or(false);
        let denormalizer = proto.denormalizer_spec.unwrap_or_default().rules(false);
        Ok(Self {
            algorithm,
            unknown,
            unknown_surface: trainer.unk_surface.unwrap_or_else(|| " \u{2047} ".to_owned()),
            bos_id: control(trainer.bos_piece, "<s>"),
            eos_id: control(trainer.eos_piece, "</s>"),
            pieces,
            normalizer: proto.normalizer_spec.unwrap_or_default().rules(suffix),
            denormalizer: Some(denormalizer).filter(|rules| !rules.precompiled_charsmap.is_empty()),
        })
    }

    /// Returns the algorithm that splits a text into pieces.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the vocabulary. The index of a piece is its id. There are at most [`MAX_PIECES`].
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns how text that no piece covers is encoded.
    pub fn unknown(&self) -> &UnknownText {
        &self.unknown
    }

    /// Returns the text that the unknown piece is decoded to.
    pub fn unknown_surface(&self) -> &str {
        &self.unknown_surface
    }

    /// Returns the id of the piece that starts a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Returns the id of the piece that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// Returns the normalisation that is applied before encoding.
    pub fn normalizer(&self) -> &NormalizerRules {
        &self.normalizer
    }

    /// Returns the normalisation that is applied after decoding, if there is one.
    pub fn denormalizer(&self) -> Option<&NormalizerRules> {
        self.denormalizer.as_ref()
    }
}

/// Returns the number of pieces of a message, up to the point where it is no longer valid.
fn count_pieces(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        let Ok((field, kind)) = prost::encoding::decode_key(&mut bytes) else { break };
        count += usize::from(field == 1);
        if prost::encoding::skip_field(kind, field, &mut bytes, prost::encoding::DecodeContext::default()).is_err() {
            break;
        }
    }
    count
}

/// Detects other kinds of files that are often found under this name.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(1024)];
    let is_text = std::str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true);
    if bytes.is_empty() {
        return Some("an empty file");
    }
    if start.starts_with(b"version https://git-lfs") {
        return Some("a Git LFS pointer, not the file itself; run `git lfs pull`");
    }
    if !is_text {
        return None;
    }
    let trimmed = start.trim_ascii_start();
    if trimmed.starts_with(b"{") {
        return Some("JSON; rename it to tokenizer.json if it is a Hugging Face tokenizer");
    }
    if trimmed.starts_with(b"<!") || trimmed.starts_with(b"<html") {
        return Some("a web page; download the file itself");
    }
    // Each line has the form `base64 rank`.
    let is_rank = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let (token, rank) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        !token.is_empty()
            && token.iter().all(is_base64)
            && !rank.is_empty()
            && rank.iter().all(u8::is_ascii_digit)
            && words.next().is_none()
    };
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    is_rank(first.trim_ascii_end()).then_some(
        "a tiktoken vocabulary (base64 and ranks), which is not supported: convert it to a tokenizer.json with transformers, \
         AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
}

fn bad(field: impl Into<String>, problem: impl Into<String>) -> SentencePieceError {
    SentencePieceError::Field { field: field.into(), problem: problem.into() }
}

fn checked_pieces(protos: Vec<PieceProto>, algorithm: Algorithm) -> Result<Vec<Piece>, SentencePieceError> {
    if protos.is_empty() || protos.len() > MAX_PIECES {
        return Err(bad("pieces", format!("has {} entries; 1 to {MAX_PIECES} are supported", protos.len())));
    }
    let mut pieces = Vec::with_capacity(protos.len());
    for (id, proto) in protos.into_iter().enumerate() {
        let piece = checked_piece(proto).map_err(|(field, problem)| bad(format!("pieces[{id}].{field}"), problem))?;
        pieces.push(piece);
    }
    // Unigram keeps pieces that occur in text apart from the others. BPE looks all of them up in
    // one table.
    let mut seen = HashSet::with_capacity(pieces.len());
    for (id, piece) in pieces.iter().enumerate() {
        let in_text = matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
        if !is_placeholder(piece) && !seen.insert((algorithm == Algorithm::Bpe || in_text, piece.text.as_str())) {
            return Err(bad(format!("pieces[{id}].piece"), format!("`{}` occurs twice", shortened(&piece.text))));
        }
    }
    Ok(pieces)
}

/// Returns whether the piece is an id without text, which the library skips.
fn is_placeholder(piece: &Piece) -> bool {
    piece.kind == PieceKind::Unused && piece.text == "\0"
}

fn checked_piece(proto: PieceProto) -> Result<Piece, (&'static str, String)> {
    let (text, score) = (proto.piece.unwrap_or_default(), proto.score.unwrap_or(0.0));
    if text.is_empty() {
        return Err(("piece", "is empty".to_owned()));
    }
    if text.len() > MAX_PIECE_BYTES {
        return Err(("piece", format!("is {} bytes long; at most {MAX_PIECE_BYTES} are allowed", text.len())));
    }
    let kind = match proto.kind.unwrap_or(1) {
        1 => PieceKind::Normal,
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte(
            named_byte(&text).ok_or_else(|| ("piece", format!("`{}` is not the name of a byte", shortened(&text))))?,
        ),
        other => return Err(("type", format!("is {other}, which is unknown"))),
    };
    if !score.is_finite() {
        return Err(("score", format!("is {score}")));
    }
    let piece = Piece { text, score, kind };
    if piece.text.contains('\0') && !is_placeholder(&piece) {
        return Err(("piece", "contains a NUL".to_owned()));
    }
    Ok(piece)
}

/// Returns the byte that a piece such as `<0x0A>` stands for.
fn named_byte(text: &str) -> Option<u8> {
    let byte = u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()?;
    (text == format!("<0x{byte:02X}>")).then_some(byte)
}

fn unknown_text(pieces: &[Piece], byte_fallback: bool) -> Result<UnknownText, SentencePieceError> {
    let mut unknown = None;
    let mut bytes = [None; 256];
    for (id, piece) in pieces.iter().enumerate() {
        match piece.kind {
            PieceKind::Unknown if unknown.is_some() => {
                return Err(bad(format!("pieces[{id}].type"), "is a second UNKNOWN"));
            }
            PieceKind::Unknown => unknown = Some(id as u32),
            PieceKind::Byte(_) if !byte_fallback => {
                return Err(bad(format!("pieces[{id}].type"), "is BYTE, but trainer_spec.byte_fallback is false"));
            }
            PieceKind::Byte(byte) => bytes[usize::from(byte)] = Some(id as u32),
            PieceKind::Normal | PieceKind::Control | PieceKind::UserDefined | PieceKind::Unused => {}
        }
    }
    if !byte_fallback {
        return unknown.map(UnknownText::Piece).ok_or_else(|| bad("pieces", "has no entry of type UNKNOWN"));
    }
    let mut ids = Box::new([0; 256]);
    for (byte, (id, found)) in ids.iter_mut().zip(bytes).enumerate() {
        *id = found.ok_or_else(|| bad("pieces", format!("has no <0x{byte:02X}>, but byte_fallback is true")))?;
    }
    Ok(UnknownText::Bytes(ids))
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerProto>,
    #[prost(message, optional, tag = "5")]
    denormalizer_spec: Option<NormalizerProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "44")]
    unk_surface: Option<String>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

impl NormalizerProto {
    fn rules(self, treat_whitespace_as_suffix: bool) -> NormalizerRules {
        NormalizerRules {
            precompiled_charsmap: self.precompiled_charsmap.unwrap_or_default(),
            add_dummy_prefix: self.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: self.remove_extra_whitespaces.unwrap_or(true),
            escape_whitespaces: self.escape_whitespaces.unwrap_or(true),
            treat_whitespace_as_suffix,
        }
    }
}
