//! Token sets: what is written can be read, the split is at the end of a document, and files are
//! checked when opened.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::path::Path;

use expect_test::{Expect, expect};
use inheritune_domain::id::Sha256Digest;
use inheritune_lm::LmError;
use inheritune_lm::tokens::{
    self, NewTokenSet, TOKENS_FILE, TRAIN_FILE, TokenSet, TokenSetMeta, TokenSetWriter, TokenType, VALIDATION_FILE,
};
use proptest::prelude::*;

fn new_set(vocab_size: u32, end_of_text_id: Option<u32>) -> NewTokenSet {
    NewTokenSet { vocab_size, end_of_text_id, tokenizer_sha256: Some(Sha256Digest::of(b"tokenizer")) }
}

fn write(dir: &Path, new: NewTokenSet, (documents, validation): (&[Vec<u32>], f64)) -> Result<TokenSetMeta, LmError> {
    let mut writer = TokenSetWriter::create(dir, new)?;
    for document in documents {
        writer.push_document(document, 3 * document.len() as u64)?;
    }
    writer.finish(validation)
}

/// The tokens of both parts, concatenated.
fn read_all(set: &TokenSet) -> Vec<i64> {
    let (train, validation) = (set.train(), set.validation());
    [train.read(0..train.len()).unwrap(), validation.read(0..validation.len()).unwrap()].concat()
}

fn flat(documents: &[Vec<u32>], end: Option<u32>) -> Vec<i64> {
    let documents = documents.iter().filter(|document| !document.is_empty());
    documents.flat_map(|document| document.iter().copied().chain(end)).map(i64::from).collect()
}

#[test]
fn ids_take_two_bytes_while_the_vocabulary_allows_it() {
    for (vocab_size, dtype, size) in
        [(65_536, TokenType::U16, 2), (65_537, TokenType::U32, 4), (u32::MAX, TokenType::U32, 4)]
    {
        let dir = tempfile::tempdir().unwrap();
        let documents = [vec![0, vocab_size - 1, 1], vec![vocab_size - 2]];
        let meta = write(dir.path(), new_set(vocab_size, Some(7)), (&documents, 0.0)).unwrap();
        assert_eq!((meta.dtype, meta.dtype.size_bytes()), (dtype, size));
        assert_eq!(std::fs::metadata(dir.path().join(TRAIN_FILE)).unwrap().len(), 6 * size);
        let set = TokenSet::open(dir.path()).unwrap();
        assert_eq!(set.meta(), &meta);
        assert_eq!(read_all(&set), flat(&documents, Some(7)));
        assert!(set.validation().is_empty());
    }
}

#[test]
fn the_files_are_little_endian_and_described() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), new_set(1000, Some(999)), (&[vec![1, 258], vec![], vec![3]], 0.4)).unwrap();
    assert_eq!(std::fs::read(dir.path().join(TRAIN_FILE)).unwrap(), [1, 0, 2, 1, 231, 3]);
    assert_eq!(std::fs::read(dir.path().join(VALIDATION_FILE)).unwrap(), [3, 0, 231, 3]);
    expect![[r#"
        {
          "version": 1,
          "vocab_size": 1000,
          "end_of_text_id": 999,
          "train_tokens": 3,
          "validation_tokens": 2,
          "documents": 2,
          "text_bytes": 9,
          "dtype": "u16",
          "tokenizer_sha256": "5f97e3774c51edd1d63706c2ec3826c564a067794770cdab0f8c4797971cacf9"
        }
    "#]]
    .assert_eq(&std::fs::read_to_string(dir.path().join(TOKENS_FILE)).unwrap());
}

/// Checks where 10 documents of the given length (including the end-of-text token) are cut.
fn check_cut(length: usize, validation: f64, end: Option<u32>, expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = length - usize::from(end.is_some());
    let meta = write(dir.path(), new_set(50, end), (&vec![vec![1; tokens]; 10], validation)).unwrap();
    expected.assert_eq(&format!("{} + {}", meta.train_tokens, meta.validation_tokens));
}

#[test]
fn the_cut_moves_to_the_end_of_a_document_that_is_near() {
    // Wanted at 75 of 100: 70 and 80 are equally near, and the first one wins.
    check_cut(10, 0.25, Some(0), expect!["70 + 30"]);
    check_cut(10, 0.22, Some(0), expect!["80 + 20"]);
    check_cut(10, 0.28, Some(0), expect!["70 + 30"]);
    // 10 of 1000 wanted: the nearest end is further away than half of that, so the document is
    // split.
    check_cut(100, 0.01, Some(0), expect!["990 + 10"]);
    // Without an end-of-text token, the ends of documents are unknown.
    check_cut(10, 0.25, None, expect!["75 + 25"]);
    // At least one token stays in the training part.
    check_cut(10, 0.99, Some(0), expect!["10 + 90"]);
    check_cut(10, 0.01, Some(0), expect!["99 + 1"]);
}

#[test]
fn a_corpus_without_a_token_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let says = |documents: &[Vec<u32>], validation: f64, expected: Expect| {
        let error = write(dir.path(), new_set(50, None), (documents, validation)).unwrap_err();
        assert!(!dir.path().join(TOKENS_FILE).exists(), "there must not be a token set");
        expected.assert_eq(&error.to_string());
    };
    says(&[], 0.0, expect!["the corpus is empty: no document contains any tokens"]);
    says(&[vec![], vec![]], 0.1, expect!["the corpus is empty: no document contains any tokens"]);
    says(
        &[vec![1]],
        0.1,
        expect![
            "the corpus is empty: 1 tokens cannot be split into a training part and a validation part (validation_fraction = 0.1)"
        ],
    );
    says(
        &[vec![1]],
        0.9,
        expect![
            "the corpus is empty: 1 tokens cannot be split into a training part and a validation part (validation_fraction = 0.9)"
        ],
    );
    says(&[vec![1, 2]], 1.0, expect!["validation_fraction is 1; it must be at least 0 and below 1"]);
    says(&[vec![1, 2]], -0.1, expect!["validation_fraction is -0.1; it must be at least 0 and below 1"]);
    says(&[vec![1, 2]], f64::NAN, expect!["validation_fraction is NaN; it must be at least 0 and below 1"]);
}

