#![allow(clippy::unwrap_used)]

use super::*;
use inheritune_ids::id::LayerCount;

fn llama() -> Value {
    json!({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":8,"num_attention_heads":2,
        "num_key_value_heads":1,"num_hidden_layers":4,"intermediate_size":16,"max_position_embeddings":32,"vocab_size":40,
        "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false,"torch_dtype":"float32"})
}

fn gpt2() -> Value {
    json!({"model_type":"gpt2","n_embd":8,"n_head":2,"n_layer":4,"n_positions":32,"vocab_size":40})
}

fn neox() -> Value {
    json!({"model_type":"gpt_neox","hidden_size":16,"num_attention_heads":2,"num_hidden_layers":4,"intermediate_size":32,
        "max_position_embeddings":32,"vocab_size":40,"rotary_pct":0.5,"rotary_emb_base":10000})
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

/// Returns the target config with the first two layers of `config`.
fn cut(config: &Value) -> Result<(Value, Vec<LeftOut>), ConfigError> {
    mapped(config, &[0, 1])
}

fn mapped(config: &Value, layers: &[u32]) -> Result<(Value, Vec<LeftOut>), ConfigError> {
    let shape = DecoderConfig::from_hf(config)?;
    let map = LayerMap::new(layers.to_vec(), shape.n_layers).unwrap();
    let (made, left_out) = target(config, &shape, &map, WeightsDtype::Copied(Some(Dtype::F32)))?;
    let expected = shape.with_layers(LayerCount(layers.len() as u32));
    assert_eq!(DecoderConfig::from_hf(&made).unwrap(), expected, "{made}");
    Ok((made, left_out))
}

fn names(left_out: &[LeftOut]) -> Vec<&str> {
    left_out.iter().map(|one| one.name.as_str()).collect()
}

#[test]
fn other_keys_are_as_they_were() {
    let config = with(llama(), json!({"house_note": {"kept": [1, 2]}, "head_dim": 4, "pad_token_id": 3}));
    let (made, left_out) = cut(&config).unwrap();
    for (key, value) in config.as_object().unwrap().iter().filter(|(key, _)| *key != "num_hidden_layers") {
        assert_eq!(&made[key], value, "{key}");
    }
    assert_eq!(made["num_hidden_layers"], 2);
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[test]
fn c1_keys_that_claim_what_the_weights_are_not_are_dropped_and_said() {
    let claims = json!({
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},
        "compression_config": {"quant_method": "compressed-tensors"},
        "auto_map": {"AutoModelForCausalLM": "modeling_house.House"},
        "_attn_implementation": "flash_attention_2",
        "_name_or_path": "/home/somebody/model",
        "transformers_version": "4.30.0",
        "pruned_heads": {"0": [1]},
        "architectures": ["LlamaForSequenceClassification"],
    });
    for config in [llama(), gpt2(), neox()] {
        let (made, left_out) = cut(&with(config, claims.clone())).unwrap();
        for key in claims.as_object().unwrap().keys().filter(|key| *key != "architectures") {
            assert!(made.get(key).is_none(), "{key}: {made}");
            assert!(names(&left_out).contains(&key.as_str()), "{key}: {left_out:?}");
        }
        assert!(made["architectures"][0].as_str().unwrap().ends_with("CausalLM") || made["model_type"] == "gpt2");
    }
    // Empty keys are dropped without a report.
    let (made, left_out) = cut(&with(llama(), json!({"pruned_heads": {}, "quantization_config": null}))).unwrap();
    assert!(!names(&left_out).contains(&"pruned_heads"));
    assert!(made.get("pruned_heads").is_none() && left_out.is_empty());
    // Every installation supports these.
    let (made, _) = cut(&with(llama(), json!({"_attn_implementation": "eager"}))).unwrap();
    assert_eq!(made["_attn_implementation"], "eager");
}

#[test]
fn c1_trained_weights_are_what_their_config_says() {
    let shape = DecoderConfig::from_hf(&llama()).unwrap();
    let map = LayerMap::identity(LayerCount(4));
    for (told, dtype, expected) in [
        (json!({"dtype": "bfloat16"}), Dtype::F32, "float32"),
        (json!({"torch_dtype": "float16", "dtype": "float16"}), Dtype::Bf16, "bfloat16"),
        (json!({"torch_dtype": null}), Dtype::F32, "float32"),
    ] {
        let (made, _) = target(&with(llama(), told), &shape, &map, WeightsDtype::Trained(dtype)).unwrap();
        assert_eq!((&made["dtype"], &made["torch_dtype"]), (&json!(expected), &json!(expected)));
    }
}

#[test]
fn c2_rotary_positions_are_written_as_both_versions_spell_them() {
    for (told, theta) in [
        (json!({"rope_theta": 500000.0}), 500_000.0),
        (json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}), 500_000.0),
        // If the values disagree, use the one that transformers 5 uses.
        (json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}), 500_000.0),
        (
            json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 9.0}, "rope_scaling": {"type": "linear", "factor": 1.0}}),
            7.0,
        ),
        (json!({}), 10_000.0),
    ] {
        let (made, _) = cut(&with(without(llama(), "rope_theta"), told)).unwrap();
        assert_eq!(made["rope_theta"], theta, "{made}");
        assert_eq!(made["rope_parameters"], json!({"rope_theta": theta, "rope_type": "default"}));
        assert_eq!(made.get("rope_scaling"), Some(&Value::Null));
    }
    let bare = without(without(neox(), "rotary_pct"), "rotary_emb_base");
    for (told, theta, share) in [
        (json!({"rotary_pct": 1.0, "rotary_emb_base": 77}), 77.0, 1.0),
        (json!({"rope_parameters": {"rope_theta": 77, "partial_rotary_factor": 0.5}}), 77.0, 0.5),
        (json!({"rope_theta": 5, "partial_rotary_factor": 1.0, "rotary_pct": 0.5}), 10_000.0, 0.5),
        (json!({}), 10_000.0, 0.25),
    ] {
        let (made, _) = cut(&with(bare.clone(), told)).unwrap();
        assert_eq!((&made["rotary_emb_base"], &made["rotary_pct"]), (&json!(theta), &json!(share)), "{made}");
        let both = json!({"rope_theta": theta, "partial_rotary_factor": share, "rope_type": "default"});
        assert_eq!(made["rope_parameters"], both);
    }
}

