#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn piece(text: &str, kind: i32) -> PieceProto {
    PieceProto { piece: Some(text.to_owned()), score: Some(-1.5), kind: Some(kind) }
}

/// Returns a model with `<unk>`, `<s>`, `</s>`, a word, and optionally the bytes.
fn model(byte_fallback: bool) -> ModelProto {
    let mut pieces = vec![piece("<unk>", 2), piece("<s>", 3), piece("</s>", 3), piece("▁word", 1)];
    if byte_fallback {
        pieces.extend((0..256).map(|byte| piece(&format!("<0x{byte:02X}>"), 6)));
    }
    let trainer_spec =
        TrainerProto { model_type: Some(2), byte_fallback: Some(byte_fallback), ..TrainerProto::default() };
    ModelProto { pieces, trainer_spec: Some(trainer_spec), ..ModelProto::default() }
}

fn parse(proto: &ModelProto) -> Result<SentencePieceModel, SentencePieceError> {
    SentencePieceModel::parse(&proto.encode_to_vec())
}

#[test]
fn what_is_not_there_is_what_the_library_takes_it_for() {
    let read = parse(&model(true)).unwrap();
    assert_eq!(read.algorithm(), Algorithm::Bpe);
    assert_eq!(read.pieces().len(), 260);
    assert_eq!(read.pieces()[3], Piece { text: "▁word".to_owned(), score: -1.5, kind: PieceKind::Normal });
    assert_eq!((read.bos_id(), read.eos_id()), (Some(1), Some(2)));
    assert_eq!(read.unknown_surface(), " ⁇ ");
    let UnknownText::Bytes(bytes) = read.unknown() else { panic!("{:?}", read.unknown()) };
    assert_eq!((bytes[0], bytes[255]), (4, 259));
    let rules = read.normalizer();
    assert!(rules.add_dummy_prefix && rules.remove_extra_whitespaces && rules.escape_whitespaces);
    assert!(!rules.treat_whitespace_as_suffix && rules.precompiled_charsmap.is_empty());
    assert_eq!(read.denormalizer(), None);

    let plain = parse(&ModelProto { trainer_spec: None, ..model(false) }).unwrap();
    assert_eq!(plain.algorithm(), Algorithm::Unigram);
    assert_eq!(plain.unknown(), &UnknownText::Piece(0));
}

#[test]
fn an_unused_nul_is_an_id_without_text() {
    let mut proto = model(false);
    proto.pieces.extend([piece("\0", 5), piece("\0", 5)]);
    assert_eq!(parse(&proto).unwrap().pieces().len(), 6);
}

fn check(change: impl FnOnce(&mut ModelProto), expected: Expect) {
    let mut proto = model(false);
    change(&mut proto);
    expected.assert_eq(&parse(&proto).unwrap_err().to_string());
}

