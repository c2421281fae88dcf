//! WikiText as lm-evaluation-harness 0.4.13 scores it: golden records beside the repository, skipped where absent.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use inheritune_domain::artifact::Location;
use inheritune_domain::spec::EvaluationTask;
use inheritune_evaluator::documents::{for_each_document, wikitext};
use inheritune_runtime::worker::StopSignal;
use serde_json::Value;
use sha2::Digest as _;
use support::{assert_close, measure};

fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evaldata");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: {} is absent", dir.display());
    None
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rolling_log_likelihoods_and_perplexities_are_the_harness_s() {
    let Some(shared) = shared() else { return };
    let golden: Vec<Value> = lines(&shared.join("golden/tiny-llama-nobos.jsonl"))
        .into_iter()
        .filter(|record| record["type"] == "rolling" && record["task"] == "local_wikitext")
        .collect();
    assert!(!golden.is_empty());
    let pages = lines(&shared.join("wikitext/test.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let rows: String = pages[..golden.len()].iter().map(|page| format!("{page}\n")).collect();
    std::fs::write(dir.path().join("pages.jsonl"), rows).unwrap();
    for (page, record) in pages.iter().zip(&golden) {
        let text = wikitext::detokenize(page["page"].as_str().unwrap());
        assert_eq!(hex::encode(sha2::Sha256::digest(text)), record["text_sha256"].as_str().unwrap());
    }

    let task = EvaluationTask::RollingPerplexity { source: Location::Uri("file:///pages".to_owned()) };
    let model = shared.join("tinymodels/tiny-llama-nobos");
    let measured = measure(&model, &[(task, dir.path().to_owned())], 4, StopSignal::default()).unwrap();
    let result = &measured.results[0];
    for (row, record) in result.rows.iter().zip(&golden) {
        assert_eq!(row.loss.tokens, record["n_tokens"].as_u64().unwrap());
        assert_close(row.loss.sum_nats, -record["ll"].as_f64().unwrap());
    }
    let harness: Value =
        serde_json::from_slice(&std::fs::read(shared.join("golden/tiny-llama-nobos.results.json")).unwrap()).unwrap();
    for metric in ["word_perplexity", "byte_perplexity", "bits_per_byte"] {
        let found = result.scores.iter().find(|score| score.metric == metric).unwrap().value;
        // The perplexity of a random model is e^15.7: an error of 1e-6 in the exponent is one of 1e-5 in it.
        assert_close(found, harness["local_wikitext"][format!("{metric},none")].as_f64().unwrap());
    }
}

#[test]
fn all_pages_have_the_harness_s_words_and_bytes() {
    let Some(shared) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(shared.join("wikitext/test.jsonl"), dir.path().join("test.jsonl")).unwrap();
    let (mut documents, mut words, mut bytes) = (0, 0, 0);
    for_each_document(dir.path(), |document| {
        documents += 1;
        words += document.length.words;
        bytes += document.length.bytes;
        Ok(())
    })
    .unwrap();
    assert_eq!((documents, words, bytes), (62, 241_335, 1_290_527));
}