#[test]
fn ids_outside_the_vocabulary_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = TokenSetWriter::create(dir.path(), new_set(50, Some(50))).unwrap_err();
    expect!["token id 50 is not below the vocabulary size (50)"].assert_eq(&error.to_string());
    let mut writer = TokenSetWriter::create(dir.path(), new_set(50, None)).unwrap();
    writer.push_document(&[1, 2], 2).unwrap();
    // No token of a bad document is written.
    let error = writer.push_document(&[3, 50], 2).unwrap_err();
    expect!["token id 50 is not below the vocabulary size (50)"].assert_eq(&error.to_string());
    let error = writer.push_document(&[65_536 + 3], 2).unwrap_err();
    expect!["token id 65539 is not below the vocabulary size (50)"].assert_eq(&error.to_string());
    assert_eq!(writer.tokens(), 2);
    let meta = writer.finish(0.0).unwrap();
    assert_eq!((meta.train_tokens, meta.documents, meta.text_bytes), (2, 1, 2));
}

/// Opens a token set (u16, vocabulary 50, 3 + 3 tokens) after `spoil`, and compares the error.
fn check_open(spoil: impl FnOnce(&Path), expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), new_set(50, Some(0)), (&[vec![1, 2], vec![3, 4]], 0.5)).unwrap();
    spoil(dir.path());
    let error = TokenSet::open(dir.path()).unwrap_err().to_string();
    expected.assert_eq(&error.replace(dir.path().to_str().unwrap(), "DIR"));
}

fn edit(key: &'static str, value: serde_json::Value) -> impl FnOnce(&Path) {
    move |dir| {
        let path = dir.join(TOKENS_FILE);
        let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        meta[key] = value;
        std::fs::write(path, meta.to_string()).unwrap();
    }
}

#[test]
fn a_set_that_is_not_what_it_says_is_not_opened() {
    check_open(
        |dir| std::fs::write(dir.join(TRAIN_FILE), [1, 0, 2, 0, 0]).unwrap(),
        expect!["DIR/train.bin: is 5 bytes long, but tokens.json says 3 tokens of 2 bytes"],
    );
    check_open(
        |dir| std::fs::write(dir.join(TRAIN_FILE), [1, 0, 2, 0]).unwrap(),
        expect!["DIR/train.bin: is 4 bytes long, but tokens.json says 3 tokens of 2 bytes"],
    );
    check_open(
        |dir| std::fs::write(dir.join(VALIDATION_FILE), [0; 8]).unwrap(),
        expect!["DIR/validation.bin: is 8 bytes long, but tokens.json says 3 tokens of 2 bytes"],
    );
    check_open(
        |dir| std::fs::remove_file(dir.join(VALIDATION_FILE)).unwrap(),
        expect!["DIR/validation.bin: No such file or directory (os error 2)"],
    );
    check_open(
        |dir| std::fs::remove_file(dir.join(TOKENS_FILE)).unwrap(),
        expect!["DIR/tokens.json: No such file or directory (os error 2)"],
    );
    check_open(
        |dir| std::fs::write(dir.join(TOKENS_FILE), "{").unwrap(),
        expect!["DIR/tokens.json: EOF while parsing an object at line 1 column 1"],
    );
    check_open(edit("version", 2.into()), expect!["DIR/tokens.json: version 2 is not supported (expected 1)"]);
    check_open(
        edit("dtype", "u8".into()),
        expect!["DIR/tokens.json: unknown variant `u8`, expected `u16` or `u32` at line 1 column 129"],
    );
    check_open(
        edit("dtype", "u32".into()),
        expect!["DIR/train.bin: is 6 bytes long, but tokens.json says 3 tokens of 4 bytes"],
    );
    check_open(edit("train_tokens", 0.into()), expect!["the corpus is empty: DIR/tokens.json says 0 train_tokens"]);
    check_open(
        edit("train_tokens", u64::MAX.into()),
        expect!["DIR/train.bin: is 6 bytes long, but tokens.json says 18446744073709551615 tokens of 2 bytes"],
    );
    check_open(
        edit("train_tokens", (1_u64 << 63).into()),
        expect!["DIR/train.bin: is 6 bytes long, but tokens.json says 9223372036854775808 tokens of 2 bytes"],
    );
    check_open(
        edit("end_of_text_id", 50.into()),
        expect!["DIR/tokens.json: end_of_text_id is not below vocab_size (50)"],
    );
    check_open(
        edit("surprise", 1.into()),
        expect![
            "DIR/tokens.json: unknown field `surprise`, expected one of `version`, `vocab_size`, `end_of_text_id`, `train_tokens`, `validation_tokens`, `documents`, `text_bytes`, `dtype`, `tokenizer_sha256`, `source_train_tokens` at line 1 column 227"
        ],
    );
    check_open(
        edit("tokenizer_sha256", "no digest".into()),
        expect!["DIR/tokens.json: Odd number of digits at line 1 column 162"],
    );
}

