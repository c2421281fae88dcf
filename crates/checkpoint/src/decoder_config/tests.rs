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

/// Pythia-1.4B, from its config on the hub.
fn gpt_neox_json() -> Value {
    json!({"model_type":"gpt_neox","hidden_act":"gelu","hidden_size":2048,"intermediate_size":8192,"layer_norm_eps":1e-5,
        "max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":24,"rotary_emb_base":10000,"rotary_pct":0.25,
        "tie_word_embeddings":false,"use_parallel_residual":true,"vocab_size":50304})
}

/// OPT-1.3B.
fn opt_json() -> Value {
    json!({"model_type":"opt","activation_function":"relu","do_layer_norm_before":true,"ffn_dim":8192,"hidden_size":2048,
        "max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":24,"vocab_size":50272,
        "word_embed_proj_dim":2048,"_remove_final_layer_norm":false})
}

/// MPT-7B.
fn mpt_json() -> Value {
    json!({"model_type":"mpt","d_model":4096,"n_heads":32,"n_layers":32,"expansion_ratio":4,"max_seq_len":2048,"vocab_size":50432,
        "learned_pos_emb":true,"logit_scale":null,"no_bias":true,"norm_type":"low_precision_layernorm","embedding_fraction":1.0,
        "attn_config":{"alibi":true,"alibi_bias_max":8,"attn_impl":"torch","attn_pdrop":0,"attn_type":"multihead_attention",
            "attn_uses_sequence_id":false,"clip_qkv":null,"prefix_lm":false,"qk_ln":false,"softmax_scale":null}})
}

/// MPT-1.3B.
fn mosaic_gpt_json() -> Value {
    json!({"model_type":"mosaic_gpt","alibi":true,"alibi_bias_max":8,"attn_clip_qkv":null,"attn_impl":"torch","attn_qk_ln":true,
        "attn_uses_sequence_id":false,"d_model":2048,"embedding_fraction":1.0,"logit_scale":null,"low_precision_layernorm":true,
        "max_seq_len":2048,"mlp_ratio":4,"n_heads":16,"n_layers":24,"no_bias":true,"prefix_lm":false,"softmax_scale":null,
        "vocab_size":50432})
}

/// The paper's GPT-2 Medium.
fn paper_json() -> Value {
    json!({"model_type":"gpt2","n_embd":1024,"n_head":16,"n_layer":24,"n_positions":1024,"vocab_size":50304,
        "scale_attn_by_inverse_layer_idx":true,"bias":false})
}

fn every_family() -> [Value; 7] {
    [gpt2_json(), llama_json(), gpt_neox_json(), opt_json(), mpt_json(), mosaic_gpt_json(), paper_json()]
}

/// Checks the result of reading `config` with `changes` applied.
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

// Published sizes: GPT-2 small 124,439,808; TinyLlama 1,100,048,384; OpenLLaMA-3B 3,426,473,600; Pythia-1.4B
// 1,414,647,808; OPT-1.3B 1,315,758,080; MPT-7B 6,649,286,656.
#[test]
fn published_models_have_their_published_sizes() {
    check(gpt2_json(), json!({}), expect!["124439808 parameters"]);
    check(llama_json(), json!({}), expect!["1100048384 parameters"]);
    let open_llama =
        json!({"hidden_size":3200,"num_key_value_heads":null,"num_hidden_layers":26,"intermediate_size":8640});
    check(llama_json(), open_llama, expect!["3426473600 parameters"]);
    check(llama_json(), json!({"tie_word_embeddings": true}), expect!["1034512384 parameters"]);
    check(gpt_neox_json(), json!({}), expect!["1414647808 parameters"]);
    check(opt_json(), json!({}), expect!["1315758080 parameters"]);
    check(mpt_json(), json!({}), expect!["6649286656 parameters"]);
    check(mosaic_gpt_json(), json!({}), expect!["1311442944 parameters"]);
    check(paper_json(), json!({}), expect!["354599936 parameters"]);
}

