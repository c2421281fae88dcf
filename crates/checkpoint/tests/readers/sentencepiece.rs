//! SentencePiece's `tokenizer.model`.

use inheritune_checkpoint::sentencepiece_model::{MAX_PIECE_BYTES, PieceKind, SentencePieceModel, UnknownText};

use super::{Heap, refused};

/// A piece of two bytes becomes three fields in memory, twice while the list grows.
const HEAP: Heap = Heap { fixed: 128 << 10, per_byte: 96, most: 512 << 20 };

pub fn check(model: &[u8]) {
    let read = match HEAP.hold(model, SentencePieceModel::parse) {
        Ok(read) => read,
        Err(error) => return refused(&error),
    };
    let pieces = read.pieces();
    assert!(!pieces.is_empty());
    assert!(pieces.iter().all(|piece| piece.score.is_finite() && (1..=MAX_PIECE_BYTES).contains(&piece.text.len())));
    for id in [read.bos_id(), read.eos_id()].into_iter().flatten() {
        assert_eq!(pieces[id as usize].kind, PieceKind::Control);
    }
    match read.unknown() {
        UnknownText::Piece(id) => assert_eq!(pieces[*id as usize].kind, PieceKind::Unknown),
        UnknownText::Bytes(ids) => {
            for (byte, id) in ids.iter().enumerate() {
                assert_eq!(pieces[*id as usize].kind, PieceKind::Byte(byte as u8));
            }
        }
    }
}
