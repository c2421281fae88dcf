#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;

#[test]
fn an_index() {
    let index = ShardIndex::parse(
        br#"{"metadata":{"total_size":3},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#,
        ShardFormat::Safetensors,
    )
    .unwrap();
    assert_eq!(index.files(), ["m-1.safetensors", "m-2.safetensors"]);
}

#[test]
fn a_bad_index() {
    let check = |json: &str, expected: Expect| {
        expected.assert_eq(&ShardIndex::parse(json.as_bytes(), ShardFormat::Safetensors).unwrap_err().to_string())
    };
    check(
        "[]",
        expect![
            "model.safetensors.index.json: invalid length 0, expected an object with `weight_map` at line 1 column 2"
        ],
    );
    check(r#"{"weight_map":{}}"#, expect!["model.safetensors.index.json: `weight_map` is empty"]);
    for file in ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ".safetensors", ""] {
        let json = format!(r#"{{"weight_map":{{"w":"{file}"}}}}"#);
        let error = ShardIndex::parse(json.as_bytes(), ShardFormat::Safetensors).unwrap_err();
        let why =
            if file.contains('/') { "which is in another folder" } else { "which is not a .safetensors file name" };
        assert!(error.to_string().contains(why), "{file}: {error}");
    }
    check(
        r#"{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}"#,
        expect!["model.safetensors.index.json: tensor `w` occurs twice at line 1 column 55"],
    );
    let many: Vec<String> = (0..=MAX_SHARDS).map(|i| format!(r#""w{i}":"{i}.safetensors""#)).collect();
    check(
        &format!(r#"{{"weight_map":{{{}}}}}"#, many.join(",")),
        expect!["model.safetensors.index.json: names 1025 shards; at most 1024 are allowed"],
    );
}

#[test]
fn what_is_skipped_must_be_text_too() {
    let json = b"{\"metadata\":{\"\xff\":1},\"weight_map\":{\"w\":\"m.safetensors\"}}";
    expect!["model.safetensors.index.json: invalid utf-8 sequence of 1 bytes from index 14"]
        .assert_eq(&ShardIndex::parse(json, ShardFormat::Safetensors).unwrap_err().to_string());
}

#[test]
fn an_index_of_pickles() {
    let parse = |file: &str| {
        let json = format!(r#"{{"weight_map":{{"w":"{file}"}}}}"#);
        ShardIndex::parse(json.as_bytes(), ShardFormat::Pickle).map_err(|e| e.to_string())
    };
    assert_eq!(parse("pytorch_model-00001-of-00002.bin").unwrap().files(), ["pytorch_model-00001-of-00002.bin"]);
    expect!["pytorch_model.bin.index.json: tensor `w` is mapped to `m.safetensors`, which is not a .bin file name"]
        .assert_eq(&parse("m.safetensors").unwrap_err());
}