#[test]
fn configs_that_would_be_computed_wrongly_are_refused() {
    check(json!({}), json!({}), expect!["config.json: `model_type` is missing"]);
    check(
        gpt2_json(),
        json!({"model_type": "bloom"}),
        expect![
            "config.json: model_type `bloom` is not supported; supported are gpt2, llama, gpt_neox, opt, mpt and mosaic_gpt"
        ],
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
        json!({"activation_function": ["relu"]}),
        expect![[r#"config.json: `activation_function` is ["relu"], not a string"#]],
    );
    check(
        llama_json(),
        json!({"rope_scaling": "linear"}),
        expect![[r#"config.json: `rope_scaling` is "linear", not an object"#]],
    );
    check(llama_json(), json!({"rope_scaling": {"type": 7}}), expect!["config.json: `type` is 7, not a string"]);
    check(
        gpt2_json(),
        json!({"n_layer": format!("\u{7f}{}", "12".repeat(60))}),
        expect![[
            r#"config.json: `n_layer` is "�121212121212121212121212121212121212121212121212121212121212121212121212121212…, not a whole number from 1 to 1048576"#
        ]],
    );
    check(
        gpt2_json(),
        json!({"tie_word_embeddings": false}),
        expect!["config.json: `tie_word_embeddings` is false; only tied gpt2 heads are supported"],
    );
    check(
        gpt2_json(),
        json!({"layer_norm_epsilon": -1}),
        expect!["config.json: `layer_norm_epsilon` is -1, not a number greater than or equal to 0"],
    );
    check(
        llama_json(),
        json!({"num_key_value_heads": 5}),
        expect!["config.json: `num_key_value_heads` is 5, which does not divide num_attention_heads (32)"],
    );
    check(
        llama_json(),
        json!({"head_dim": 65}),
        expect!["config.json: `head_dim` is 65; rotary positions need an even number"],
    );
    check(
        llama_json(),
        json!({"head_dim": 1 << 20}),
        expect!["config.json: `head_dim` times the number of heads is more than 1048576"],
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
fn what_the_newer_families_do_not_compute_is_refused_by_name() {
    check(
        gpt_neox_json(),
        json!({"hidden_act": "relu"}),
        expect!["config.json: `hidden_act` is `relu`; gelu, gelu_new, gelu_fast and gelu_pytorch_tanh are supported"],
    );
    check(
        gpt_neox_json(),
        json!({"attention_bias": false}),
        expect!["config.json: `attention_bias` is false; only true is supported"],
    );
    check(
        gpt_neox_json(),
        json!({"hidden_size": 2047}),
        expect!["config.json: `hidden_size` is 2047, not a multiple of num_attention_heads (16)"],
    );
    // With 128 dimensions per head, 0.02 of them are 2, 0.03 are 3, and 0.005 are none.
    check(gpt_neox_json(), json!({"rotary_pct": 0.02}), expect!["1414647808 parameters"]);
    check(
        gpt_neox_json(),
        json!({"rotary_pct": 0.03}),
        expect![
            "config.json: `rotary_pct` is 0.03, which rotates 3 of a head's 128 dimensions; rotary positions need an even number of them, at least 2"
        ],
    );
    check(
        gpt_neox_json(),
        json!({"rotary_pct": 0.005}),
        expect![
            "config.json: `rotary_pct` is 0.005, which rotates 0 of a head's 128 dimensions; rotary positions need an even number of them, at least 2"
        ],
    );
    check(
        gpt_neox_json(),
        json!({"rotary_pct": 1.5}),
        expect![
            "config.json: `rotary_pct` is 1.5, which rotates 192 of a head's 128 dimensions; rotary positions need an even number of them, at least 2"
        ],
    );
    check(
        gpt_neox_json(),
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
        expect!["config.json: `rope_scaling` asks for `linear` rotary scaling, which is not supported"],
    );

    check(
        opt_json(),
        json!({"do_layer_norm_before": false}),
        expect![
            "config.json: `do_layer_norm_before` is false: the norms come after attention and MLP, as in OPT-350M, which is not supported"
        ],
    );
    check(
        opt_json(),
        json!({"word_embed_proj_dim": 512}),
        expect![
            "config.json: `word_embed_proj_dim` is 512, but hidden_size is 2048: projected embeddings, as in OPT-350M, are not supported"
        ],
    );
    check(
        opt_json(),
        json!({"activation_function": "gelu"}),
        expect!["config.json: `activation_function` is `gelu`; only relu is supported"],
    );
    check(
        opt_json(),
        json!({"enable_bias": false}),
        expect!["config.json: `enable_bias` is false; only true is supported"],
    );
    check(
        opt_json(),
        json!({"layer_norm_elementwise_affine": false}),
        expect!["config.json: `layer_norm_elementwise_affine` is false; only true is supported"],
    );
    check(
        opt_json(),
        json!({"_remove_final_layer_norm": true}),
        expect!["config.json: `_remove_final_layer_norm` is true; only false is supported"],
    );
    check(
        opt_json(),
        json!({"tie_word_embeddings": false}),
        expect!["config.json: `tie_word_embeddings` is false; only true is supported"],
    );

    for (key, value, expected) in [
        ("alibi", json!(false), expect!["config.json: `attn_config.alibi` is false; only true is supported"]),
        ("alibi_bias_max", json!(16), expect!["config.json: `attn_config.alibi_bias_max` is 16; only 8 is supported"]),
        (
            "attn_type",
            json!("multiquery_attention"),
            expect![[
                r#"config.json: `attn_config.attn_type` is "multiquery_attention"; only "multihead_attention" is supported"#
            ]],
        ),
        ("clip_qkv", json!(6), expect!["config.json: `attn_config.clip_qkv` is 6, which is not supported"]),
        ("prefix_lm", json!(true), expect!["config.json: `attn_config.prefix_lm` is true; only false is supported"]),
        ("qk_ln", json!(true), expect!["config.json: `attn_config.qk_ln` is true; only false is supported"]),
        (
            "softmax_scale",
            json!(0.1),
            expect!["config.json: `attn_config.softmax_scale` is 0.1, which is not supported"],
        ),
    ] {
        let mut attention = mpt_json()["attn_config"].clone();
        attention[key] = value;
        check(mpt_json(), json!({"attn_config": attention}), expected);
    }
    check(
        mpt_json(),
        json!({"expansion_ratio": 3}),
        expect!["config.json: `expansion_ratio` is 3; only 4 is supported"],
    );
    check(
        mpt_json(),
        json!({"logit_scale": "inv_sqrt_d_model"}),
        expect![[r#"config.json: `logit_scale` is "inv_sqrt_d_model", which is not supported"#]],
    );
    check(mpt_json(), json!({"no_bias": false}), expect!["config.json: `no_bias` is false; only true is supported"]);
    check(
        mpt_json(),
        json!({"norm_type": "rmsnorm"}),
        expect!["config.json: `norm_type` is `rmsnorm`; only LayerNorm is supported"],
    );

    check(
        mosaic_gpt_json(),
        json!({"alibi": false}),
        expect!["config.json: `alibi` is false; only ALiBi positions are supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"alibi": null}),
        expect!["config.json: `alibi` is false; only ALiBi positions are supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"attn_clip_qkv": 8.0}),
        expect!["config.json: `attn_clip_qkv` is 8.0, which is not supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"no_bias": null}),
        expect!["config.json: `no_bias` is false; only mosaic_gpt without biases is supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"prefix_lm": true}),
        expect!["config.json: `prefix_lm` is true; only false is supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"n_heads": 32, "softmax_scale": 0.5}),
        expect!["config.json: `softmax_scale` is 0.5, which is not supported"],
    );
    check(
        mosaic_gpt_json(),
        json!({"d_model": 2040, "n_heads": 12}),
        expect![
            "config.json: `n_heads` is 12: versions of mosaic_gpt disagree about ALiBi's slopes unless it is a power of two"
        ],
    );
    check(
        mosaic_gpt_json(),
        json!({"mlp_ratio": 1 << 20}),
        expect!["config.json: `mlp_ratio` times d_model is more than 1048576"],
    );
    check(
        mosaic_gpt_json(),
        json!({"attn_config": {}}),
        expect![
            "config.json: `attn_config` is set: this is a newer layout of mosaic_gpt than MPT-1.3B's, which is not supported"
        ],
    );
    check(mosaic_gpt_json(), json!({"attn_qk_ln": false, "alibi_bias_max": 6}), expect!["1311344640 parameters"]);

    check(paper_json(), json!({"bias": "no"}), expect![[r#"config.json: `bias` is "no", not true or false"#]]);
}

#[test]
fn the_share_of_a_head_that_turns_is_read_in_every_way_it_is_written() {
    let dims = |changes: Value| {
        let mut config = gpt_neox_json();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = DecoderConfig::from_hf(&config).unwrap();
        (config.rotary_dims.unwrap(), config.rope_theta.unwrap())
    };
    assert_eq!(dims(json!({})), (32, 1e4));
    assert_eq!(dims(json!({"rotary_pct": null, "rotary_emb_base": null})), (32, 1e4));
    assert_eq!(dims(json!({"rotary_pct": 1.0, "rotary_emb_base": 25000})), (128, 25e3));
    let parameters = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5});
    assert_eq!(dims(json!({"rotary_pct": null, "rope_parameters": parameters})), (64, 5e5));
    // Every even number of dimensions survives the conversion to a fraction and back.
    for head_dim in 2..130 {
        for rotary_dims in (2..=head_dim).step_by(2) {
            let mut config = DecoderConfig::from_hf(&gpt_neox_json()).unwrap();
            config = DecoderConfig { d_model: 16 * head_dim, head_dim, rotary_dims: Some(rotary_dims), ..config };
            assert_eq!(DecoderConfig::from_hf(&config.to_hf()).unwrap(), config);
        }
    }
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
    for config in every_family() {
        let config = DecoderConfig::from_hf(&config).unwrap();
        assert_eq!(DecoderConfig::from_hf(&config.to_hf()).unwrap(), config);
    }
}

#[test]
fn every_name_means_itself() {
    for json in every_family() {
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
    assert!(matches!(means("h.3.attn.bias"), NameInFile::NotNeeded(_)));
    assert_eq!(means("h.3.attn.c_attn.bias"), NameInFile::Tensor("transformer.h.3.attn.c_attn.bias".to_owned()));
    assert!(matches!(means("score.weight"), NameInFile::NotNeeded(_)));
}

#[test]
fn names_of_other_savers_are_understood() {
    let means = |config: &Value, name: &str| match DecoderConfig::from_hf(config).unwrap().name_in_file(name) {
        NameInFile::Tensor(canonical) => canonical,
        NameInFile::NotNeeded(_) => "buffer".to_owned(),
        NameInFile::Unknown => "unknown".to_owned(),
    };
    let neox = |name: &str| means(&gpt_neox_json(), name);
    assert_eq!(neox("lm_head.weight"), "embed_out.weight");
    for buffer in ["bias", "masked_bias", "rotary_emb.inv_freq"] {
        assert_eq!(neox(&format!("gpt_neox.layers.23.attention.{buffer}")), "buffer");
    }
    assert_eq!(neox("gpt_neox.layers.23.attention.dense.bias"), "gpt_neox.layers.23.attention.dense.bias");
    assert_eq!(neox("gpt_neox.layers.24.attention.dense.bias"), "unknown");

    let opt = |name: &str| means(&opt_json(), name);
    assert_eq!(opt("decoder.final_layer_norm.bias"), "model.decoder.final_layer_norm.bias");
    assert_eq!(opt("decoder.layers.3.final_layer_norm.bias"), "model.decoder.layers.3.final_layer_norm.bias");
    assert_eq!(opt("decoder.embed_positions.weight"), "model.decoder.embed_positions.weight");
    assert_eq!(opt("model.decoder.project_in.weight"), "unknown");

    assert_eq!(means(&mpt_json(), "transformer.blocks.0.norm_1.bias"), "unknown");
    assert_eq!(means(&mpt_json(), "transformer.blocks.0.ln_1.weight"), "unknown");
    assert_eq!(means(&mosaic_gpt_json(), "transformer.blocks.0.norm_1.weight"), "unknown");
    assert_eq!(means(&paper_json(), "h.0.ln_1.bias"), "unknown");
    assert_eq!(means(&paper_json(), "h.0.attn.bias"), "buffer");
}

#[test]
fn opt_has_two_norms_of_one_name_and_rows_before_its_positions() {
    let config = DecoderConfig::from_hf(&opt_json()).unwrap();
    let role = |name: &str| config.tensors().into_iter().find(|spec| spec.name == name).unwrap().role;
    assert_eq!(role("model.decoder.final_layer_norm.weight"), TensorRole::FinalNorm);
    let in_block = TensorRole::Block { layer: 7, part: BlockPart::Norm };
    assert_eq!(role("model.decoder.layers.7.final_layer_norm.weight"), in_block);
    let positions = config.tensors().into_iter().find(|spec| spec.role == TensorRole::PositionEmbedding).unwrap();
    assert_eq!((positions.shape, config.max_positions), (vec![2050, 2048], 2048));
}

#[test]
fn an_architecture_of_every_family_is_one_that_is_read() {
    for family in Family::ALL {
        let architecture = Architecture {
            family,
            n_layers: LayerCount(2),
            d_model: 72,
            n_heads: 4,
            n_kv_heads: None,
            d_ff: None,
            max_positions: 16,
            rope_theta: None,
            tied_head: None,
            inverse_layer_scale: false,
            no_bias: family == Family::Gpt2,
            pad_vocab_to_multiple_of: None,
        };
        architecture.validate_shape().unwrap();
        let config = architecture.config(50);
        assert_eq!(DecoderConfig::from_hf(&config.to_hf()).unwrap(), config);
        let json = serde_json::to_value(&architecture).unwrap();
        assert_eq!(json["family"], json!(family.as_str()));
        let no_bias = Architecture { no_bias: true, ..architecture };
        assert_eq!(no_bias.validate_shape().is_ok(), family == Family::Gpt2);
    }
}

/// The paper's GPT-2 Medium as a recipe describes it: 24 layers, then its target with 16.
#[test]
fn the_paper_s_gpt2_can_be_asked_for() {
    let architecture: Architecture = serde_json::from_value(json!({
        "family": "gpt2", "n_layers": 24, "d_model": 1024, "n_heads": 16, "max_positions": 1024,
        "inverse_layer_scale": true, "no_bias": true, "pad_vocab_to_multiple_of": 64,
    }))
    .unwrap();
    architecture.validate_shape().unwrap();
    let reference = architecture.config(50257);
    assert_eq!(reference, DecoderConfig::from_hf(&paper_json()).unwrap());
    assert_eq!((reference.vocab_size, reference.parameters()), (50304, 354_599_936));
    assert_eq!(reference.with_layers(LayerCount(16)).parameters(), 253_920_256);
    let bad = Architecture { pad_vocab_to_multiple_of: Some(0), ..architecture };
    assert_eq!(bad.config(50257).vocab_size, 50257);
}

#[test]
fn a_record_from_before_the_newer_families_is_still_read() {
    let config = DecoderConfig::from_hf(&llama_json()).unwrap();
    let mut record = serde_json::to_value(&config).unwrap();
    for key in ["no_bias", "rotary_dims", "parallel_residual", "tanh_gelu", "alibi_bias_max", "qk_norm"] {
        record.as_object_mut().unwrap().remove(key).unwrap();
    }
    assert_eq!(serde_json::from_value::<DecoderConfig>(record).unwrap(), config);
}
