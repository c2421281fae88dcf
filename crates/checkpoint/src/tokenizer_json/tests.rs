#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::TokenizerJson;

fn file(key: &str, value: Value) -> Value {
    let mut file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "<s>", "special": true}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    });
    match key.strip_prefix("model.") {
        Some(inner) => file["model"][inner] = value,
        None => file[key] = value,
    }
    file
}

fn check(key: &str, value: Value, expected: Expect) {
    let found = match TokenizerJson::parse(file(key, value).to_string().as_bytes()) {
        Ok(TokenizerJson { entries, growth }) => format!("{entries} entries, {growth} times as long"),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&found);
}

fn replace(content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": "a"}, "content": content})
}

#[test]
fn what_a_part_may_do_is_known() {
    check("normalizer", Value::Null, expect!["3 entries, 1 times as long"]);
    check("normalizer", json!({"type": "NFC"}), expect!["3 entries, 1 times as long"]);
    let llama = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    check("normalizer", llama, expect!["3 entries, 12 times as long"]);
    let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    check("normalizer", spaces, expect!["3 entries, 1 times as long"]);
    check("pre_tokenizer", json!({"type": "Metaspace", "replacement": "▁"}), expect!["3 entries, 4 times as long"]);
    check("added_tokens", json!([{"id": 9, "content": "<x>"}]), expect!["10 entries, 1 times as long"]);
    check("model.vocab", json!([["a", -1.0], ["b", 0]]), expect!["3 entries, 1 times as long"]);
}

#[test]
fn s2_parts_that_cost_too_much_are_refused_by_name() {
    let nested = json!({"type": "Sequence", "normalizers": [replace(&"a".repeat(200)), replace(&"a".repeat(200))]});
    check(
        "normalizer",
        nested,
        expect![
            "normalizer.normalizers[0]: can make a text 200 times as long, together with the parts before it; at most 64 times is accepted"
        ],
    );
    let nested = json!({"type": "Sequence", "normalizers": [replace("aaaaaaaaaa"), replace("aaaaaaaaaa")]});
    check(
        "normalizer",
        nested,
        expect![
            "normalizer.normalizers[1]: can make a text 100 times as long, together with the parts before it; at most 64 times is accepted"
        ],
    );
    check(
        "normalizer",
        json!({"type": "Prepend", "prepend": "a".repeat(30_000_000)}),
        expect!["normalizer.prepend: is 30000000 bytes long; at most 256 are accepted"],
    );
    check(
        "normalizer",
        json!({"type": "Prepend", "prepend": "a".repeat(200)}),
        expect![
            "normalizer: can make a text 201 times as long, together with the parts before it; at most 64 times is accepted"
        ],
    );
    check(
        "normalizer",
        json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "a".repeat(90)}),
        expect![
            "normalizer: can make a text 91 times as long, together with the parts before it; at most 64 times is accepted"
        ],
    );
    let byte_level = json!({"type": "ByteLevel"});
    check(
        "normalizer",
        json!({"type": "Sequence", "normalizers": vec![byte_level.clone(); 20]}),
        expect![
            "normalizer.normalizers[6]: can make a text 128 times as long, together with the parts before it; at most 64 times is accepted"
        ],
    );
    check(
        "pre_tokenizer",
        json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "Whitespace"}); 100]}),
        expect!["pre_tokenizer.pretokenizers[63]: exceeds the limit of 64 parts"],
    );
    let mut deep = json!({"type": "NFC"});
    for _ in 0..20 {
        deep = json!({"type": "Sequence", "normalizers": [deep]});
    }
    check(
        "normalizer",
        deep,
        expect![
            "normalizer.normalizers[0].normalizers[0].normalizers[0].normalizers[0].normalizers[0].normalizers[0].normalizers[0].normalizers[0].normalizers[0]: is nested more than 8 levels deep"
        ],
    );
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    check(
        "pre_tokenizer",
        split("(a+)+b"),
        expect![
            "pre_tokenizer.pattern: the pattern `(a+)+b` repeats a part that can itself match in several ways, which can take exponential time"
        ],
    );
    check(
        "decoder",
        json!({"type": "Replace", "pattern": {"Regex": r"(a)\1"}, "content": ""}),
        expect![[r#"decoder.pattern: the pattern `(a)\\1` has a backreference, which is not supported"#]],
    );
    check("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), expect!["pre_tokenizer.length: is 0"]);
    check("model.dropout", json!(0.1), expect!["model.dropout: is 0.1: it skips merges at random; set it to null"]);
    check(
        "model.max_input_chars_per_word",
        json!(1_000_000),
        expect!["model.max_input_chars_per_word: is 1000000; at most 1000 are accepted"],
    );
    let template = |single: Value, ids: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": []}}});
    let (text, bos) =
        (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"SpecialToken": {"id": "<s>", "type_id": 0}}));
    check("post_processor", template(json!([bos, text]), json!([2])), expect!["3 entries, 1 times as long"]);
    check(
        "post_processor",
        template(json!([bos, text]), json!([3])),
        expect!["post_processor.special_tokens.<s>: has the id 3, but the highest id of the vocabulary is 2"],
    );
    check(
        "post_processor",
        template(json!([bos, text]), json!(vec![0; 1000])),
        expect!["post_processor: adds 1000 tokens to every text; at most 64 are accepted"],
    );
    check(
        "post_processor",
        template(json!([text, text]), json!([2])),
        expect!["post_processor.single: uses the text 2 times"],
    );
    check(
        "post_processor",
        json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 0]}),
        expect!["post_processor.sep: has the id 9, but the highest id of the vocabulary is 2"],
    );
    check(
        "normalizer",
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAGFhYQA="}),
        expect!["3 entries, 11 times as long"],
    );
    let long = "AAAAA".to_owned() + &"GFh".repeat(200);
    check(
        "normalizer",
        json!({"type": "Precompiled", "precompiled_charsmap": long}),
        expect!["normalizer.precompiled_charsmap: inserts 450 bytes at one position; at most 64 are accepted"],
    );
    check("normalizer", json!(vec![0; 70_000]), expect!["a part has more than 65536 values at line 1 column 131218"]);
}

#[test]
fn a_file_that_is_none_says_what_it_is() {
    let problem = |bytes: &[u8]| TokenizerJson::parse(bytes).unwrap_err().to_string();
    let found = [
        problem(b"\xef\xbb\xbf{}"),
        problem(b"\xff\xfe{\0"),
        problem(b"version https://git-lfs.github.com/spec/v1\n"),
        problem(b"{\"a\": \"\xff\"}"),
        problem(b"{}"),
        problem(b"{"),
        problem(br#"{"model": {}}"#),
        problem(br#"{"model": {"vocab": {"a": -1}}}"#),
        problem(br#"{"model": {"vocab": {"a": 4294967295}}}"#),
        problem(br#"{"model": {"vocab": {}}, "normalizer": {"type": "NFC", "type": "NFD"}}"#),
        problem("[".repeat(1000).as_bytes()),
    ];
    expect![[r#"
        begins with a byte order mark (EF BB BF); save it as UTF-8 without one
        is UTF-16; save it as UTF-8
        is a Git LFS pointer, not the file itself; run `git lfs pull`
        is not UTF-8
        model: is missing
        EOF while parsing an object at line 1 column 1
        missing field `vocab` at line 1 column 12
        invalid value: integer `-1`, expected u64 at line 1 column 28
        model.vocab: has a token id that does not fit in 32 bits
        the key `type` occurs twice at line 1 column 61
        invalid type: sequence, expected u64 at line 1 column 3"#]]
    .assert_eq(&found.join("\n"));
}
