#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn llama() -> DecoderConfig {
    let json = json!({"model_type":"llama","hidden_size":8,"num_attention_heads":2,"num_hidden_layers":2,
        "intermediate_size":16,"vocab_size":32});
    DecoderConfig::from_hf(&json).unwrap()
}

/// Tests every tensor of every family with the prefixes of wrappers, with and without the base
/// model's own prefix.
#[test]
fn module_prefix_one_prefix_that_all_names_share_is_taken_off() {
    let families = [
        json!({"model_type":"llama","hidden_size":8,"num_attention_heads":2,"num_hidden_layers":2}),
        json!({"model_type":"gpt2","n_embd":8,"n_head":2,"n_layer":2}),
        json!({"model_type":"gpt_neox","hidden_size":16,"num_attention_heads":2,"num_hidden_layers":2,"rotary_pct":0.5}),
        json!({"model_type":"opt","hidden_size":8,"num_attention_heads":2,"num_hidden_layers":2,"word_embed_proj_dim":8}),
        json!({"model_type":"mpt","d_model":8,"n_heads":2,"n_layers":2}),
    ];
    for json in families {
        let config = DecoderConfig::from_hf(&json).unwrap();
        let specs = config.tensors();
        for wrapper in ["", "module.", "_orig_mod.", "model.", "base_model.model.", "pretrained_model.", "a.b.c.d."] {
            for base in [true, false] {
                let stored = |name: &str| {
                    let own = config.family.table().blocks.split_once('.').unwrap().0;
                    let own = format!("{own}.");
                    let name = if base { name } else { name.strip_prefix(own.as_str()).unwrap_or(name) };
                    format!("{wrapper}{name}")
                };
                let mut found: Vec<String> = specs.iter().map(|spec| stored(&spec.name)).collect();
                found.push("v_head.summary.weight".to_owned());
                let names = TensorNames::new(&config, found.iter().map(String::as_str));
                for spec in &specs {
                    let meaning = names.meaning(&stored(&spec.name));
                    assert_eq!(meaning, NameInFile::Tensor(spec.name.clone()), "{wrapper} {base} {json}");
                }
                assert_eq!(names.meaning("v_head.summary.weight"), NameInFile::NotNeeded(OTHER_HEAD));
            }
        }
    }
}

#[test]
fn extra_state_and_v_head_are_not_needed_and_learned_tensors_are() {
    let config = llama();
    let names = TensorNames::new(&config, std::iter::empty());
    for name in [
        "model.layers.0.self_attn.q_proj._extra_state",
        "_extra_state",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "v_head.summary.weight",
        "v_head.summary.bias",
        "score.weight",
        "model.embeddings.position_ids",
    ] {
        assert!(matches!(names.meaning(name), NameInFile::NotNeeded(_)), "{name}");
    }
    for name in ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.inv_freq", "scores.weight"] {
        assert_eq!(names.meaning(name), NameInFile::Unknown, "{name}");
    }
}

#[test]
fn unknown_names_say_what_they_are() {
    let config = llama();
    let names = TensorNames::new(&config, std::iter::empty());
    for (name, words) in [
        ("model.layers.0.mlp.up_proj.qweight", "quantised"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "quantised"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA adapter"),
        ("model.layers.2.mlp.up_proj.weight", "layer 2, but config.json says that there are 2 layers"),
        ("tok_embeddings.weight", "a name of Meta's format"),
        ("house.weight", "is unknown in the llama family with 2 layers"),
    ] {
        assert!(names.unknown(name).contains(words), "{}", names.unknown(name));
    }
}
