#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Checks the result of parsing the header of a file with `json` and `data_bytes` bytes of data.
fn check(json: &str, data_bytes: u64, expected: Expect) {
    let parsed = SafetensorsHeader::parse(json.as_bytes(), PREFIX_BYTES + json.len() as u64 + data_bytes);
    let text = match parsed {
        Ok(header) => header
            .tensors()
            .iter()
            .map(|t| format!("{} {} {:?} {:?}\n", t.name, t.dtype, t.shape, t.bytes))
            .collect::<String>(),
        Err(error) => format!("error: {error}\n"),
    };
    expected.assert_eq(&text);
}

#[test]
fn good_headers() {
    check(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"a.x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}   "#,
        12,
        expect![[r#"
            a.x F32 [1, 2] 154..162
            b F16 [2] 162..166
        "#]],
    );
    // Scalars and empty tensors are valid.
    check(
        r#"{"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"BF16","shape":[0,4],"data_offsets":[8,8]}}"#,
        8,
        expect![[r#"
            s I64 [] 117..125
            e BF16 [0, 4] 125..125
        "#]],
    );
    check("{}", 0, expect![""]);
}

#[test]
fn a_header_that_is_not_what_it_should_be() {
    check("", 0, expect![["error: its header is not valid: it does not start with `{`\n"]]);
    check(" {}", 0, expect![["error: its header is not valid: it does not start with `{`\n"]]);
    check(
        r#"{"a":{"dtype":"F32"#,
        0,
        expect![[r#"
            error: its header is not valid: EOF while parsing a string at line 1 column 18
        "#]],
    );
    check(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}"#,
        4,
        expect![[r#"
            error: its header is not valid: unknown field `more`, expected one of `dtype`, `shape`, `data_offsets` at line 1…
        "#]],
    );
    check(
        r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#,
        4,
        expect![[r#"
            error: its header is not valid: a tensor has more than 8 dimensions at line 1 column 47
        "#]],
    );
    check(
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        4,
        expect![[r#"
            error: its header is not valid: invalid value: integer `-1`, expected u64 at line 1 column 31
        "#]],
    );
}

#[test]
fn a_tensor_that_cannot_be() {
    check(
        r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        expect![[r#"
            error: tensor `a` has dtype `F4`; supported are F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL. It is a dtype of quantised weights: use the original model, or dequantise this one first (transformers: `model = AutoModelForCausalLM.from_pretrained(FOLDER).dequantize()`, then `model.save_pretrained(NEW)`)
        "#]],
    );
    check(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
        expect![[r#"
            error: tensor `a` has offsets [0, 4], but F32 [2] takes 8 bytes
        "#]],
    );
    check(
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        0,
        expect![[r#"
            error: tensor `a` has shape [4294967296, 4294967296], whose size does not fit in 64 bits
        "#]],
    );
    check(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#,
        4,
        expect![[r#"
            error: tensor `a` has offsets [4, 0], but U8 [4] takes 4 bytes
        "#]],
    );
    check(
        r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}}"#,
        0,
        expect![[r#"
            error: tensor `a` has offsets [18446744073709551615, 18446744073709551615], beyond any file
        "#]],
    );
    check(
        r#"{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
        expect![[r#"
            error: tensor `a\u{0}b` has a name with characters other than A-Z a-z 0-9 . _ / -
        "#]],
    );
    check(
        r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
        expect![[r#"
            error: tensor `` has an empty name
        "#]],
    );
    let long = format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "n".repeat(513));
    check(
        &long,
        1,
        expect![[r#"
            error: tensor `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…` has a name of 513 bytes; at most 512 are allowed
        "#]],
    );
}

#[test]
fn tensors_that_do_not_fill_the_file() {
    let two = |first: [u64; 2], second: [u64; 2]| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":{first:?}}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":{second:?}}}}}"#,
            first[1] - first[0],
            second[1] - second[0]
        )
    };
    check(
        &two([0, 4], [3, 8]),
        8,
        expect![[r#"
            error: tensor `b` overlaps the previous tensor: it starts at 3 but should start at 4
        "#]],
    );
    check(
        &two([0, 4], [5, 8]),
        8,
        expect![[r#"
            error: tensor `b` leaves a gap after the previous tensor: it starts at 5 but should start at 4
        "#]],
    );
    check(
        &two([0, 4], [4, 8]),
        7,
        expect![[r#"
            error: its header describes 123 bytes but the file has 122; it is truncated or has bytes that do not belong to any tensor
        "#]],
    );
    check(
        &two([0, 4], [4, 8]),
        9,
        expect![[r#"
            error: its header describes 123 bytes but the file has 124; it is truncated or has bytes that do not belong to any tensor
        "#]],
    );
    check(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
        expect![[r#"
            error: tensor `a` occurs twice
        "#]],
    );
}

#[test]
fn the_length_is_not_believed() {
    let length = |prefix: &[u8], file| SafetensorsHeader::length(prefix, file).map_err(|e| e.to_string());
    assert_eq!(
        length(&[0; 3], 3),
        Err("is 3 bytes long, too short for a safetensors file; it may be truncated".into())
    );
    assert_eq!(length(&40_u64.to_le_bytes(), 48), Ok(40));
    assert_eq!(
        length(&41_u64.to_le_bytes(), 48),
        Err("its header of 41 bytes does not fit in a file of 48 bytes; it is truncated".into())
    );
    assert_eq!(length(&MAX_HEADER_BYTES.to_le_bytes(), 1 << 40), Ok(MAX_HEADER_BYTES));
    assert_eq!(
        length(&u64::MAX.to_le_bytes(), u64::MAX),
        Err(format!("its header of {} bytes is longer than the limit of {MAX_HEADER_BYTES}", u64::MAX))
    );
}

#[test]
fn too_many_tensors_are_refused() {
    let entries: Vec<String> =
        (0..=MAX_TENSORS).map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let json = |n: usize| format!("{{{}}}", entries[..n].join(","));
    let parse = |json: String| SafetensorsHeader::parse(json.as_bytes(), PREFIX_BYTES + json.len() as u64);
    assert_eq!(parse(json(MAX_TENSORS)).unwrap().tensors().len(), MAX_TENSORS);
    assert!(parse(json(MAX_TENSORS + 1)).unwrap_err().to_string().contains("more than 65536 tensors"));
}

/// Short entries would take twenty times their own size in memory.
#[test]
fn too_much_metadata_is_refused() {
    let entries: Vec<String> = (0..=MAX_METADATA).map(|i| format!(r#""{i}":"""#)).collect();
    let json = |n: usize| format!(r#"{{"__metadata__":{{{}}}}}"#, entries[..n].join(","));
    let parse = |json: String| SafetensorsHeader::parse(json.as_bytes(), PREFIX_BYTES + json.len() as u64);
    assert_eq!(parse(json(MAX_METADATA)).unwrap().metadata().len(), MAX_METADATA);
    let error = parse(json(MAX_METADATA + 1)).unwrap_err().to_string();
    assert!(error.contains("more than 4096 entries of metadata"), "{error}");
}

#[test]
fn what_is_written_is_aligned_and_deterministic() {
    let tensors = [
        NewTensor { name: "w", dtype: Dtype::F32, shape: &[2, 3] },
        NewTensor { name: "b", dtype: Dtype::Bf16, shape: &[3] },
    ];
    let bytes = write_header(&tensors).unwrap();
    assert_eq!(bytes, write_header(&tensors).unwrap());
    assert_eq!(bytes.len() % 8, 0);
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), bytes.len() as u64 - 8);
    expect![[r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}}"#]]
        .assert_eq(std::str::from_utf8(&bytes[8..]).unwrap().trim_end());

    let twice = [tensors[0].clone(), tensors[0].clone()];
    assert_eq!(write_header(&twice).unwrap_err().to_string(), "tensor `w` occurs twice");
    let huge = [NewTensor { name: "w", dtype: Dtype::F32, shape: &[u64::MAX, 2] }];
    assert_eq!(write_header(&huge).unwrap_err().to_string(), "tensor `w` is too large");
    let metadata = [NewTensor { name: METADATA_KEY, dtype: Dtype::F32, shape: &[1] }];
    assert_eq!(write_header(&metadata).unwrap_err().to_string(), "tensor `__metadata__` occurs twice");
}

fn any_tensor() -> impl Strategy<Value = (String, Dtype, Vec<u64>)> {
    let dtype = proptest::sample::select(Dtype::ALL.to_vec());
    ("[A-Za-z0-9._/-]{1,20}", dtype, proptest::collection::vec(0_u64..6, 0..=MAX_RANK))
}

/// Checks the invariants of every accepted header.
fn assert_sound(header: &SafetensorsHeader, json_bytes: u64, file_bytes: u64) -> Result<(), TestCaseError> {
    prop_assert!(header.tensors().len() <= MAX_TENSORS);
    let mut names = BTreeSet::new();
    let mut at = PREFIX_BYTES + json_bytes;
    for tensor in header.tensors() {
        prop_assert_eq!(tensor.bytes.start, at, "a gap or an overlap before {}", tensor.name);
        prop_assert_eq!(Some(tensor.bytes.end - tensor.bytes.start), size_bytes(tensor.dtype, &tensor.shape));
        prop_assert!(tensor.shape.len() <= MAX_RANK);
        prop_assert!((1..=MAX_NAME_BYTES).contains(&tensor.name.len()) && tensor.name.is_ascii());
        prop_assert!(names.insert(&tensor.name), "{} occurs twice", tensor.name);
        at = tensor.bytes.end;
    }
    prop_assert_eq!(at, file_bytes);
    Ok(())
}

/// Mostly small numbers, and edge cases of arithmetic.
fn any_number() -> impl Strategy<Value = u64> {
    let edges = vec![u64::MAX, u64::MAX - 1, u64::MAX / 2, 1 << 63, 1 << 32, u64::from(u32::MAX)];
    prop_oneof![8 => 0_u64..9, 1 => proptest::sample::select(edges)]
}

/// An entry of a header, valid or not.
fn any_entry() -> impl Strategy<Value = String> {
    let name = prop_oneof![8 => "[ab]", 1 => "\\PC{0,3}", 1 => Just("n".repeat(MAX_NAME_BYTES + 1)), 1 => Just(METADATA_KEY.to_owned())];
    let dtype =
        prop_oneof![8 => proptest::sample::select(vec!["F32", "BF16", "U8", "BOOL"]), 1 => Just("F4"), 1 => Just("")];
    let shape = proptest::collection::vec(any_number(), 0..=MAX_RANK + 1);
    (name, dtype, shape, any_number(), any_number()).prop_map(|(name, dtype, shape, begin, end)| {
        let name = serde_json::to_string(&name).unwrap();
        format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    })
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    for open in ["[", "{\"a\":"] {
        let json = format!("{{\"__metadata__\":{}", open.repeat(1 << 20));
        assert!(SafetensorsHeader::parse(json.as_bytes(), 1 << 30).is_err());
        let json = format!("{{\"a\":{{\"shape\":[1,1,1,1,1,1,1,1,{}", open.repeat(1 << 20));
        assert!(SafetensorsHeader::parse(json.as_bytes(), 1 << 30).is_err());
    }
}

proptest! {
    #[test]
    fn a_written_header_is_read_back(tensors in proptest::collection::btree_map("[A-Za-z0-9./-]{1,20}", any_tensor(), 0..12)) {
        let tensors: Vec<NewTensor<'_>> =
            tensors.iter().map(|(name, (_, dtype, shape))| NewTensor { name, dtype: *dtype, shape }).collect();
        let bytes = write_header(&tensors).unwrap();
        let data: u64 = tensors.iter().map(|t| size_bytes(t.dtype, t.shape).unwrap()).sum();
        let file_bytes = bytes.len() as u64 + data;
        prop_assert_eq!(SafetensorsHeader::length(&bytes[..8], file_bytes).unwrap(), bytes.len() as u64 - 8);
        let header = SafetensorsHeader::parse(&bytes[8..], file_bytes).unwrap();
        let mut at = bytes.len() as u64;
        for tensor in header.tensors() {
            let written = tensors.iter().find(|t| t.name == tensor.name).unwrap();
            prop_assert_eq!((tensor.dtype, tensor.shape.as_slice()), (written.dtype, written.shape));
            prop_assert_eq!(tensor.bytes.start, at);
            at = tensor.bytes.end;
        }
        prop_assert_eq!(at, file_bytes);
        prop_assert_eq!(header.tensors().len(), tensors.len());
    }

    // Any bytes result in a header of the whole file or an error, never in a panic.
    #[test]
    fn damaged_headers_never_panic(cut in 0_usize..160, flips in proptest::collection::vec((0_usize..160, any::<u8>()), 0..6), data in 0_u64..40) {
        let good = br#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"a.x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
        let mut json = good.to_vec();
        for (at, byte) in flips {
            let at = at % json.len();
            json[at] = byte;
        }
        json.truncate(json.len() - cut.min(json.len()) / 8);
        let file_bytes = PREFIX_BYTES + json.len() as u64 + data;
        if let Ok(header) = SafetensorsHeader::parse(&json, file_bytes) {
            assert_sound(&header, json.len() as u64, file_bytes)?;
        }
    }

    #[test]
    fn any_bytes_are_answered(prefix in proptest::collection::vec(any::<u8>(), 0..12), json in proptest::collection::vec(any::<u8>(), 0..64), file_bytes in any_number()) {
        if let Ok(header_bytes) = SafetensorsHeader::length(&prefix, file_bytes) {
            prop_assert!(header_bytes <= MAX_HEADER_BYTES && header_bytes + PREFIX_BYTES <= file_bytes);
        }
        let file_bytes = PREFIX_BYTES + json.len() as u64;
        if let Ok(header) = SafetensorsHeader::parse(&json, file_bytes) {
            assert_sound(&header, json.len() as u64, file_bytes)?;
        }
    }

    #[test]
    fn entries_that_contradict_each_other_are_refused(entries in proptest::collection::vec(any_entry(), 0..4), data in any_number()) {
        let json = format!("{{{}}}", entries.join(","));
        let Some(file_bytes) = (PREFIX_BYTES + json.len() as u64).checked_add(data) else { return Ok(()) };
        if let Ok(header) = SafetensorsHeader::parse(json.as_bytes(), file_bytes) {
            assert_sound(&header, json.len() as u64, file_bytes)?;
        }
    }

    /// A valid header with one number changed is rejected, unless it still describes the file
    /// exactly.
    #[test]
    fn one_wrong_number_is_noticed(
        sizes in proptest::collection::vec(0_u64..5, 1..5),
        order in any::<proptest::sample::Index>(),
        which in any::<proptest::sample::Index>(),
        number in any_number(),
    ) {
        let mut at = 0;
        let mut entries: Vec<[u64; 3]> = sizes.iter().map(|size| { at += size; [*size, at - size, at] }).collect();
        let turn = order.index(entries.len());
        entries.rotate_left(turn);
        let (entry, field) = (which.index(entries.len()), which.index(3));
        entries[entry][field] = number;
        let tensors: Vec<String> = entries.iter().enumerate().map(|(i, [size, begin, end])| {
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
        }).collect();
        let json = format!("{{{}}}", tensors.join(","));
        let file_bytes = PREFIX_BYTES + json.len() as u64 + at;
        if let Ok(header) = SafetensorsHeader::parse(json.as_bytes(), file_bytes) {
            assert_sound(&header, json.len() as u64, file_bytes)?;
        }
    }
}