#[test]
fn a_bad_field_is_named() {
    let unusable = "is not a usable SentencePiece model: ";
    let field = |change: fn(&mut ModelProto), expected: &str| {
        let mut proto = model(false);
        change(&mut proto);
        assert_eq!(parse(&proto).unwrap_err().to_string(), format!("{unusable}{expected}"));
    };
    field(|m| m.pieces.clear(), "pieces has 0 entries; 1 to 1048576 are supported");
    field(|m| m.pieces[3].piece = None, "pieces[3].piece is empty");
    field(
        |m| m.pieces[3].piece = Some("x".repeat(8000)),
        "pieces[3].piece is 8000 bytes long; at most 7999 are allowed",
    );
    field(|m| m.pieces[3].piece = Some("a\0".to_owned()), "pieces[3].piece contains a NUL");
    field(|m| m.pieces[3].score = Some(f32::NAN), "pieces[3].score is NaN");
    field(|m| m.pieces[3].kind = Some(9), "pieces[3].type is 9, which is unknown");
    field(|m| m.pieces.push(piece("▁word", 4)), "pieces[4].piece `\\u{2581}word` occurs twice");
    field(|m| m.pieces.push(piece("<more>", 2)), "pieces[4].type is a second UNKNOWN");
    field(|m| m.pieces[0].kind = Some(3), "pieces has no entry of type UNKNOWN");
    field(|m| m.pieces.push(piece("<0x41>", 6)), "pieces[4].type is BYTE, but trainer_spec.byte_fallback is false");
    field(|m| m.pieces.push(piece("<0x4a>", 6)), "pieces[4].piece `<0x4a>` is not the name of a byte");
    field(
        |m| *m = ModelProto { trainer_spec: model(true).trainer_spec, ..m.clone() },
        "pieces has no <0x00>, but byte_fallback is true",
    );
    let kind = |m: &mut ModelProto, kind| m.trainer_spec.as_mut().unwrap().model_type = Some(kind);
    check(
        |m| kind(m, 4),
        expect![
            "is not a usable SentencePiece model: trainer_spec.model_type is 4 (CHAR); only UNIGRAM and BPE are supported"
        ],
    );
    check(
        |m| kind(m, -7),
        expect![
            "is not a usable SentencePiece model: trainer_spec.model_type is -7 (unknown); only UNIGRAM and BPE are supported"
        ],
    );
}

#[test]
fn other_files_are_refused() {
    let refused = |bytes: &[u8]| SentencePieceModel::parse(bytes).unwrap_err().to_string();
    expect!["is not a SentencePiece model but an empty file"].assert_eq(&refused(b""));
    expect!["is not a SentencePiece model but a Git LFS pointer, not the file itself; run `git lfs pull`"]
        .assert_eq(&refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"));
    expect!["is not a SentencePiece model: failed to decode Protobuf message: PieceProto.piece: ModelProto.pieces: invalid string value: data is not UTF-8 encoded"]
        .assert_eq(&refused(b"\x0a\x03\x0a\x01\xff"));
    expect!["is 16777217 bytes long; a SentencePiece model may have at most 16777216 bytes"]
        .assert_eq(&refused(&vec![0; MAX_MODEL_BYTES + 1]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SentencePieceModel::parse(&bytes);
    }

    /// A damaged model is read or rejected, without a panic.
    #[test]
    fn no_damage_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = model(true).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = SentencePieceModel::parse(&bytes);
        let _ = SentencePieceModel::parse(&bytes[..cut.index(bytes.len())]);
    }
}

#[test]
fn a_file_of_another_kind_is_called_by_its_name() {
    let problem = |bytes: &[u8]| SentencePieceModel::parse(bytes).unwrap_err().to_string();
    let found = [
        problem(b"AA== 0\nAQ== 1\n"),
        problem(b"IQ== 0\r\n"),
        problem(b""),
        problem(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        problem(b" {\"model\": {}}"),
        problem(b"<!DOCTYPE html><html>"),
    ];
    expect![[r#"
        is not a SentencePiece model but a tiktoken vocabulary (base64 and ranks), which is not supported: convert it to a tokenizer.json with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)
        is not a SentencePiece model but a tiktoken vocabulary (base64 and ranks), which is not supported: convert it to a tokenizer.json with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)
        is not a SentencePiece model but an empty file
        is not a SentencePiece model but a Git LFS pointer, not the file itself; run `git lfs pull`
        is not a SentencePiece model but JSON; rename it to tokenizer.json if it is a Hugging Face tokenizer
        is not a SentencePiece model but a web page; download the file itself"#]].assert_eq(&found.join("\n"));
}

#[test]
fn s2_more_pieces_than_are_read_take_no_memory() {
    let many = [0x0a, 0].repeat(MAX_PIECES + 1);
    let error = SentencePieceModel::parse(&many).unwrap_err().to_string();
    expect!["is not a usable SentencePiece model: pieces has 1048577 entries; 1 to 1048576 are supported"]
        .assert_eq(&error);
}
