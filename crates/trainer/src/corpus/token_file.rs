//! Files of ready tokens, as nanoGPT's `prepare.py` writes them: 16-bit ids, little-endian, one after the other. A file with
//! llm.c's header (256 32-bit numbers: magic, version, tokens, and room) is read as well.

use std::io::Read;

use super::{CorpusError, Piece, read_error};

/// The first number of llm.c's header.
const LLM_C_MAGIC: u32 = 20_240_520;
const LLM_C_HEADER_BYTES: usize = 1024;
/// Of a piece.
const PIECE_BYTES: u64 = 1 << 20;

/// The tokens of the file called `shown`.
pub(super) fn pieces(
    shown: String,
    mut reader: impl Read + Send,
    held_out: bool,
) -> impl Iterator<Item = Result<Piece, CorpusError>> + Send {
    let mut at_start = true;
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let piece = next(&shown, &mut reader, std::mem::take(&mut at_start)).transpose();
        ended = !matches!(piece, Some(Ok(_)));
        piece.map(|ids| ids.map(|ids| Piece::Tokens { ids, held_out }))
    })
}

fn next(shown: &str, reader: &mut impl Read, at_start: bool) -> Result<Option<Vec<u32>>, CorpusError> {
    let mut bytes = Vec::new();
    reader.take(PIECE_BYTES).read_to_end(&mut bytes).map_err(|error| read_error(shown, error))?;
    let header = match bytes.first_chunk() {
        Some(magic) if at_start && u32::from_le_bytes(*magic) == LLM_C_MAGIC => LLM_C_HEADER_BYTES,
        Some(_) | None => 0,
    };
    let Some((ids, [])) = bytes.get(header..).map(|ids| ids.as_chunks::<2>()) else {
        let problem = "does not hold whole 16-bit token ids, as nanoGPT's train.bin does".to_owned();
        return Err(CorpusError::Bad { file: shown.to_owned(), problem });
    };
    Ok((!ids.is_empty()).then(|| ids.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect()))
}