#[test]
fn reading_outside_of_a_part_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), new_set(50, Some(0)), (&[vec![1, 2], vec![3, 4]], 0.5)).unwrap();
    let set = TokenSet::open(dir.path()).unwrap();
    let says = |range: Range<u64>, expected: Expect| {
        let error = set.train().read(range).unwrap_err().to_string();
        expected.assert_eq(&error.replace(dir.path().to_str().unwrap(), "DIR"));
    };
    says(0..4, expect!["DIR/train.bin: contains 3 tokens, but 4 are required"]);
    says(3..u64::MAX, expect!["DIR/train.bin: contains 3 tokens, but 18446744073709551615 are required"]);
    assert_eq!(set.train().read(1..3).unwrap(), [2, 0]);
    assert_eq!(set.train().read(3..3).unwrap(), [] as [i64; 0]);
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 3..1;
    assert_eq!(set.train().read(backwards).unwrap(), [] as [i64; 0]);
    // An id in the file that is outside the vocabulary is found when it is read.
    std::fs::write(dir.path().join(TRAIN_FILE), [1, 0, 50, 0, 0, 0]).unwrap();
    let set = TokenSet::open(dir.path()).unwrap();
    let error = set.train().read(0..3).unwrap_err().to_string();
    expect!["DIR/train.bin: token 1 has id 50, which is not below the vocabulary size (50)"]
        .assert_eq(&error.replace(dir.path().to_str().unwrap(), "DIR"));
}

#[test]
fn a_removed_set_is_gone_and_other_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    tokens::remove(dir.path()).unwrap();
    write(dir.path(), new_set(50, None), (&[vec![1, 2]], 0.5)).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    tokens::remove(dir.path()).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tokenizer.json"]);
}

#[test]
fn a_second_attempt_leaves_nothing_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), new_set(50, None), (&[vec![1; 100]], 0.5)).unwrap();
    write(dir.path(), new_set(50, None), (&[vec![2, 3]], 0.0)).unwrap();
    let set = TokenSet::open(dir.path()).unwrap();
    assert_eq!((set.train().len(), set.validation().len()), (2, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// No token is lost or moved, both parts have tokens, and the cut is where it may be.
    #[test]
    fn the_parts_are_the_documents(
        documents in prop::collection::vec(prop::collection::vec(0_u32..300, 0..30), 1..20),
        large in any::<bool>(),
        ends in any::<bool>(),
        validation in prop_oneof![Just(0.0), 0.0..1.0],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let vocab_size = if large { 70_000 } else { 301 };
        // No document contains the end-of-text token.
        let end = ends.then_some(300);
        let all = flat(&documents, end);
        let total = all.len() as u64;
        let wanted = (total as f64 * validation).round() as u64;
        match write(dir.path(), new_set(vocab_size, end), (&documents, validation)) {
            Err(LmError::EmptyCorpus { .. }) => prop_assert!(total == 0 || wanted == 0 || wanted == total),
            Err(error) => prop_assert!(false, "{}", error),
            Ok(meta) => {
                let set = TokenSet::open(dir.path()).unwrap();
                prop_assert_eq!(read_all(&set), all.clone());
                prop_assert_eq!(set.meta(), &meta);
                prop_assert_eq!(meta.train_tokens + meta.validation_tokens, total);
                prop_assert_eq!(meta.documents, documents.iter().filter(|d| !d.is_empty()).count() as u64);
                prop_assert!(meta.train_tokens > 0);
                prop_assert_eq!(meta.validation_tokens == 0, validation == 0.0);
                let (cut, aimed_at) = (meta.train_tokens, total - wanted);
                prop_assert!(cut.abs_diff(aimed_at) <= wanted / 2);
                let starts: Vec<u64> = (1..total).filter(|at| Some(all[*at as usize - 1]) == end.map(i64::from)).collect();
                let reachable = starts.iter().any(|start| start.abs_diff(aimed_at) <= wanted / 2);
                prop_assert_eq!(wanted > 0 && reachable, wanted > 0 && starts.contains(&cut));
            }
        }
    }
}
