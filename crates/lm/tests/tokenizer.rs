//! Tokenizers: training is deterministic, text is lossless, and files keep their bytes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use expect_test::{Expect, expect};
use inheritune_lm::LmError;
use inheritune_lm::tokenizer::{END_OF_TEXT, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, vocabulary_sha256};
use proptest::prelude::*;
use serde_json::{Value, json};

const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const VOCABULARY: u32 = 320;

/// Enough repetition for merges, with letters of one to four bytes.
const CORPUS: [&str; 6] = [
    "The first layers of the reference model are inherited by the target model.",
    "The target model is trained on, and the layers that were inherited are trained with it.",
    "Größere Modelle, größere Schichten; größere Größen. Größere Größen!",
    "モデルの最初の層を受け継ぐ。最初の層、最初のモデル。",
    "fn main() {\n    println!(\"{}\", 1 + 1);\n}\nfn main() {\n    println!(\"{}\", 2 + 2);\n}\n",
    "🦀🦀🦀 12345 12345 it's we'll they've  it's we'll they've",
];

/// Texts that break tokenizers: empty text, spaces, controls, joined and unpaired marks, the
/// special token itself.
const HOSTILE: [&str; 20] = [
    "",
    " ",
    "   \t\n\r\n  ",
    "\0",
    "a\0b\u{1}\u{7f}\u{80}\u{9f}",
    "\u{feff}byte order mark",
    "\u{fffd}\u{fffe}\u{ffff}\u{10ffff}",
    "e\u{301}\u{302}\u{303}\u{304}\u{305}",
    "\u{301}starts with a combining mark",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇩",
    "\u{202e}right to left\u{202c} שלום مرحبا",
    "ﬁ Å Å ½ ①",
    "zero\u{200b}width\u{200d}joiner\u{2060}",
    "non\u{a0}breaking\u{2003}spaces\u{3000}",
    "<|endoftext|>",
    "a<|endoftext|><|endoftext|>b <|endoftext|> c<|endoftext",
    "Ġ Ċ ĉ Ā are what bytes are written as",
    "it's 's 'S 't ''ll 're''ve",
    "                                                                x",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u{1f468}\u{e0001}",
];

fn train() -> Tokenizer {
    Tokenizer::train_byte_bpe(CORPUS.iter(), VOCABULARY).unwrap()
}

/// The files that `save` writes, by name.
fn saved(tokenizer: &Tokenizer) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    files(dir.path())
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
    };
    let mut files: Vec<_> = paths.map(file).collect();
    files.sort();
    files
}

#[test]
fn training_twice_gives_the_same_tokenizer() {
    let (first, second) = (train(), train());
    assert_eq!(first.sha256(), second.sha256());
    assert!(saved(&first) == saved(&second));
    assert_eq!(first.vocab_size(), VOCABULARY);
    assert_eq!(first.end_of_text_id(), Some(0));
    // Published token sets contain this digest, so a change in training must be noticed.
    expect!["467d68db1a09ee15d3230d97502fc0c36617e95465de2c59cb193d97edd37723"].assert_eq(&first.sha256().to_string());
    let ids = first.encode("The first layers of größere Modelle").unwrap();
    expect!["[306, 221, 70, 73, 82, 83, 84, 221, 315, 257, 83, 221, 79, 70, 221, 311, 266, 221, 45, 281, 76, 69]"]
        .assert_eq(&format!("{ids:?}"));
}

#[test]
fn a_vocabulary_must_hold_every_byte_and_may_come_out_smaller_than_asked() {
    let smallest = Tokenizer::train_byte_bpe(CORPUS.iter(), 257).unwrap();
    assert_eq!(smallest.vocab_size(), 257);
    assert_eq!(smallest.encode("abc").unwrap().len(), 3);
    let too_small = Tokenizer::train_byte_bpe(CORPUS.iter(), 256).unwrap_err();
    expect!["tokenizer: vocab_size 256 is too small to contain every byte; the minimum is 257"]
        .assert_eq(&too_small.to_string());
    let no_text = Tokenizer::train_byte_bpe(std::iter::empty::<&str>(), 1000).unwrap();
    assert_eq!(no_text.vocab_size(), 257);
    assert_eq!(no_text.decode(&no_text.encode("größer").unwrap()).unwrap(), "größer");
}

#[test]
fn hostile_text_survives() {
    let tokenizer = train();
    for text in HOSTILE {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id < tokenizer.vocab_size()), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let every_scalar_of_the_first_plane: String = (0..=0xffff).filter_map(char::from_u32).collect();
    let ids = tokenizer.encode(&every_scalar_of_the_first_plane).unwrap();
    assert!(tokenizer.decode(&ids).unwrap() == every_scalar_of_the_first_plane);
}

#[test]
fn the_special_token_is_one_token() {
    let tokenizer = train();
    let end = tokenizer.end_of_text_id().unwrap();
    assert_eq!(tokenizer.encode(END_OF_TEXT).unwrap(), [end]);
    assert_eq!(tokenizer.encode("").unwrap(), [] as [u32; 0], "nothing is added");
}

