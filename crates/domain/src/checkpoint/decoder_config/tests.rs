#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn gpt2_json() -> Value {
    json!({"model_type":"gpt2","n_embd":768,"n_head":12,"n_layer":12,"n_positions":1024,"vocab_size":50257,"layer_norm_epsilon":1e-5})
}

fn llama_json() -> Value {
    json!({"model_type":"llama","hidden_size":2048,"num_attention_heads":32,"num_key_value_heads":4,"num_hidden_layers":22,
        "intermediate_size":5632,"max_position_embeddings":2048,"vocab_size":32000,"rms_norm_eps":1e-5})
}

/// What reading `config`, with `changes` made to it, says.
fn check(config: Value, changes: Value, expected: Expect) {
    let mut config = config;
    for (key, value) in changes.as_object().unwrap() {
        config.as_object_mut().unwrap().insert(key.clone(), value.clone());
    }
    let text = match DecoderConfig::from_hf(&config) {
        Ok(config) => format!("{} parameters", config.parameters()),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&text);
}

// Published sizes: GPT-2 small 124,439,808; TinyLlama 1,100,048,384; OpenLLaMA-3B 3,426,473,600.
#[test]
fn published_models_have_their_published_sizes() {
    check(gpt2_json(), json!({}), expect!["124439808 parameters"]);
    check(llama_json(), json!({}), expect!["1100048384 parameters"]);
    let open_llama =
        json!({"hidden_size":3200,"num_key_value_heads":null,"num_hidden_layers":26,"intermediate_size":8640});
    check(llama_json(), open_llama, expect!["3426473600 parameters"]);
    check(llama_json(), json!({"tie_word_embeddings": true}), expect!["1034512384 parameters"]);
}