#[test]
fn c2_the_dtype_is_written_under_both_names() {
    for told in [json!({"dtype": "float16", "torch_dtype": "float32"}), json!({"torch_dtype": "float16"})] {
        let (made, _) = cut(&with(without(llama(), "torch_dtype"), told)).unwrap();
        assert_eq!((&made["dtype"], &made["torch_dtype"]), (&json!("float16"), &json!("float16")));
    }
    // transformers cannot read these, so the dtype of the weights is written.
    for told in [json!("auto"), json!("torch.float16"), json!({"a": 1})] {
        let (made, left_out) = cut(&with(llama(), json!({"torch_dtype": told}))).unwrap();
        assert_eq!(made["dtype"], "float32");
        assert_eq!(names(&left_out), ["torch_dtype"]);
    }
    let (made, _) = cut(&gpt2()).unwrap();
    assert_eq!((&made["dtype"], &made["torch_dtype"]), (&json!("float32"), &json!("float32")));
}

#[test]
fn rope_linear_factor_1_and_other_scalings_that_change_nothing() {
    for rope in [
        json!({"type": "linear", "factor": 1.0}),
        json!({"rope_type": "linear", "factor": 1}),
        json!({"type": "default"}),
        json!({"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}),
        json!({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32}),
        json!({"rope_type": "longrope", "factor": 1.0, "short_factor": [1.0, 1.0], "long_factor": [1, 1]}),
        json!({"rope_type": "default", "factor": 8.0}),
        json!({"type": null}),
        json!({"rope_type": null, "type": "linear", "factor": 1.0}),
        json!({}),
        Value::Null,
    ] {
        for key in ["rope_scaling", "rope_parameters"] {
            for config in [llama(), neox()] {
                let (made, _) = cut(&with(config, json!({key: rope.clone()}))).unwrap();
                assert_eq!(made.get("rope_scaling"), Some(&Value::Null), "{rope}");
                assert_eq!(made["rope_parameters"]["rope_type"], "default");
            }
        }
    }
    // This one has an effect beyond the model's length, so it is kept.
    for factor in [1.0, 2.0] {
        let (made, _) = cut(&with(llama(), json!({"rope_scaling": {"type": "dynamic", "factor": factor}}))).unwrap();
        assert_eq!(made["rope_scaling"], json!({"rope_type": "dynamic", "factor": factor}));
        assert_eq!(made["rope_parameters"], json!({"rope_theta": 10000.0, "rope_type": "dynamic", "factor": factor}));
    }
    for rope in [
        json!({"type": "linear", "factor": 2.0}),
        json!({"type": "linear"}),
        json!({"type": "dynamic", "factor": 0.5}),
        json!({"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.2}),
        json!({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 16}),
        json!({"rope_type": "longrope", "factor": 1.0, "short_factor": [1.0, 2.0], "long_factor": [1.0, 1.0]}),
        json!({"full_attention": {"rope_type": "default"}}),
    ] {
        for key in ["rope_scaling", "rope_parameters"] {
            let error = cut(&with(llama(), json!({key: rope.clone()}))).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
    let half = cut(&with(llama(), json!({"partial_rotary_factor": 0.5}))).unwrap_err().to_string();
    assert!(half.contains("partial_rotary_factor"), "{half}");
}

#[test]
fn c4_the_flag_says_what_the_head_is() {
    let mut shape = DecoderConfig::from_hf(&with(llama(), json!({"tie_word_embeddings": true}))).unwrap();
    shape.tied_head = false;
    let map = LayerMap::identity(LayerCount(4));
    let config = with(llama(), json!({"tie_word_embeddings": true}));
    let (made, left_out) = target(&config, &shape, &map, WeightsDtype::Copied(None)).unwrap();
    assert_eq!(made["tie_word_embeddings"], false);
    assert_eq!(names(&left_out), ["tie_word_embeddings"]);
    let shape = DecoderConfig::from_hf(&gpt2()).unwrap();
    let config = with(gpt2(), json!({"tie_word_embeddings": false}));
    let (made, _) = target(&config, &shape, &map, WeightsDtype::Copied(None)).unwrap();
    assert_eq!(made["tie_word_embeddings"], true);
}

#[test]
fn c5_lists_of_layers_follow_the_map_whatever_their_key() {
    let config = with(
        llama(),
        json!({
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "chunked_attention"],
            "sliding_window_pattern": [null, 4096, null, 8],
            "deep": {"per_layer": {"num_heads": [1, 2, 3, 4], "layers": {"0": "a", "3": "d"}}},
            "attention_layers": ["global", "local", "global", "local"],
            "attention_types": [[["global", "local"], 2]],
            "head_groups": [[1, 2], [3, 4], [5, 6], [7, 8]],
            "architectures": ["LlamaForCausalLM"],
            "eos_token_id": [1, 2, 3, 4],
            "tags": ["a", "b", "c", "d"],
            "betas": [0.9, 0.95],
            "n_layer": 4,
        }),
    );
    let (made, _) = mapped(&config, &[3, 0, 3]).unwrap();
    assert_eq!(made["layer_types"], json!(["chunked_attention", "full_attention", "chunked_attention"]));
    assert_eq!(made["sliding_window_pattern"], json!([8, null, 8]));
    assert_eq!(made["deep"]["per_layer"]["num_heads"], json!([4, 1, 4]));
    assert_eq!(made["deep"]["per_layer"]["layers"], json!({"0": "d", "1": "a", "2": "d"}));
    assert_eq!(made["attention_layers"], json!(["local", "global", "local"]));
    assert_eq!(made["attention_types"], json!([[["local", "global", "local"], 1]]));
    assert_eq!(made["head_groups"], json!([[7, 8], [1, 2], [7, 8]]));
    assert_eq!(made["eos_token_id"], config["eos_token_id"]);
    assert_eq!(made["tags"], config["tags"]);
    assert_eq!(made["betas"], config["betas"]);
    assert_eq!((&made["num_hidden_layers"], &made["n_layer"]), (&json!(3), &json!(3)));
    let short = with(config.clone(), json!({"layer_types": ["full_attention"]}));
    let error = mapped(&short, &[0, 1, 2, 3]).unwrap_err().to_string();
    assert_eq!(error, "config.json: `layer_types` has 1 entries, but the model has 4 layers");
    // If all layers stay in place, lists need no interpretation.
    let odd = with(config, json!({"zeta": [1, 2, 3, 4]}));
    let (made, _) = mapped(&odd, &[0, 1, 2, 3]).unwrap();
    assert_eq!(made["zeta"], odd["zeta"]);
    let error = mapped(&odd, &[0, 1]).unwrap_err().to_string();
    assert!(error.contains("`zeta` is a list of 4 entries, as many as there are layers"), "{error}");
}

#[test]
fn c6_both_names_of_a_key_say_the_same() {
    let config = with(gpt2(), json!({"num_hidden_layers": 4, "hidden_size": 8, "max_position_embeddings": 32}));
    let (made, left_out) = cut(&config).unwrap();
    assert_eq!((&made["n_layer"], &made["num_hidden_layers"]), (&json!(2), &json!(2)));
    assert!(left_out.is_empty(), "{left_out:?}");
    // If the values disagree, transformers reads the alias.
    let stale = with(gpt2(), json!({"num_hidden_layers": 3, "num_attention_heads": 4, "n_ctx": 32}));
    let (made, left_out) = mapped(&stale, &[0, 1]).unwrap();
    assert_eq!((&made["n_layer"], &made["num_hidden_layers"]), (&json!(2), &json!(2)));
    assert_eq!((&made["n_head"], &made["num_attention_heads"]), (&json!(4), &json!(4)));
    assert_eq!(names(&left_out), ["n_head", "n_layer"]);
    // With the alias alone.
    let only = with(without(gpt2(), "n_layer"), json!({"num_hidden_layers": 4, "hidden_size": null}));
    let (made, _) = cut(&only).unwrap();
    assert_eq!((&made["n_layer"], &made["num_hidden_layers"]), (&json!(2), &json!(2)));
    assert!(made.get("hidden_size").is_none());
    let mpt = json!({"model_type":"mpt","d_model":8,"n_heads":2,"n_layers":4,"max_seq_len":32,"vocab_size":40,
        "num_hidden_layers":4,"hidden_size":8});
    let (made, _) = cut(&mpt).unwrap();
    assert_eq!((&made["n_layers"], &made["num_hidden_layers"]), (&json!(2), &json!(2)));
}

#[test]
fn max_sequence_length_keys_left_at_the_classes_default_are_read_and_written() {
    let config =
        with(without(llama(), "max_position_embeddings"), json!({"max_sequence_length": 128, "pad_token_id": -1}));
    let (made, left_out) = cut(&config).unwrap();
    assert_eq!(made["max_position_embeddings"], 2048);
    assert_eq!(made.get("pad_token_id"), Some(&Value::Null));
    assert_eq!(names(&left_out), ["pad_token_id"]);
    for (model_type, parameters) in [("gpt2", 124_439_808), ("llama", 6_738_415_616), ("opt", 125_239_296)] {
        let config = DecoderConfig::from_hf(&json!({"model_type": model_type})).unwrap();
        assert_eq!(config.parameters(), parameters, "{model_type}");
    }
    // Null does not mean the default.
    assert!(cut(&with(llama(), json!({"hidden_size": null}))).is_err());
}

#[test]
fn ids_without_a_row_and_defaults_without_one_are_null() {
    let ids = json!({"eos_token_id": [3, 128001], "bos_token_id": 128000, "pad_token_id": 32000});
    let (made, left_out) = cut(&with(llama(), ids)).unwrap();
    assert_eq!(made["eos_token_id"], json!([3]));
    assert_eq!((made.get("bos_token_id"), made.get("pad_token_id")), (Some(&Value::Null), Some(&Value::Null)));
    assert_eq!(names(&left_out), ["bos_token_id", "eos_token_id", "pad_token_id"]);
    // GPT-2's own default is 50256.
    let (made, left_out) = cut(&gpt2()).unwrap();
    assert_eq!((made.get("bos_token_id"), made.get("eos_token_id")), (Some(&Value::Null), Some(&Value::Null)));
    assert!(left_out.is_empty());
    let (made, _) = cut(&llama()).unwrap();
    assert!(made.get("eos_token_id").is_none());
}

#[test]
fn rotary_settings_that_disagree_are_said_or_refused() {
    // Phi-3 writes the original length outside of the dictionary, and transformers derives an
    // attention factor from it.
    let ones = vec![1.0; 2];
    let scaling = json!({"rope_type": "longrope", "short_factor": ones, "long_factor": ones});
    let long = json!({"rope_scaling": scaling, "original_max_position_embeddings": 16});
    assert!(cut(&with(llama(), long.clone())).is_err());
    assert!(cut(&with(llama(), json!({"rope_scaling": scaling, "original_max_position_embeddings": 32}))).is_ok());
    let mut said = with(llama(), long);
    said["rope_scaling"]["attention_factor"] = 1.0.into();
    assert!(cut(&said).is_ok());
    let two_types = json!({"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 4.0}});
    let error = cut(&with(llama(), two_types)).unwrap_err().to_string();
    assert!(error.contains("`default`") && error.contains("`linear`"), "{error}");
    let two_bases = json!({"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}});
    let (made, left_out) = cut(&with(llama(), two_bases)).unwrap();
    assert_eq!((&made["rope_theta"], names(&left_out)), (&json!(500.0), vec!["rope_theta"]));
}

#[test]
fn keys_that_a_version_does_not_load_are_left_out() {
    let (made, left_out) = cut(&with(llama(), json!({"torchscript": true}))).unwrap();
    assert_eq!((made.get("torchscript"), names(&left_out)), (None, vec!["torchscript"]));
    for types in [json!(["global", "local", "global", "local"]), json!({"0": "full_attention"}), json!("full")] {
        let (made, left_out) = cut(&with(llama(), json!({"layer_types": types}))).unwrap();
        assert_eq!((made.get("layer_types"), names(&left_out)), (None, vec!["layer_types"]));
    }
}

#[test]
fn what_is_not_an_object_is_no_configuration() {
    let error = DecoderConfig::from_hf(&json!([1])).unwrap_err().to_string();
    assert_eq!(error, "config.json: is [1], not a JSON object");
    assert!(cut(&with(llama(), json!({"rms_norm_eps": 0.0, "initializer_range": 0}))).is_ok());
    assert!(cut(&with(llama(), json!({"rope_theta": 0.0}))).is_err());
}

#[test]
fn swish_alias_and_what_would_be_computed_otherwise() {
    for (config, key, good) in [
        (llama(), "hidden_act", ["silu", "swish"].as_slice()),
        (gpt2(), "activation_function", &["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"]),
        (neox(), "hidden_act", &["gelu", "gelu_python", "gelu_new", "gelu_python_tanh"]),
    ] {
        for name in good {
            assert!(cut(&with(config.clone(), json!({key: name}))).is_ok(), "{name}");
        }
        assert!(cut(&with(config, json!({key: "quick_gelu"}))).is_err());
    }
    assert!(cut(&with(llama(), json!({"is_causal": false}))).is_err());
    assert!(cut(&with(llama(), json!({"is_causal": true, "per_layer_config": {}}))).is_ok());
    assert!(cut(&with(llama(), json!({"per_layer_config": {"0": {"num_attention_heads": 1}}}))).is_err());
}

#[test]
fn python_nan_infinity_and_a_byte_order_mark() {
    let text =
        r#"{"a": 1, "limit": Infinity, "text": "an \"Infinity\" \\", "nested": {"x": [1, -Infinity, NaN]}, "z": 2}"#;
    for bytes in [text.as_bytes().to_vec(), [b"\xef\xbb\xbf", text.as_bytes()].concat()] {
        let read = parse(&bytes).unwrap();
        assert_eq!(read.json["limit"], "Infinity");
        let (json, left_out) = read.finite();
        assert_eq!(json, json!({"a": 1, "text": "an \"Infinity\" \\", "z": 2}));
        assert_eq!(names(&left_out), ["limit", "nested"]);
    }
    // A setting must not be such a number.
    let odd = r#"{"model_type":"llama","rms_norm_eps":NaN}"#;
    let error = DecoderConfig::from_hf(&parse(odd.as_bytes()).unwrap().json).unwrap_err().to_string();
    assert_eq!(error, "config.json: `rms_norm_eps` is \"NaN\", not a number greater than or equal to 0");
    for bad in ["{", "[NaNa]", "{\"a\": Infinit}", "\u{feff}\u{feff}{}"] {
        assert!(parse(bad.as_bytes()).is_err(), "{bad}");
    }
}
