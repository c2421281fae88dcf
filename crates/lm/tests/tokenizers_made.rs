//! Folders of `scripts/faults/tokenizers.py`: ids equal those of transformers, and harmful files
//! are rejected.
//!
//! `tokenizers-made.json` contains the results of versions 4.57.6 and 5.24.0 for each folder (the
//! script's `--judge`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect;
use inheritune_lm::tokenizer::Tokenizer;
use serde::Deserialize;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Golden {
    lines: Vec<String>,
    cases: BTreeMap<String, BTreeMap<String, Judged>>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Judged {
    Refused { refused: String },
    Read(Box<Read>),
}

#[derive(Debug, Deserialize, PartialEq)]
struct Read {
    length: u64,
    eos: Option<u32>,
    ids: Vec<Vec<u32>>,
    with_added: Vec<Vec<u32>>,
}

fn golden() -> Golden {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers-made.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Makes the named folders, or all if none are named.
fn made(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/faults/tokenizers.py");
    let status = Command::new("python3").arg(script).arg(dir.path()).args(names).status().unwrap();
    assert!(status.success());
    dir
}

/// The case's error, with its folder replaced by DIR.
fn error(dir: &TempDir, case: &str) -> String {
    let folder: PathBuf = dir.path().join(case);
    match Tokenizer::from_dir(&folder) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string().replace(folder.to_str().unwrap(), "DIR"),
    }
}

/// How our reading of a folder differs from a version's; empty if it does not.
fn differences(tokenizer: &Tokenizer, lines: &[String], judged: &Judged) -> Vec<String> {
    let read = match judged {
        Judged::Refused { .. } => return vec!["refused there".to_owned()],
        Judged::Read(read) => read,
    };
    let mut differences = Vec::new();
    for (what, with_added, theirs) in [("ids", false, &read.ids), ("with added", true, &read.with_added)] {
        let ours = |line: &String| if with_added { tokenizer.encode_with_added(line) } else { tokenizer.encode(line) };
        let differ = lines.iter().zip(theirs).filter(|(line, theirs)| ours(line).unwrap() != **theirs);
        let differ: Vec<&String> = differ.map(|(line, _)| line).collect();
        if let Some(first) = differ.first() {
            differences.push(format!("{what} of {} lines such as {first:?}", differ.len()));
        }
    }
    if read.eos.is_some() && read.eos != tokenizer.end_of_text_id() {
        differences.push(format!("eos {:?}, there {:?}", tokenizer.end_of_text_id(), read.eos));
    }
    if u64::from(tokenizer.vocab_size()) > read.length {
        differences.push(format!("{} rows, {} there", tokenizer.vocab_size(), read.length));
    }
    differences
}

/// Every folder that both versions read alike is read the same way. If they differ, the output says
/// which version this crate follows.
#[test]
fn c7_ids_are_those_of_transformers() {
    let (golden, dir) = (golden(), made(&[]));
    let mut said = String::new();
    for (case, by_version) in &golden.cases {
        let [four, five] = ["4.57.6", "5.24.0"].map(|version| &by_version[version]);
        let ours = match Tokenizer::from_dir(&dir.path().join(case)) {
            Ok(tokenizer) => [four, five].map(|judged| differences(&tokenizer, &golden.lines, judged)),
            Err(_) => match [four, five] {
                [Judged::Refused { .. }, Judged::Refused { .. }] => continue,
                _ => [four, five].map(|judged| match judged {
                    Judged::Refused { .. } => Vec::new(),
                    Judged::Read(_) => vec!["refused here".to_owned()],
                }),
            },
        };
        match ours {
            [four, five] if four.is_empty() && five.is_empty() => {}
            [four, _] if four.is_empty() => said.push_str(&format!("{case}: as 4.57\n")),
            [_, five] if five.is_empty() => said.push_str(&format!("{case}: as 5.24\n")),
            [four, five] if four == five => said.push_str(&format!("{case}: {}\n", five.join("; "))),
            [four, five] => said.push_str(&format!("{case}: 4.57: {}; 5.24: {}\n", four.join("; "), five.join("; "))),
        }
    }
    expect![[r#"
        config_prefix_space: as 5.24
        extra_and_additional: as 5.24
        extra_special_tokens_list: as 5.24
        gpt2_vocab_txt_folder: refused here
        json_ignore_merges: 328 rows, 327 there
        json_no_class_in_config: as 5.24
        json_of_gpt2_with_a_normalizer: as 4.57
        json_of_gpt2_without_class: as 4.57
        json_of_llama_chat: as 4.57
        json_of_llama_class: as 4.57
        json_of_llama_class_byte_level: as 5.24
        json_of_llama_flags: 4.57: with added of 22 lines such as ""; 5.24: ids of 4 lines such as " "; with added of 4 lines such as " "
        json_of_neox_without_normalizer: as 4.57
        json_prefix_space: as 5.24
        map_lists_tokens: as 4.57
        no_tokenizer_config: as 5.24
        own_token_keys: as 5.24
        pair_duplicate_merges: as 5.24
        pair_eos: as 5.24
        pair_merges_bom: as 5.24
        pair_spaces_at_ends: as 5.24
        pair_without_version: as 5.24
        sp_added_tokens_json: 4.57: ids of 5 lines such as "<|im_start|>user\nhello<|im_end|>"; with added of 5 lines such as "<|im_start|>user\nhello<|im_end|>"; 5.24: ids of 6 lines such as " "; with added of 22 lines such as ""
        sp_extra_list: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 5 lines such as " "; with added of 22 lines such as ""
        sp_is_tiktoken: refused here
        sp_llama: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 4 lines such as " "; with added of 22 lines such as ""
        sp_llama_chat: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 5 lines such as " "; with added of 22 lines such as ""
        sp_llama_chat_not_legacy: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 22 lines such as ""
        sp_llama_flags: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 4 lines such as " "; with added of 4 lines such as " "
        sp_llama_legacy: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 4 lines such as " "; with added of 22 lines such as ""
        sp_llama_not_legacy: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 22 lines such as ""
        sp_pad_in_map: 4.57: ids of 1 lines such as "</s> and <s> and <unk>"; with added of 1 lines such as "</s> and <s> and <unk>"; 5.24: ids of 5 lines such as " "; with added of 22 lines such as ""
        sp_spiece_t5: refused here
    "#]].assert_eq(&said);
}

#[test]
fn a_refusal_names_the_file_and_what_to_do() {
    let names = [
        "sp_is_tiktoken",
        "pair_merges_bom",
        "pair_vocab_bom",
        "pair_empty_lines",
        "pair_merge_of_three",
        "pair_unknown_merge",
        "pair_spaces_at_ends",
        "gpt2_vocab_txt_folder",
        "sp_spiece_t5",
    ];
    let dir = made(&names);
    let said: Vec<String> = names.iter().map(|name| format!("{name}: {}", error(&dir, name))).collect();
    expect![[r#"
        sp_is_tiktoken: DIR/tokenizer.model: is not a SentencePiece model but a tiktoken vocabulary (base64 and ranks), which is not supported: convert it to a tokenizer.json with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)
        pair_merges_bom: DIR/merges.txt: begins with a byte order mark (EF BB BF); save it as UTF-8 without one
        pair_vocab_bom: DIR/vocab.json: begins with a byte order mark (EF BB BF); save it as UTF-8 without one
        pair_empty_lines: DIR/merges.txt: line 72 is empty; expected two tokens separated by one space
        pair_merge_of_three: DIR/merges.txt: line 72 is `t h e`; expected two tokens separated by one space
        pair_unknown_merge: DIR/merges.txt: line 72 merges `no` and `where`, but vocab.json has no token `no`
        pair_spaces_at_ends: DIR/merges.txt: line 2 is `\u{120} t `; expected two tokens separated by one space
        gpt2_vocab_txt_folder: DIR: has no tokenizer.json, nor vocab.json and merges.txt, nor tokenizer.model; its vocab.txt is not supported: convert it to a tokenizer.json with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)
        sp_spiece_t5: DIR: has no tokenizer.json, nor vocab.json and merges.txt, nor tokenizer.model; its spiece.model is not supported: convert it to a tokenizer.json with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"#]].assert_eq(&said.join("\n"));
}

#[test]
fn s2_harmful_tokenizers_are_refused_by_the_name_of_the_part() {
    let cases = [
        ("harm_nested_replace", "normalizer"),
        ("harm_nested_prepend", "normalizer"),
        ("harm_prepend", "normalizer.prepend"),
        ("harm_replace_nothing", "normalizer"),
        ("harm_nested_repetition", "pre_tokenizer.pattern"),
        ("harm_catastrophe", "normalizer.pattern"),
        ("harm_deep_repetition", "pre_tokenizer.pattern"),
        ("harm_large_repetition", "normalizer.pattern"),
        ("harm_template", "post_processor"),
        ("harm_byte_level_twenty_times", "normalizer.normalizers"),
        ("harm_deep_sequence", "deep"),
        ("harm_dropout", "model.dropout"),
        ("harm_back_reference", "pre_tokenizer.pattern"),
        ("harm_cubic", "pre_tokenizer takes"),
        ("harm_unknown_class", "tokenizer.json"),
    ];
    let dir = made(&cases.map(|(name, _)| name));
    for (name, part) in cases {
        let said = error(&dir, name);
        assert!(said.starts_with("DIR/tokenizer.json: ") && said.contains(part), "{name}: {said}");
    }
}