#[test]
fn a_batch_is_its_texts_one_by_one() {
    let tokenizer = train();
    let texts: Vec<&str> = HOSTILE.iter().chain(&CORPUS).copied().cycle().take(500).collect();
    let one_by_one: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    assert_eq!(tokenizer.encode_batch(&texts).unwrap(), one_by_one);
    assert_eq!(tokenizer.encode_batch::<&str>(&[]).unwrap(), [] as [Vec<u32>; 0]);
}

#[test]
fn a_saved_tokenizer_keeps_its_bytes() {
    let (tokenizer, dir) = (train(), tempfile::tempdir().unwrap());
    tokenizer.save(dir.path()).unwrap();
    let names: Vec<String> = files(dir.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [SPECIAL_TOKENS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]);
    let again = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(saved(&again) == files(dir.path()));
    assert_eq!(again.sha256(), tokenizer.sha256());
    assert_eq!((again.vocab_size(), again.end_of_text_id()), (tokenizer.vocab_size(), tokenizer.end_of_text_id()));
    for text in HOSTILE {
        assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
}

#[test]
fn files_of_others_are_kept_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    train().save(dir.path()).unwrap();
    // A different layout, unknown keys, and a setting that would truncate texts.
    let mut json = read(&dir.path().join(TOKENIZER_FILE));
    json["truncation"] = json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    std::fs::write(dir.path().join(TOKENIZER_FILE), format!("\n{json}  \n")).unwrap();
    std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), r#"{"eos_token":{"content":"!"},  "unknown":1}"#).unwrap();
    std::fs::remove_file(dir.path().join(SPECIAL_TOKENS_FILE)).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(saved(&tokenizer) == files(dir.path()));
    assert_eq!(tokenizer.encode("!").unwrap(), [tokenizer.end_of_text_id().unwrap()]);
    assert_eq!(tokenizer.encode(CORPUS[0]).unwrap(), train().encode(CORPUS[0]).unwrap(), "nothing is cut");
}

#[test]
fn the_older_pair_of_files_gives_the_same_ids() {
    let (tokenizer, dir) = (train(), tempfile::tempdir().unwrap());
    tokenizer.save(dir.path()).unwrap();
    let model = &read(&dir.path().join(TOKENIZER_FILE))["model"];
    let older = tempfile::tempdir().unwrap();
    let merge = |merge: &Value| match merge {
        Value::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges: Vec<String> = model["merges"].as_array().unwrap().iter().map(merge).collect();
    std::fs::write(older.path().join("vocab.json"), model["vocab"].to_string()).unwrap();
    std::fs::write(older.path().join("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n"))).unwrap();
    let from_pair = Tokenizer::from_dir(older.path()).unwrap();
    assert_eq!(from_pair.vocab_size(), tokenizer.vocab_size());
    assert_eq!(from_pair.end_of_text_id(), tokenizer.end_of_text_id());
    for text in HOSTILE.iter().chain(&CORPUS) {
        assert_eq!(from_pair.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text:?}");
        assert_eq!(from_pair.decode(&from_pair.encode(text).unwrap()).unwrap(), *text);
    }
    assert!(saved(&from_pair) == files(older.path()));
    assert_eq!(Some(from_pair.sha256()), vocabulary_sha256(older.path()).unwrap());
    assert!(from_pair.can_cut_at_line_feeds());
    // If there are several, tokenizer.json is used, and the files next to it are ignored.
    std::fs::write(older.path().join("tokenizer.model"), "no model").unwrap();
    assert!(Tokenizer::from_dir(older.path()).is_ok());
    std::fs::copy(dir.path().join(TOKENIZER_FILE), older.path().join(TOKENIZER_FILE)).unwrap();
    assert_eq!(Tokenizer::from_dir(older.path()).unwrap().sha256(), tokenizer.sha256());
}

