#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;
use crate::safetensors_header::Dtype;

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

/// Returns a `ckpt.pt` with one layer and without weights, with these settings in addition to the
/// usual ones.
fn pickle(args: &[(&str, &[u8])]) -> Vec<u8> {
    let usual: [(&str, &[u8]); 5] = [
        ("n_layer", b"K\x01"),
        ("n_head", b"K\x02"),
        ("n_embd", b"K\x08"),
        ("block_size", b"K\x10"),
        ("vocab_size", b"K\x20"),
    ];
    let args: Vec<u8> = usual.iter().chain(args).flat_map(|(key, value)| [&text(key), *value].concat()).collect();
    [b"\x80\x02}(".as_slice(), &text("model"), b"}", &text("model_args"), b"}(", &args, b"uu."].concat()
}

fn tensor(name: &str, shape: &[u64], start: u64) -> HeaderTensor {
    let end = start + 4 * shape.iter().product::<u64>();
    HeaderTensor { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: start..end }
}

/// Returns the tensors of one layer without biases.
fn tensors() -> Vec<HeaderTensor> {
    let mut all = Vec::new();
    for (name, shape) in [
        ("transformer.wte.weight", [32, 8].as_slice()),
        ("transformer.wpe.weight", &[16, 8]),
        ("transformer.h.0.ln_1.weight", &[8]),
        ("transformer.h.0.attn.c_attn.weight", &[24, 8]),
        ("transformer.h.0.attn.c_proj.weight", &[8, 8]),
        ("transformer.h.0.ln_2.weight", &[8]),
        ("transformer.h.0.mlp.c_fc.weight", &[32, 8]),
        ("transformer.h.0.mlp.c_proj.weight", &[8, 32]),
        ("transformer.ln_f.weight", &[8]),
        ("transformer.h.0.attn.bias", &[1, 1, 16, 16]),
    ] {
        let start = all.last().map_or(64, |before: &HeaderTensor| before.bytes.end);
        all.push(tensor(name, shape, start));
    }
    all.push(tensor("lm_head.weight", &[32, 8], 64));
    all
}

#[test]
fn settings_become_a_config() {
    let model = NanoGpt::parse(&pickle(&[("dropout", b"K\x00"), ("bias", b"\x89")])).unwrap();
    let json = model.config_json();
    let keys = ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"].map(|key| json[key].as_u64().unwrap());
    assert_eq!(keys, [1, 2, 8, 16, 32]);
    assert_eq!(DecoderConfig::from_hf(&json).unwrap(), model.config);
    let scaled = NanoGpt::parse(&pickle(&[("scale_attn_by_inverse_layer_idx", b"\x88")])).unwrap();
    assert!(scaled.config.inverse_layer_scale && !scaled.config.no_bias && model.config.no_bias);
}

#[test]
fn other_settings_are_refused() {
    let check = |pickle: &[u8], expected: Expect| {
        expected.assert_eq(&NanoGpt::parse(pickle).unwrap_err().to_string());
    };
    check(
        b"\x80\x02}.",
        expect!["is not a checkpoint that torch.save wrote: a nanoGPT checkpoint has `model` and `model_args`"],
    );
    check(
        &pickle(&[("rotary", b"\x88")]),
        expect!["its model_args have `rotary`, a bool, which nanoGPT does not have: its effect is unknown"],
    );
    check(
        &pickle(&[("vocab_size", b"N")]),
        expect!["its model_args have `vocab_size`, None, which nanoGPT does not have: its effect is unknown"],
    );
    check(
        &pickle(&[("n_head", b"K\x03")]),
        expect![
            "its model_args, under Hugging Face's names, are not valid: config.json: `n_embd` is 8, not a multiple of n_head (3)"
        ],
    );
}

#[test]
fn projections_are_transposed_and_biases_may_be_absent() {
    let model = NanoGpt::parse(&pickle(&[("bias", b"\x89")])).unwrap();
    let inventory = model.inventory(NANOGPT_FILE, &tensors()).unwrap();
    let c_attn = inventory.tensor("transformer.h.0.attn.c_attn.weight").unwrap();
    assert_eq!((c_attn.shape.as_slice(), c_attn.reading), ([8, 24].as_slice(), Reading::Transposed));
    assert_eq!(inventory.tensor("transformer.wte.weight").unwrap().reading, Reading::Whole);
    assert!(inventory.tensor("transformer.h.0.ln_1.bias").is_none());
}

#[test]
fn other_tensors_are_refused() {
    let check = |args: &[(&str, &[u8])], change: &dyn Fn(&mut Vec<HeaderTensor>), expected: Expect| {
        let mut tensors = tensors();
        change(&mut tensors);
        let model = NanoGpt::parse(&pickle(args)).unwrap();
        expected.assert_eq(&model.inventory(NANOGPT_FILE, &tensors).unwrap_err().to_string());
    };
    let unbiased: [(&str, &[u8]); 1] = [("bias", b"\x89")];
    check(
        &[],
        &|_| {},
        expect![
            "tensor `transformer.h.0.ln_1.bias` and 6 more are missing: config.json says 1 layers of the gpt2 family, and no file contains them"
        ],
    );
    check(
        &unbiased,
        &|all| all.push(tensor("transformer.ln_f.bias", &[8], 9000)),
        expect!["ckpt.pt: tensor `transformer.ln_f.bias` is unknown in nanoGPT's GPT-2"],
    );
    check(
        &unbiased,
        &|all| all.push(tensor("transformer.rotary", &[8], 9000)),
        expect!["ckpt.pt: tensor `transformer.rotary` is unknown in nanoGPT's GPT-2"],
    );
    check(
        &unbiased,
        &|all| all[3].shape.reverse(),
        expect!["ckpt.pt: tensor `transformer.h.0.attn.c_attn.weight` has shape [8, 24], not [24, 8]"],
    );
    check(
        &unbiased,
        &|all| drop(all.remove(4)),
        expect![
            "tensor `transformer.h.0.attn.c_proj.weight` is missing: config.json says 1 layers of the gpt2 family, and no file contains it"
        ],
    );
}

#[test]
fn c4_a_head_that_lies_elsewhere_is_compared_not_refused() {
    let mut tensors = tensors();
    tensors[10].bytes = 9000..10024;
    let unbiased: [(&str, &[u8]); 1] = [("bias", b"\x89")];
    let inventory = NanoGpt::parse(&pickle(&unbiased)).unwrap().inventory(NANOGPT_FILE, &tensors).unwrap();
    let second = inventory.second_head().unwrap();
    assert_eq!((&*second.head.name, &*second.tied_to.name), ("lm_head.weight", "transformer.wte.weight"));
    assert_eq!(inventory.clone().with_head_as_copy().left_out().last().unwrap().name, "lm_head.weight");
    expect![
        "ckpt.pt: tensor `lm_head.weight` differs from `transformer.wte.weight`; separate heads are not supported in the gpt2 family, whose head is its token embedding"
    ]
    .assert_eq(&inventory.with_own_head().unwrap_err().to_string());
}

#[test]
fn llama2c_ckpt_says_what_it_is() {
    let error = NanoGpt::parse(&pickle(&[("dim", b"K\x20")])).unwrap_err().to_string();
    assert!(error.starts_with("is a llama2.c checkpoint"), "{error}");
}