#[test]
fn configs_that_would_be_computed_wrongly_are_refused() {
    check(json!({}), json!({}), expect!["config.json: `model_type` is missing"]);
    check(
        gpt2_json(),
        json!({"model_type": "gpt_neox"}),
        expect!["config.json: model_type `gpt_neox` is not supported; supported are gpt2 and llama"],
    );
    check(gpt2_json(), json!({"n_layer": null}), expect!["config.json: `n_layer` is missing"]);
    check(
        gpt2_json(),
        json!({"n_layer": "12"}),
        expect![[r#"config.json: `n_layer` is "12", not a whole number from 1 to 1048576"#]],
    );
    check(
        gpt2_json(),
        json!({"n_layer": 0}),
        expect!["config.json: `n_layer` is 0, not a whole number from 1 to 1048576"],
    );
    check(gpt2_json(), json!({"n_layer": 1025}), expect!["config.json: `n_layer` is 1025; at most 1024 are supported"]);
    check(
        gpt2_json(),
        json!({"vocab_size": 1u64 << 40}),
        expect!["config.json: `vocab_size` is 1099511627776, not a whole number from 1 to 1048576"],
    );
    check(gpt2_json(), json!({"n_head": 7}), expect!["config.json: `n_embd` is 768, not a multiple of n_head (7)"]);
    check(
        gpt2_json(),
        json!({"activation_function": "relu"}),
        expect!["config.json: `activation_function` is `relu`; only gelu_new is supported"],
    );
    check(
        gpt2_json(),
        json!({"tie_word_embeddings": false}),
        expect!["config.json: `tie_word_embeddings` is false; only tied gpt2 heads are supported"],
    );
    check(
        gpt2_json(),
        json!({"layer_norm_epsilon": -1}),
        expect!["config.json: `layer_norm_epsilon` is -1, not a positive number"],
    );
    check(
        llama_json(),
        json!({"num_key_value_heads": 5}),
        expect!["config.json: `num_key_value_heads` is 5, which does not divide num_attention_heads (32)"],
    );
    check(
        llama_json(),
        json!({"head_dim": 65}),
        expect!["config.json: `head_dim` is 65; rotary positions need an even one"],
    );
    check(
        llama_json(),
        json!({"head_dim": 1 << 20}),
        expect!["config.json: `head_dim` times the heads is more than 1048576"],
    );
    check(
        llama_json(),
        json!({"attention_bias": true}),
        expect!["config.json: `attention_bias` is true, which is not supported"],
    );
    check(
        llama_json(),
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        expect!["config.json: `rope_scaling` asks for `llama3` rotary scaling, which is not supported"],
    );
    check(llama_json(), json!({"rope_scaling": null, "rope_theta": 5e5}), expect!["1100048384 parameters"]);
}

#[test]
fn the_largest_config_does_not_overflow() {
    let max = MAX_DIMENSION;
    let config = json!({"model_type":"llama","hidden_size":max,"num_attention_heads":2,"head_dim":max/2,"num_hidden_layers":MAX_LAYERS,
        "intermediate_size":max,"max_position_embeddings":max,"vocab_size":max});
    let config = DecoderConfig::from_hf(&config).unwrap();
    assert!(config.parameters() > 1 << 50);
}

#[test]
fn a_written_config_is_read_back() {
    for config in [gpt2_json(), llama_json()] {
        let config = DecoderConfig::from_hf(&config).unwrap();
        assert_eq!(DecoderConfig::from_hf(&config.to_hf()).unwrap(), config);
    }
}

#[test]
fn another_depth_keeps_every_other_key() {
    let mut config = llama_json();
    config["rope_theta"] = json!(5e5);
    config["house_note"] = json!({"kept": [1, 2]});
    config["auto_map"] = json!({"AutoModel": "modeling.Custom"});
    let cut = DecoderConfig::hf_with_layers(&config, Family::Llama, LayerCount(3));
    let mut expected = config.clone();
    expected["num_hidden_layers"] = json!(3);
    expected.as_object_mut().unwrap().remove("auto_map");
    assert_eq!(cut, expected);
}

#[test]
fn every_name_means_itself() {
    for json in [gpt2_json(), llama_json()] {
        let config = DecoderConfig::from_hf(&json).unwrap();
        for spec in config.tensors() {
            assert_eq!(config.name_in_file(&spec.name), NameInFile::Tensor(spec.name.clone()));
            if let TensorRole::Block { layer, .. } = spec.role {
                assert_eq!(config.name_in_layer(&spec, layer), spec.name);
                assert_ne!(config.name_in_layer(&spec, layer + 1), spec.name);
            }
        }
    }
    let gpt2 = DecoderConfig::from_hf(&gpt2_json()).unwrap();
    let means = |name: &str| gpt2.name_in_file(name);
    assert_eq!(means("wte.weight"), NameInFile::Tensor("transformer.wte.weight".to_owned()));
    assert_eq!(means("h.11.ln_2.bias"), NameInFile::Tensor("transformer.h.11.ln_2.bias".to_owned()));
    assert_eq!(means("h.12.ln_2.bias"), NameInFile::Unknown);
    assert_eq!(means("h.3.attn.bias"), NameInFile::Buffer);
    assert_eq!(means("h.3.attn.c_attn.bias"), NameInFile::Tensor("transformer.h.3.attn.c_attn.bias".to_owned()));
    assert_eq!(means("score.weight"), NameInFile::Unknown);
}

#[test]
fn an_architecture_names_every_bad_field() {
    let architecture = Architecture {
        family: Family::Gpt2,
        n_layers: LayerCount(0),
        d_model: 10,
        n_heads: 4,
        n_kv_heads: Some(2),
        d_ff: Some(0),
        max_positions: 0,
        rope_theta: Some(1.0),
        tied_head: Some(false),
        inverse_layer_scale: true,
    };
    let fields: Vec<String> = architecture.validate().unwrap_err().0.into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["n_layers", "d_model", "d_ff", "max_positions", "n_kv_heads", "rope_theta", "tied_head"]);
}
