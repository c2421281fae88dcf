//! Compares ids and texts with the reference implementation, on 11,749 lines: prose, ninety
//! languages, and lines made to break tokenizers.
//!
//! `scripts/golden/make-tokenizer-golden.py` makes the lines, the tokenizers and the digests.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use inheritune_domain::id::Sha256Digest;
use inheritune_lm::tokenizer::Tokenizer;
use serde::Deserialize;

/// Lines per digest.
const CHUNK: usize = 100;
const FEWEST_LINES: usize = 10_000;

/// The reference's results for the lines.
#[derive(Deserialize)]
struct Expected {
    reference: String,
    tokens: usize,
    ids: Vec<String>,
    ids_with_added: Vec<String>,
    decoded: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers")
}

static LINES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let file = std::fs::File::open(folder().join("lines.jsonl.gz")).unwrap();
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let lines: Vec<String> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= FEWEST_LINES);
    lines
});

fn expected(case: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(folder().join(case).join("expected.json")).unwrap()).unwrap()
}

/// Digests of the items, each as its length followed by its bytes.
fn digests<T>(items: &[T], pack: impl Fn(&T) -> (usize, Vec<u8>)) -> Vec<String> {
    let chunk = |items: &[T]| {
        let mut packed = Vec::new();
        for item in items {
            let (length, bytes) = pack(item);
            packed.extend((length as u32).to_le_bytes());
            packed.extend(bytes);
        }
        Sha256Digest::of(&packed).to_string()[..16].to_owned()
    };
    items.chunks(CHUNK).map(chunk).collect()
}

fn digests_of_ids(ids: &[Vec<u32>]) -> Vec<String> {
    digests(ids, |ids| (ids.len(), ids.iter().flat_map(|id| id.to_le_bytes()).collect()))
}

/// The chunks that differ, by the index of their first line.
fn differing(found: &[String], expected: &[String]) -> Vec<usize> {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).enumerate().filter(|(_, (a, b))| a != b).map(|(chunk, _)| chunk * CHUNK).collect()
}

fn check(case: &str) {
    let expected = expected(case);
    let tokenizer = Tokenizer::from_dir(&folder().join(case)).unwrap();
    let against = |what: &str, found: &[String], expected_digests: &[String]| {
        let chunks = differing(found, expected_digests);
        let all = expected_digests.len();
        let reference = &expected.reference;
        assert!(
            chunks.is_empty(),
            "{case}: {what} differ from {reference} in {} of {all} chunks: {chunks:?}",
            chunks.len()
        );
    };
    let ids = tokenizer.encode_batch(&LINES).unwrap();
    assert_eq!(ids.iter().map(Vec::len).sum::<usize>(), expected.tokens, "{case}: tokens of {}", expected.reference);
    against("ids", &digests_of_ids(&ids), &expected.ids);
    let one_by_one: Vec<Vec<u32>> = LINES.iter().map(|line| tokenizer.encode_with_added(line).unwrap()).collect();
    against("ids with added tokens", &digests_of_ids(&one_by_one), &expected.ids_with_added);
    let texts: Vec<String> = ids.iter().map(|ids| tokenizer.decode(ids).unwrap()).collect();
    against("texts", &digests(&texts, |text| (text.len(), text.as_bytes().to_vec())), &expected.decoded);
}

#[test]
fn tokenizer_json_as_gpt_2_has_it() {
    check("json-gpt2");
}

#[test]
fn tokenizer_json_with_a_normalizer_and_added_tokens() {
    check("json-gpt-neox");
}

#[test]
fn vocab_and_merges_as_gpt_2_has_them() {
    check("pair-gpt2");
}

#[test]
fn vocab_and_merges_as_opt_has_them() {
    check("pair-opt");
}

#[test]
fn sentencepiece_bpe_as_llama_has_it() {
    check("sentencepiece-llama");
}

#[test]
fn sentencepiece_bpe_that_normalises_and_drops_spaces() {
    check("sentencepiece-openllama");
}

#[test]
fn sentencepiece_bpe_with_unused_and_user_defined_pieces() {
    check("sentencepiece-bpe-unused");
}

#[test]
fn sentencepiece_bpe_with_spaces_at_the_end() {
    check("sentencepiece-bpe-suffix");
}

#[test]
fn sentencepiece_unigram_with_ties() {
    check("sentencepiece-unigram");
}

#[test]
fn sentencepiece_unigram_with_bytes() {
    check("sentencepiece-unigram-bytes");
}

#[test]
fn sentencepiece_unigram_of_others_with_all_of_nfkc() {
    check("sentencepiece-google");
}

/// Changes one file in a copy of `case`, and returns how many chunks of ids then differ.
fn chunks_after(case: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> usize {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join(case)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join(file);
    std::fs::write(&path, change(std::fs::read(&path).unwrap())).unwrap();
    let ids = Tokenizer::from_dir(dir.path()).unwrap().encode_batch(&LINES).unwrap();
    differing(&digests_of_ids(&ids), &expected(case).ids).len()
}

/// Appends a second value of a field of `normalizer_spec` to a model: the last one counts.
fn with_rule(field: u8, value: u8) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    move |model| [model, vec![3 << 3 | 2, 2, field << 3, value]].concat()
}

#[test]
fn a_small_mistake_is_seen() {
    let all = expected("sentencepiece-llama").ids.len();
    let model = "tokenizer.model";
    assert_eq!(chunks_after("sentencepiece-llama", model, |model| model), 0);
    assert_eq!(chunks_after("sentencepiece-llama", model, with_rule(3, 0)), all, "no dummy prefix");
    assert!(chunks_after("sentencepiece-llama", model, with_rule(4, 1)) > 10, "extra spaces dropped");
    assert!(chunks_after("sentencepiece-openllama", model, with_rule(4, 0)) > 10, "extra spaces kept");
    let without_merge = |merges: Vec<u8>| {
        let text = String::from_utf8(merges).unwrap();
        let lines: Vec<&str> = text.lines().enumerate().filter(|(at, _)| *at != 700).map(|(_, line)| line).collect();
        lines.join("\n").into_bytes()
    };
    assert!(chunks_after("pair-opt", "merges.txt", without_merge) > 0, "a merge is missing");
}

/// Tokenizers that may not be part of this repository. `INHERITUNE_TOKENIZERS` is a folder of cases
/// in the script's format, made from the tokenizers of real models.
#[test]
fn tokenizers_of_real_models() {
    let Some(cases) = std::env::var_os("INHERITUNE_TOKENIZERS") else {
        eprintln!("skipped: INHERITUNE_TOKENIZERS is not set to a folder of real tokenizers");
        return;
    };
    for entry in std::fs::read_dir(cases).unwrap() {
        let case = entry.unwrap().path();
        if case.is_dir() {
            check(case.to_str().unwrap());
        }
    }
}
