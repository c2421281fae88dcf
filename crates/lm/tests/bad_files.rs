//! Invalid files give an error that names the file and the tensor, never a panic or a wrong model.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use expect_test::{Expect, expect};
use inheritune_lm::optimizer::AdamW;
use inheritune_lm::{Decoder, Device, LmError, Tensor};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

mod support;
use support::{ADAMW, copy, golden_dir, load};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const STATE: &str = "optimizer.safetensors";

/// Loads a copy of a golden checkpoint after `spoil`; returns the error's text.
fn spoiled(case: &str, spoil: impl FnOnce(&Path)) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden_dir().join(case), dir.path());
    spoil(dir.path());
    Decoder::load(dir.path(), Device::Cpu).map(drop).map_err(|error| message(Some(error), dir.path()))
}

fn check(case: &str, spoil: impl FnOnce(&Path), expected: Expect) {
    expected.assert_eq(&spoiled(case, spoil).expect_err("expected an error"));
}

fn message(error: Option<LmError>, dir: &Path) -> String {
    let error = error.expect("expected an error").to_string();
    error.replace(dir.to_str().unwrap(), "DIR")
}

/// Rewrites the header of a safetensors file without changing the bytes of its tensors.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    std::fs::write(path, file).unwrap();
}

/// Rewrites the tensors of a safetensors file as `change` returns them; returning none drops a
/// tensor.
fn edit_tensors(path: &Path, change: impl Fn(&str, &TensorView<'_>) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file.iter().flat_map(|(name, view)| change(name, &view)).collect();
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let new = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, new).unwrap();
}

fn same(name: &str, view: &TensorView<'_>) -> (String, Dtype, Vec<usize>, Vec<u8>) {
    (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn truncate(path: &Path, to: impl FnOnce(u64) -> u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(to(file.metadata().unwrap().len())).unwrap();
}

#[test]
fn a_truncated_file() {
    check(
        "gpt2-inner",
        |dir| truncate(&dir.join(WEIGHTS), |length| length - 1),
        expect![
            "DIR/model.safetensors: its header describes 67544 bytes but the file has 67543; it is truncated or has bytes that do not belong to any tensor"
        ],
    );
    check(
        "gpt2-inner",
        |dir| truncate(&dir.join(WEIGHTS), |_| 100),
        expect!["DIR/model.safetensors: its header of 2576 bytes does not fit in a file of 100 bytes; it is truncated"],
    );
    check(
        "gpt2-inner",
        |dir| truncate(&dir.join(WEIGHTS), |_| 7),
        expect!["DIR/model.safetensors: is 7 bytes long, too short for a safetensors file; it may be truncated"],
    );
    check(
        "gpt2-inner",
        |dir| truncate(&dir.join(WEIGHTS), |_| 0),
        expect!["DIR/model.safetensors: is 0 bytes long, too short for a safetensors file; it may be truncated"],
    );
}

#[test]
fn a_file_with_bytes_of_no_tensor() {
    check(
        "gpt2-inner",
        |dir| truncate(&dir.join(WEIGHTS), |length| length + 4),
        expect![
            "DIR/model.safetensors: its header describes 67544 bytes but the file has 67548; it is truncated or has bytes that do not belong to any tensor"
        ],
    );
}

#[test]
fn an_oversized_header_length() {
    let with_length = |length: u64| {
        move |dir: &Path| {
            let mut bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            std::fs::write(dir.join(WEIGHTS), bytes).unwrap();
        }
    };
    check(
        "gpt2-inner",
        with_length(u64::MAX),
        expect!["DIR/model.safetensors: its header of 18446744073709551615 bytes is longer than the limit of 16777216"],
    );
    check(
        "gpt2-inner",
        with_length(1 << 40),
        expect!["DIR/model.safetensors: its header of 1099511627776 bytes is longer than the limit of 16777216"],
    );
    check(
        "gpt2-inner",
        with_length(1 << 23),
        expect![
            "DIR/model.safetensors: its header of 8388608 bytes does not fit in a file of 67544 bytes; it is truncated"
        ],
    );
    check(
        "gpt2-inner",
        with_length(0),
        expect!["DIR/model.safetensors: its header is not valid: it does not start with `{`"],
    );
}

#[test]
fn a_header_that_is_no_header() {
    let with_header = |header: &'static [u8]| {
        move |dir: &Path| {
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header].concat();
            std::fs::write(dir.join(WEIGHTS), bytes).unwrap();
        }
    };
    check(
        "gpt2-inner",
        with_header(b"[1, 2]"),
        expect!["DIR/model.safetensors: its header is not valid: it does not start with `{`"],
    );
    check(
        "gpt2-inner",
        with_header(b"{\"x\": \xff}"),
        expect!["DIR/model.safetensors: its header is not valid: expected value at line 1 column 7"],
    );
    check(
        "gpt2-inner",
        with_header(b"{}"),
        expect!["DIR/model.safetensors: tensor `transformer.wte.weight` is missing"],
    );
}

