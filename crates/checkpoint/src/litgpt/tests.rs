#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;
use crate::safetensors_header::Dtype;

fn lit() -> Json {
    json!({
        "n_layer": 1, "n_head": 6, "n_embd": 12, "n_query_groups": 2, "head_size": 2, "block_size": 16,
        "vocab_size": 29, "padded_vocab_size": 32, "rotary_percentage": 1.0, "parallel_residual": false, "bias": false,
        "_norm_class": "FusedRMSNorm", "norm_eps": 1e-5, "_mlp_class": "LLaMAMLP", "intermediate_size": 20,
        "rope_condense_ratio": 1, "rope_base": 10000,
    })
}

fn config() -> DecoderConfig {
    DecoderConfig::from_hf(&config_json(&lit()).unwrap()).unwrap()
}

fn tensors() -> Vec<HeaderTensor> {
    let mut all: Vec<HeaderTensor> = Vec::new();
    for (name, shape) in [
        ("lm_head.weight", [32, 12].as_slice()),
        ("transformer.wte.weight", &[32, 12]),
        ("transformer.h.0.norm_1.weight", &[12]),
        ("transformer.h.0.attn.attn.weight", &[20, 12]),
        ("transformer.h.0.attn.proj.weight", &[12, 12]),
        ("transformer.h.0.norm_2.weight", &[12]),
        ("transformer.h.0.mlp.fc_1.weight", &[20, 12]),
        ("transformer.h.0.mlp.fc_2.weight", &[20, 12]),
        ("transformer.h.0.mlp.proj.weight", &[12, 20]),
        ("transformer.ln_f.weight", &[12]),
    ] {
        let start = all.last().map_or(64, |before| before.bytes.end);
        let bytes = start..start + 2 * shape.iter().product::<u64>();
        all.push(HeaderTensor { name: name.to_owned(), dtype: Dtype::Bf16, shape: shape.to_vec(), bytes });
    }
    all
}

#[test]
fn settings_become_a_config() {
    let config = config();
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size), (6, 2, 2, 32));
    assert!(!config.tied_head);
    let check = |key: &str, value: Json, expected: Expect| {
        let mut lit = lit();
        lit[key] = value;
        expected.assert_eq(&config_json(&lit).unwrap_err().to_string());
    };
    check(
        "_mlp_class",
        json!("GptNeoxMLP"),
        expect![[r#"config.json: `_mlp_class` is "GptNeoxMLP"; only LLaMAMLP is supported"#]],
    );
    check("rotary_percentage", json!(0.25), expect!["config.json: `rotary_percentage` is 0.25; only 1.0 is supported"]);
    check(
        "parallel_residual",
        json!(true),
        expect!["config.json: `parallel_residual` is true; only false is supported"],
    );
    check("rope_condense_ratio", json!(4), expect!["config.json: `rope_condense_ratio` is 4; only 1 is supported"]);
    check("n_layer", Json::Null, expect!["config.json: `n_layer` is missing"]);
}

#[test]
fn the_fused_projection_is_three() {
    let inventory = inventory(config(), LITGPT_FILE, &tensors()).unwrap();
    let part = |name: &str| {
        let tensor = inventory.tensor(&format!("model.layers.0.self_attn.{name}.weight")).unwrap();
        (tensor.shape.clone(), tensor.reading)
    };
    // A row has 24 bytes and a head 2 rows. A group has 3 query heads, a key head and a value head.
    assert_eq!(part("q_proj"), (vec![12, 12], Reading::Parts { first: 0, length: 144, step: 240, count: 2 }));
    assert_eq!(part("k_proj"), (vec![4, 12], Reading::Parts { first: 144, length: 48, step: 240, count: 2 }));
    assert_eq!(part("v_proj"), (vec![4, 12], Reading::Parts { first: 192, length: 48, step: 240, count: 2 }));
    assert_eq!(
        inventory.tensor("model.layers.0.mlp.gate_proj.weight").unwrap().name,
        "transformer.h.0.mlp.fc_1.weight"
    );
}

#[test]
fn lit_new_yaml_the_plain_projection_is_three() {
    let mut tensors = tensors();
    tensors[3].name = "transformer.h.0.attn.qkv.weight".to_owned();
    let inventory = inventory(config(), LITGPT_FILE, &tensors).unwrap();
    let part = |name: &str| {
        let tensor = inventory.tensor(&format!("model.layers.0.self_attn.{name}.weight")).unwrap();
        (tensor.shape.clone(), tensor.reading)
    };
    // Six query heads, then two key heads, then two value heads.
    assert_eq!(part("q_proj"), (vec![12, 12], Reading::Parts { first: 0, length: 288, step: 480, count: 1 }));
    assert_eq!(part("k_proj"), (vec![4, 12], Reading::Parts { first: 288, length: 96, step: 480, count: 1 }));
    assert_eq!(part("v_proj"), (vec![4, 12], Reading::Parts { first: 384, length: 96, step: 480, count: 1 }));
}

#[test]
fn lit_new_yaml_settings_are_read_line_by_line() {
    let text = "# made by litgpt\n---\nname: \"tiny: #1\"\nhf_config: {name: x}\nn_layer: 4\nnorm_eps: 1e-05\nbias: false\n\
                rope_adjustments:\nrope_base: 10000 # theta\nquoted: 'no'\nrope_indices:\n- 1\n- 2\nnested:\n  factor: 8.0\n";
    let expected = json!({"name": "tiny: #1", "hf_config": {}, "n_layer": 4, "norm_eps": 1e-5, "bias": false,
        "rope_adjustments": null, "rope_base": 10000, "quoted": "no", "rope_indices": {}, "nested": {}});
    assert_eq!(yaml(text).unwrap(), expected);
    for bad in ["- 1", "n_layer 4", "  indented: 1"] {
        assert!(yaml(bad).is_err(), "{bad}");
    }
    for key in ["attn_bias", "norm_qk", "post_mlp_norm"] {
        let mut lit = lit();
        lit[key] = true.into();
        assert!(config_json(&lit).unwrap_err().to_string().contains(key));
    }
}

#[test]
fn other_tensors_are_refused() {
    let check = |change: &dyn Fn(&mut Vec<HeaderTensor>), expected: Expect| {
        let mut tensors = tensors();
        change(&mut tensors);
        expected.assert_eq(&inventory(config(), LITGPT_FILE, &tensors).unwrap_err().to_string());
    };
    check(
        &|all| all[3].name = "transformer.h.0.attn.qkv.bias".to_owned(),
        expect!["lit_model.pth: tensor `transformer.h.0.attn.qkv.bias` is unknown in lit-gpt's Llama"],
    );
    check(
        &|all| all[3].shape = vec![24, 12],
        expect![
            "lit_model.pth: tensor `transformer.h.0.attn.attn.weight` has shape [24, 12]; its settings require [20, 12]"
        ],
    );
    check(
        &|all| all[3].name = "transformer.h.1.attn.attn.weight".to_owned(),
        expect!["lit_model.pth: tensor `transformer.h.1.attn.attn.weight` is unknown"],
    );
    check(
        &|all| drop(all.remove(3)),
        expect![
            "tensor `model.layers.0.self_attn.q_proj.weight` and 2 more are missing: config.json says 1 layers of the llama family, and no file contains them"
        ],
    );
    check(
        &|all| all.push(all[9].clone()),
        expect![
            "lit_model.pth: tensor `transformer.ln_f.weight` occurs twice: also as `transformer.ln_f.weight` in lit_model.pth"
        ],
    );
}