#[test]
fn a_sentencepiece_model_is_read_with_what_stands_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers/sentencepiece-llama");
    std::fs::copy(llama.join("tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    let bare = Tokenizer::from_dir(dir.path()).unwrap();
    let text = "The </s> of  a text";
    let ids = bare.encode(text).unwrap();
    assert_eq!(bare.end_of_text_id(), Some(2));
    assert!(!ids.contains(&2), "control pieces must not be recognised in text");
    assert_eq!(bare.encode_with_added(text).unwrap(), [&[1], ids.as_slice()].concat());
    assert_eq!(bare.decode(&bare.encode_with_added(text).unwrap()).unwrap(), text);
    assert!(!bare.can_cut_at_line_feeds());
    assert!(bare.decode(&[bare.vocab_size()]).is_err());
    assert!(saved(&bare) == files(dir.path()));
    assert_eq!(Some(bare.sha256()), vocabulary_sha256(dir.path()).unwrap());

    // An end-of-text token that was added to the model needs a row; a token that no text produces
    // does not.
    std::fs::write(dir.path().join("added_tokens.json"), r#"{"<end>": 2000, "[PAD]": 2001}"#).unwrap();
    let config = r#"{"add_bos_token": false, "add_eos_token": true, "bos_token": "", "eos_token": "<end>"}"#;
    std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config).unwrap();
    let added = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((added.end_of_text_id(), added.vocab_size(), added.ids()), (Some(1500), 1501, 1502));
    assert_eq!(added.encode_with_added(text).unwrap(), [ids.as_slice(), &[1500]].concat());
    assert!(saved(&added) == files(dir.path()));
    let error = |config: &str| {
        std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR")
    };
    std::fs::write(dir.path().join("tokenizer.model"), b"\x0a\x05\x0a\x03abc").unwrap();
    expect!["DIR/tokenizer.model: is not a usable SentencePiece model: pieces has no entry of type UNKNOWN"]
        .assert_eq(&error("{}"));
}

#[test]
fn a_tokenizer_must_fit_the_embedding() {
    let tokenizer = train();
    assert!(tokenizer.check_fits(VOCABULARY).is_ok());
    assert!(tokenizer.check_fits(VOCABULARY + 64).is_ok(), "padded embeddings are common");
    let error = tokenizer.check_fits(VOCABULARY - 1).unwrap_err();
    assert!(matches!(error, LmError::VocabularyTooLarge { .. }));
    expect!["the tokenizer's vocabulary (320 tokens) exceeds the model's embedding (319 rows)"]
        .assert_eq(&error.to_string());
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Reads a saved tokenizer after `spoil` and compares the error.
fn check(spoil: impl FnOnce(&Path), expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    train().save(dir.path()).unwrap();
    spoil(dir.path());
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    expected.assert_eq(&error.replace(dir.path().to_str().unwrap(), "DIR"));
}

#[test]
fn a_bad_tokenizer_is_named() {
    let write =
        |name: &'static str, text: &'static [u8]| move |dir: &Path| std::fs::write(dir.join(name), text).unwrap();
    check(
        |dir| std::fs::remove_file(dir.join(TOKENIZER_FILE)).unwrap(),
        expect![
            "DIR: has no tokenizer.json, nor vocab.json and merges.txt, nor tokenizer.model; specify a folder that has one of these, or train a tokenizer"
        ],
    );
    check(write(TOKENIZER_FILE, b"{"), expect!["DIR/tokenizer.json: EOF while parsing an object at line 1 column 1"]);
    check(write(TOKENIZER_FILE, b"{}"), expect!["DIR/tokenizer.json: model: is missing"]);
    check(write(TOKENIZER_FILE, b"\xff\xfe"), expect!["DIR/tokenizer.json: is UTF-16; save it as UTF-8"]);
    check(
        write(TOKENIZER_CONFIG_FILE, b"{"),
        expect!["DIR/tokenizer_config.json: EOF while parsing an object at line 1 column 1"],
    );
    let edit = |edit: fn(&mut Value)| {
        move |dir: &Path| {
            let mut json = read(&dir.join(TOKENIZER_FILE));
            edit(&mut json);
            std::fs::write(dir.join(TOKENIZER_FILE), json.to_string()).unwrap();
        }
    };
    // Its highest id plus one does not fit into 32 bits.
    check(
        edit(|json| json["model"]["vocab"]["z"] = json!(u32::MAX)),
        expect!["DIR/tokenizer.json: model.vocab: has a token id that does not fit in 32 bits"],
    );
    check(
        edit(|json| json["model"]["vocab"]["z"] = json!(-1)),
        expect!["DIR/tokenizer.json: invalid value: integer `-1`, expected u64 at line 1 column 1318"],
    );
    check(
        edit(|json| json["model"]["merges"][0] = json!(["no", "where"])),
        expect!["DIR/tokenizer.json: Token `no` out of vocabulary at line 1 column 4277"],
    );
    let no_vocabulary = |json: &mut Value| {
        json["model"]["vocab"] = json!({});
        json["model"]["merges"] = json!([]);
        json["added_tokens"] = json!([]);
    };
    check(edit(no_vocabulary), expect!["DIR/tokenizer.json: has no vocabulary"]);
    let bad_pair = |dir: &Path| {
        std::fs::remove_file(dir.join(TOKENIZER_FILE)).unwrap();
        std::fs::write(dir.join("vocab.json"), r#"{"a": 0}"#).unwrap();
        std::fs::write(dir.join("merges.txt"), "a b\n").unwrap();
    };
    check(bad_pair, expect!["DIR/merges.txt: line 1 merges `a` and `b`, but vocab.json has no token `b`"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Byte-level BPE is lossless for any text.
    #[test]
    fn any_text_survives(texts in prop::collection::vec(any::<String>(), 0..8)) {
        let tokenizer = train();
        let ids = tokenizer.encode_batch(&texts).unwrap();
        for (text, ids) in texts.iter().zip(&ids) {
            prop_assert_eq!(&tokenizer.encode(text).unwrap(), ids);
            prop_assert_eq!(&tokenizer.decode(ids).unwrap(), text);
        }
    }
}