#[test]
fn overlapping_offsets() {
    let shift = |by: i64| {
        move |dir: &Path| {
            edit_header(&dir.join(WEIGHTS), |header| {
                for offset in header["transformer.ln_f.bias"]["data_offsets"].as_array_mut().unwrap() {
                    *offset = (offset.as_i64().unwrap() + by).into();
                }
            });
        }
    };
    check(
        "gpt2-inner",
        shift(-4),
        expect![
            "DIR/model.safetensors: tensor `transformer.ln_f.bias` overlaps the previous tensor: it starts at 55356 but should start at 55360"
        ],
    );
    check(
        "gpt2-inner",
        shift(4),
        expect![
            "DIR/model.safetensors: tensor `transformer.ln_f.bias` leaves a gap after the previous tensor: it starts at 55364 but should start at 55360"
        ],
    );
}

/// Eight tensors whose sizes add up to 2^64: for a reader with unchecked addition the sum wraps
/// around, and the file looks complete.
#[test]
fn offsets_that_overflow() {
    let huge = |dir: &Path| {
        let size = (1_u64 << 61) - 1;
        let mut header = json!({});
        for i in 0..8 {
            header[format!("t{i}")] =
                json!({ "dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size] });
        }
        header["t8"] = json!({ "dtype": "U8", "shape": [7], "data_offsets": [8 * size, 8 * size + 7] });
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(dir.join(WEIGHTS), bytes).unwrap();
    };
    check(
        "gpt2-inner",
        huge,
        expect![
            "DIR/model.safetensors: tensor `t7` has offsets [16140901064495857657, 18446744073709551608], beyond any file"
        ],
    );
}

#[test]
fn a_wrong_shape() {
    let transposed = |dir: &Path| {
        edit_header(&dir.join(WEIGHTS), |header| {
            header["transformer.h.0.mlp.c_fc.weight"]["shape"].as_array_mut().unwrap().reverse();
        });
    };
    check(
        "gpt2-inner",
        transposed,
        expect![
            "DIR/model.safetensors: tensor `transformer.h.0.mlp.c_fc.weight` has shape [50, 30]; config.json requires [30, 50]"
        ],
    );
    let too_wide = |dir: &Path| {
        edit_header(&dir.join(WEIGHTS), |header| header["transformer.ln_f.weight"]["shape"] = json!([31]));
    };
    check(
        "gpt2-inner",
        too_wide,
        expect![
            "DIR/model.safetensors: tensor `transformer.ln_f.weight` has offsets [55480, 55600], but F32 [31] takes 124 bytes"
        ],
    );
    let negative = |dir: &Path| {
        edit_header(&dir.join(WEIGHTS), |header| header["transformer.ln_f.weight"]["shape"] = json!([-30]));
    };
    check(
        "gpt2-inner",
        negative,
        expect![
            "DIR/model.safetensors: its header is not valid: invalid value: integer `-30`, expected u64 at line 1 column 2367"
        ],
    );
}

#[test]
fn a_missing_tensor() {
    let without = |dropped: &'static str| {
        move |dir: &Path| {
            edit_tensors(
                &dir.join(WEIGHTS),
                |name, view| if name == dropped { vec![] } else { vec![same(name, view)] },
            );
        }
    };
    check(
        "gpt2-inner",
        without("transformer.h.1.attn.c_attn.bias"),
        expect!["DIR/model.safetensors: tensor `transformer.h.1.attn.c_attn.bias` is missing"],
    );
    check(
        "llama-head-100",
        without("lm_head.weight"),
        expect!["DIR/model.safetensors: tensor `lm_head.weight` is missing"],
    );
}

#[test]
fn an_unknown_tensor() {
    let renamed = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            edit_tensors(&dir.join(WEIGHTS), |name, view| {
                let (own, dtype, shape, data) = same(name, view);
                vec![(if own == from { to.to_owned() } else { own }, dtype, shape, data)]
            });
        }
    };
    check(
        "gpt2-inner",
        renamed("transformer.ln_f.bias", "transformer.ln_g.bias"),
        expect!["DIR/model.safetensors: tensor `transformer.ln_g.bias` is not part of a gpt2 model of 2 layers"],
    );
    check(
        "gpt2-inner",
        renamed("transformer.h.1.ln_1.bias", "transformer.h.2.ln_1.bias"),
        expect!["DIR/model.safetensors: tensor `transformer.h.2.ln_1.bias` is not part of a gpt2 model of 2 layers"],
    );
    check(
        "gpt2-inner",
        renamed("transformer.h.1.ln_1.bias", "transformer.h.01.ln_1.bias"),
        expect!["DIR/model.safetensors: tensor `transformer.h.01.ln_1.bias` is not part of a gpt2 model of 2 layers"],
    );
    check(
        "llama-head-100",
        renamed("lm_head.weight", "lm_head.weight\n"),
        expect![[
            r#"DIR/model.safetensors: tensor `lm_head.weight\n` has a name with characters other than A-Z a-z 0-9 . _ / -"#
        ]],
    );
}

#[test]
fn a_tensor_under_two_names() {
    let twice = |dir: &Path| {
        edit_tensors(&dir.join(WEIGHTS), |name, view| {
            let mut both = vec![same(name, view)];
            if name == "ln_f.bias" {
                both.push((format!("transformer.{name}"), view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
            both
        });
    };
    check("gpt2-f16-hub-names", twice, expect!["DIR/model.safetensors: tensor `transformer.ln_f.bias` occurs twice"]);
}

#[test]
fn a_tied_head_that_is_another() {
    let with_head = |value: u8| {
        move |dir: &Path| {
            edit_tensors(&dir.join(WEIGHTS), |name, view| {
                let mut both = vec![same(name, view)];
                if name == "transformer.wte.weight" {
                    let mut data = view.data().to_vec();
                    data[0] ^= value;
                    both.push(("lm_head.weight".to_owned(), view.dtype(), view.shape().to_vec(), data));
                }
                both
            });
        }
    };
    check(
        "gpt2-inner",
        with_head(1),
        expect![
            "DIR/model.safetensors: tensor `lm_head.weight` differs from `transformer.wte.weight`, which config.json ties it to"
        ],
    );
    // Some tools save an exact copy.
    let dir = tempfile::tempdir().unwrap();
    copy(&golden_dir().join("gpt2-inner"), dir.path());
    with_head(0)(dir.path());
    assert_eq!(load(dir.path()).parameters().len(), load(&golden_dir().join("gpt2-inner")).parameters().len());
}

#[test]
fn an_unknown_dtype() {
    let of = |dtype: &'static str| {
        move |dir: &Path| {
            edit_header(&dir.join(WEIGHTS), |header| header["transformer.ln_f.bias"]["dtype"] = json!(dtype));
        }
    };
    check(
        "gpt2-inner",
        of("F32X"),
        expect![
            "DIR/model.safetensors: tensor `transformer.ln_f.bias` has dtype `F32X`; supported are F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL"
        ],
    );
    check(
        "gpt2-inner",
        of("I32"),
        expect!["DIR/model.safetensors: tensor `transformer.ln_f.bias` has dtype I32; supported are F32, F16 and BF16"],
    );
}

#[test]
fn a_folder_without_files() {
    check(
        "gpt2-inner",
        |dir| std::fs::remove_file(dir.join(WEIGHTS)).unwrap(),
        expect!["DIR: contains neither model.safetensors nor model.safetensors.index.json"],
    );
    check(
        "gpt2-inner",
        |dir| std::fs::remove_file(dir.join("config.json")).unwrap(),
        expect!["DIR/config.json: No such file or directory (os error 2)"],
    );
}

#[test]
fn what_the_shards_hold_counts_whatever_their_index_says() {
    let norm = "model.norm.weight";
    for (tensor, file) in [(norm, Some(1)), (norm, None), ("model.other.weight", Some(1))] {
        let edited = |index: &mut Value| match file {
            Some(shard) => index["weight_map"][tensor] = json!(format!("model-{shard:05}-of-00004.safetensors")),
            None => drop(index["weight_map"].as_object_mut().unwrap().remove(tensor)),
        };
        assert_eq!(spoiled("llama-tied-sharded", |dir| edit_json(&dir.join(INDEX), edited)), Ok(()));
    }
}

#[test]
fn an_index_that_lies() {
    let mapped = |tensor: &'static str, file: &'static str| {
        move |dir: &Path| edit_json(&dir.join(INDEX), |index| index["weight_map"][tensor] = json!(file))
    };
    let norm = "model.norm.weight";
    check(
        "llama-tied-sharded",
        mapped(norm, "model-00009-of-00009.safetensors"),
        expect!["DIR/model-00009-of-00009.safetensors: No such file or directory (os error 2)"],
    );
    check(
        "llama-tied-sharded",
        mapped(norm, "../x"),
        expect![
            "DIR/model.safetensors.index.json: tensor `model.norm.weight` is mapped to `../x`, which is in another folder: all weight files must be in the checkpoint's folder"
        ],
    );
    check(
        "llama-tied-sharded",
        mapped(norm, "../model.safetensors"),
        expect![
            "DIR/model.safetensors.index.json: tensor `model.norm.weight` is mapped to `../model.safetensors`, which is in another folder: all weight files must be in the checkpoint's folder"
        ],
    );
    check(
        "llama-tied-sharded",
        mapped(norm, "/etc/model.safetensors"),
        expect![
            "DIR/model.safetensors.index.json: tensor `model.norm.weight` is mapped to `/etc/model.safetensors`, which is in another folder: all weight files must be in the checkpoint's folder"
        ],
    );
    check(
        "llama-tied-sharded",
        mapped(norm, "..\\model.safetensors"),
        expect![[
            r#"DIR/model.safetensors.index.json: tensor `model.norm.weight` is mapped to `..\\model.safetensors`, which is not a .safetensors file name"#
        ]],
    );
    check(
        "llama-tied-sharded",
        |dir| std::fs::write(dir.join(INDEX), r#"{"weight_map": {}}"#).unwrap(),
        expect!["DIR/model.safetensors.index.json: `weight_map` is empty"],
    );
    check(
        "llama-tied-sharded",
        |dir| std::fs::write(dir.join(INDEX), "{").unwrap(),
        expect!["DIR/model.safetensors.index.json: EOF while parsing an object at line 1 column 1"],
    );
    check(
        "llama-tied-sharded",
        |dir| std::fs::write(dir.join(INDEX), "[]").unwrap(),
        expect![
            "DIR/model.safetensors.index.json: invalid length 0, expected an object with `weight_map` at line 1 column 2"
        ],
    );
    let cut = |dir: &Path| truncate(&dir.join("model-00002-of-00004.safetensors"), |length| length - 1);
    check(
        "llama-tied-sharded",
        cut,
        expect![
            "DIR/model-00002-of-00004.safetensors: its header describes 20264 bytes but the file has 20263; it is truncated or has bytes that do not belong to any tensor"
        ],
    );
}

#[test]
fn a_bad_config() {
    let with = |key: &'static str, value: Value| {
        move |dir: &Path| edit_json(&dir.join("config.json"), |config| config[key] = value)
    };
    let without = |key: &'static str| {
        move |dir: &Path| {
            edit_json(&dir.join("config.json"), |config| {
                config.as_object_mut().unwrap().remove(key);
            });
        }
    };
    check(
        "gpt2-inner",
        with("model_type", json!("gpt3")),
        expect!["DIR/config.json: model_type `gpt3` is not supported"],
    );
    check("gpt2-inner", without("model_type"), expect!["DIR/config.json: `model_type` is missing"]);
    // transformers uses 12, its class's default.
    check(
        "gpt2-inner",
        without("n_layer"),
        expect!["DIR/model.safetensors: tensor `transformer.h.2.ln_1.weight` is missing"],
    );
    check(
        "gpt2-inner",
        without("vocab_size"),
        expect![
            "DIR/model.safetensors: tensor `transformer.wte.weight` has shape [61, 30]; config.json requires [50257, 30]"
        ],
    );
    check(
        "llama-bf16",
        without("intermediate_size"),
        expect![
            "DIR/model.safetensors: tensor `model.layers.0.mlp.down_proj.weight` has shape [30, 41]; config.json requires [30, 11008]"
        ],
    );
    check(
        "gpt2-inner",
        with("n_head", json!(4)),
        expect!["DIR/config.json: `n_embd` is 30, not a multiple of n_head (4)"],
    );
    check(
        "gpt2-inner",
        with("n_head", json!(0)),
        expect!["DIR/config.json: `n_head` is 0, not a whole number from 1 to 1048576"],
    );
    check(
        "gpt2-inner",
        with("n_embd", json!(-30)),
        expect!["DIR/config.json: `n_embd` is -30, not a whole number from 1 to 1048576"],
    );
    check(
        "gpt2-inner",
        with("n_layer", json!(u64::MAX)),
        expect!["DIR/config.json: `n_layer` is 18446744073709551615, not a whole number from 1 to 1048576"],
    );
    check(
        "gpt2-inner",
        with("vocab_size", json!("61")),
        expect![[r#"DIR/config.json: `vocab_size` is "61", not a whole number from 1 to 1048576"#]],
    );
    check(
        "llama-bf16",
        with("num_key_value_heads", json!(2)),
        expect!["DIR/config.json: `num_key_value_heads` is 2, which does not divide num_attention_heads (3)"],
    );
    check(
        "llama-head-100",
        with("head_dim", json!(25)),
        expect!["DIR/config.json: `head_dim` is 25; rotary positions need an even number"],
    );
    check(
        "llama-bf16",
        with("rope_parameters", json!({ "rope_type": "yarn", "rope_theta": 1e4 })),
        expect!["DIR/config.json: `rope_parameters` asks for `yarn` rotary scaling, which is not supported"],
    );
    check(
        "gpt2-no-bias",
        without("bias"),
        expect!["DIR/model.safetensors: tensor `transformer.h.0.ln_1.bias` is missing"],
    );
    check(
        "gpt2-inner",
        with("bias", json!(false)),
        expect![
            "DIR/model.safetensors: tensor `transformer.h.0.attn.c_attn.bias` is not part of a gpt2 model of 2 layers"
        ],
    );
    check(
        "opt-sharded",
        with("do_layer_norm_before", json!(false)),
        expect![
            "DIR/config.json: `do_layer_norm_before` is false: the norms come after attention and MLP, as in OPT-350M, which is not supported"
        ],
    );
    check(
        "mosaic_gpt-qk-norm",
        with("attn_qk_ln", json!(false)),
        expect![
            "DIR/model.safetensors: tensor `transformer.blocks.0.attn.k_ln.weight` is not part of a mosaic_gpt model of 3 layers"
        ],
    );
    check(
        "gpt2-inner",
        |dir| std::fs::write(dir.join("config.json"), "{ nothing").unwrap(),
        expect!["DIR/config.json: key must be a string at line 1 column 3"],
    );
    check(
        "gpt2-inner",
        |dir| std::fs::write(dir.join("config.json"), [0xff, 0xfe]).unwrap(),
        expect!["DIR/config.json: invalid utf-8 sequence of 1 bytes from index 0"],
    );
    check(
        "gpt2-inner",
        |dir| std::fs::write(dir.join("config.json"), "[".repeat(100_000)).unwrap(),
        expect!["DIR/config.json: recursion limit exceeded at line 1 column 128"],
    );
    check(
        "gpt2-inner",
        |dir| std::fs::write(dir.join("config.json"), "3").unwrap(),
        expect!["DIR/config.json: is 3, not a JSON object"],
    );
}

/// Loads a spoilt optimizer state and compares the error; the optimizer must be unchanged.
fn check_state(spoil: impl FnOnce(&Path), expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    let decoder = load(&golden_dir().join("gpt2-inner"));
    let mut optimizer = AdamW::new(decoder.parameters(), ADAMW).unwrap();
    let (state, before, after) = (dir.path().join(STATE), dir.path().join("before"), dir.path().join("after"));
    optimizer.snapshot().unwrap().write(&state).unwrap();
    optimizer.snapshot().unwrap().write(&before).unwrap();
    spoil(&state);
    let error = optimizer.load(&state).err();
    expected.assert_eq(&message(error, dir.path()));
    optimizer.snapshot().unwrap().write(&after).unwrap();
    assert!(std::fs::read(before).unwrap() == std::fs::read(after).unwrap());
}

#[test]
fn a_bad_optimizer_state() {
    check_state(
        |state| std::fs::remove_file(state).unwrap(),
        expect!["DIR/optimizer.safetensors: No such file or directory (os error 2)"],
    );
    check_state(
        |state| truncate(state, |length| length - 1),
        expect![
            "DIR/optimizer.safetensors: its header describes 135608 bytes but the file has 135607; it is truncated or has bytes that do not belong to any tensor"
        ],
    );
    let step_count = |value: &'static str| {
        move |state: &Path| edit_header(state, |header| header["__metadata__"]["steps"] = json!(value))
    };
    check_state(step_count("-1"), expect!["DIR/optimizer.safetensors: has no step count (`steps`) in its metadata"]);
    check_state(
        |state| edit_header(state, |header| header["__metadata__"] = json!({})),
        expect!["DIR/optimizer.safetensors: has no step count (`steps`) in its metadata"],
    );
    let reshaped = |state: &Path| {
        edit_header(state, |header| {
            header["exp_avg.transformer.h.0.mlp.c_fc.weight"]["shape"].as_array_mut().unwrap().reverse();
        });
    };
    check_state(
        reshaped,
        expect![
            "DIR/optimizer.safetensors: tensor `exp_avg.transformer.h.0.mlp.c_fc.weight` has shape [50, 30]; the parameter has [30, 50]"
        ],
    );
    let renamed = |state: &Path| {
        edit_header(state, |header| {
            let moment = header.as_object_mut().unwrap().remove("exp_avg_sq.transformer.ln_f.bias").unwrap();
            header["exp_avg_sq.transformer.ln_g.bias"] = moment;
        });
    };
    check_state(renamed, expect!["DIR/optimizer.safetensors: tensor `exp_avg_sq.transformer.ln_f.bias` is missing"]);
    // The model's weights are not an optimizer state, and neither is the state of a deeper model.
    let weights = golden_dir().join("gpt2-inner").join(WEIGHTS);
    check_state(
        |state| assert!(std::fs::copy(weights, state).unwrap() > 0),
        expect!["DIR/optimizer.safetensors: has no step count (`steps`) in its metadata"],
    );
    let deeper = |state: &Path| {
        edit_header(state, |header| {
            header["exp_avg.transformer.h.2.ln_1.bias"] =
                json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] })
        });
    };
    check_state(
        deeper,
        expect![
            "DIR/optimizer.safetensors: tensor `exp_avg.transformer.h.2.ln_1.bias` does not belong to any parameter of this model"
        ],
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the bytes of a header or config change, loading returns a model or an error.
    #[test]
    fn no_byte_makes_it_panic(
        file in prop::sample::select(vec![WEIGHTS, "config.json"]),
        changes in prop::collection::vec((0_usize..2500, any::<u8>()), 1..4),
        cut in prop::option::of(0_u64..4000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        copy(&golden_dir().join("gpt2-inner"), dir.path());
        let path = dir.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len();
        for (at, value) in changes {
            bytes[at % length] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        std::fs::write(&path, bytes).unwrap();
        if let Ok(decoder) = Decoder::load(dir.path(), Device::Cpu) {
            let logits = decoder.logits(&Tensor::from_slice(&[0_i64]).view([1, 1]));
            prop_assert!(logits.is_ok());
        }
    }
}
