//! Checkpoints that were once read wrongly or rejected by mistake
//! (`scripts/faults/checkpoints.py`), and similar ones.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{House, first, read_tensors, sliced};
use inheritune_api::v1;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::LayerMapRule;
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Builds a house that contains these folders.
async fn house(names: &[&str]) -> House {
    let house = House::build().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/faults/checkpoints.py");
    let status = Command::new("python3").arg(script).arg(house.dir.path()).args(names).status().unwrap();
    assert!(status.success());
    house
}

/// Slices the first `layers` layers and returns the target's tensors and config.
async fn cut(house: &House, name: &str, layers: u32) -> (Tensors, Value) {
    let made = house.slice(first(house.location(name), layers)).await;
    let tensors = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
    (tensors, house.json(made.checkpoint, "config.json").await)
}

async fn refused(house: &House, name: &str) -> String {
    let record = house.job(inheritune_slicer::handler(&house.store), first(house.location(name), 2)).await;
    assert_eq!((record.status, record.attempts), (JobStatus::Failed, 1), "{name}: {:?}", record.error);
    let error = record.error.unwrap();
    assert!(error.contains(name), "{name}: {error}");
    error
}

/// Kinds and names of what the plan of a slice leaves out.
async fn left_out(house: &House, name: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let spec = first(house.location(name), 2);
    house
        .serve(async |client| {
            let request = v1::PlanSliceRequest { spec: Some((&spec).into()) };
            let reply = client.plan_slice(request).await.unwrap().into_inner();
            assert!(reply.left_out.iter().all(|left| !left.reason.is_empty()));
            found = reply.left_out.into_iter().map(|left| (left.kind, left.name)).collect();
        })
        .await;
    found
}

fn has(left_out: &[(String, String)], kind: &str, name: &str) -> bool {
    left_out.iter().any(|(k, n)| k == kind && n == name)
}

#[tokio::test]
async fn c1_quantization_config_left_beside_plain_weights_is_dropped_and_told() {
    let house = house(&["quantization_config_left", "gpt2_claims"]).await;
    for (name, keys) in [
        ("quantization_config_left", ["quantization_config", "transformers_version"].as_slice()),
        ("gpt2_claims", &["quantization_config", "_attn_implementation", "auto_map", "_name_or_path", "pruned_heads"]),
    ] {
        let (_, config) = cut(&house, name, 2).await;
        let told = left_out(&house, name).await;
        for key in keys {
            assert!(config.get(key).is_none(), "{name}: {key}");
            assert!(has(&told, "config key", key), "{name}: {key}: {told:?}");
        }
    }
    house.close().await;
}

#[tokio::test]
async fn c2_v5_as_saved_is_written_for_both_versions() {
    let house = house(&["v5_as_saved", "llama_v4", "gpt_neox_v5", "gpt_neox_plain"]).await;
    for name in ["v5_as_saved", "llama_v4"] {
        let (_, config) = cut(&house, name, 2).await;
        assert_eq!(config["rope_theta"], 500_000.0, "{name}");
        assert_eq!(config["rope_parameters"], json!({"rope_theta": 500_000.0, "rope_type": "default"}), "{name}");
        assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!("float32"), &json!("float32")), "{name}");
    }
    for (name, theta, share) in [("gpt_neox_v5", 50_000.0, 1.0), ("gpt_neox_plain", 20_000.0, 0.5)] {
        let (_, config) = cut(&house, name, 2).await;
        assert_eq!((&config["rotary_emb_base"], &config["rotary_pct"]), (&json!(theta), &json!(share)), "{name}");
        let both = json!({"rope_theta": theta, "rope_type": "default", "partial_rotary_factor": share});
        assert_eq!(config["rope_parameters"], both, "{name}");
        assert_eq!(config["dtype"], "float32", "{name}");
    }
    house.close().await;
}

#[tokio::test]
async fn c4_tied_flag_but_own_head_is_kept_where_the_family_can_and_named_where_not() {
    let names = [
        "tied_flag_but_own_head",
        "gpt_neox_own_head_bin",
        "gpt2_head_copy",
        "gpt2_untied_flag_same_head",
        "llama_head_copy_other_type",
        "gpt2_own_head",
        "gpt2_untied_own_head",
        "opt_own_head",
        "mpt_own_head_bin",
        "gpt2_untied_no_head",
        "llama_untied_no_head",
        "llama_plain",
    ];
    let house = house(&names).await;
    let plain = cut(&house, "llama_plain", 2).await.0;
    let (own, config) = cut(&house, "tied_flag_but_own_head", 2).await;
    assert_eq!(config["tie_word_embeddings"], false);
    assert!(own["lm_head.weight"] == plain["lm_head.weight"] && own == plain);
    let (own, config) = cut(&house, "gpt_neox_own_head_bin", 2).await;
    assert_eq!(config["tie_word_embeddings"], false);
    assert_ne!(own["embed_out.weight"].2, own["gpt_neox.embed_in.weight"].2);
    for (name, head) in
        [("gpt2_head_copy", "wte"), ("gpt2_untied_flag_same_head", "wte"), ("llama_head_copy_other_type", "")]
    {
        let (tied, config) = cut(&house, name, 2).await;
        assert_eq!(config["tie_word_embeddings"], true, "{name}");
        assert!(!tied.contains_key("lm_head.weight"), "{name}");
        assert!(has(&left_out(&house, name).await, "tensor", "lm_head.weight"), "{name}");
        assert!(head.is_empty() || tied.contains_key(&format!("transformer.{head}.weight")), "{name}");
    }
    for (name, embedding) in [
        ("gpt2_own_head", "transformer.wte.weight"),
        ("gpt2_untied_own_head", "transformer.wte.weight"),
        ("opt_own_head", "model.decoder.embed_tokens.weight"),
        ("mpt_own_head_bin", "transformer.wte.weight"),
    ] {
        let error = refused(&house, name).await;
        let expected = format!("tensor `lm_head.weight` differs from `{embedding}`");
        assert!(error.contains(&expected), "{name}: {error}");
    }
    for name in ["gpt2_untied_no_head", "llama_untied_no_head"] {
        let error = refused(&house, name).await;
        assert!(error.contains("tensor `lm_head.weight` is missing"), "{name}: {error}");
    }
    house.close().await;
}

#[tokio::test]
async fn c5_c6_lists_of_layers_and_both_names_of_a_key_follow_the_slice() {
    let names =
        ["layer_types_left_by_converter", "llama_lists", "gpt2_both_names", "gpt2_alias_conflict", "mpt_both_names"];
    let house = house(&names).await;
    let (_, config) = cut(&house, "layer_types_left_by_converter", 2).await;
    assert_eq!(config["layer_types"], json!(["full_attention", "full_attention"]));
    let picked = sliced(house.location("llama_lists"), 3, (LayerMapRule::List(vec![1, 1, 2]), InheritSet::ALL));
    let made = house.slice(picked).await;
    let config = house.json(made.checkpoint, "config.json").await;
    assert_eq!(config["layer_types"], json!(["sliding_attention", "sliding_attention", "full_attention"]));
    assert_eq!(config["attention_types"], json!([[["local", "local", "global"], 1]]));
    assert_eq!(config["num_heads_per_layer"], json!([4, 4, 4]));
    for (name, own) in
        [("gpt2_both_names", "n_layer"), ("gpt2_alias_conflict", "n_layer"), ("mpt_both_names", "n_layers")]
    {
        let (tensors, config) = cut(&house, name, 2).await;
        assert_eq!((&config[own], &config["num_hidden_layers"]), (&json!(2), &json!(2)), "{name}");
        assert!(!tensors.keys().any(|tensor| tensor.contains(".2.")), "{name}");
    }
    house.close().await;
}

/// Each of these contains the tensors of one of four models: llama, gpt2, gpt_neox or mpt.
#[tokio::test]
async fn what_transformers_reads_is_read_to_the_same_tensors() {
    let llamas = [
        "config_bom",
        "extra_state",
        "extra_state_none",
        "index_stale_inv_freq",
        "index_wrong_shard",
        "lit_new_yaml",
        "lit_new_with_hf_config",
        "max_sequence_length",
        "mistral_as_llama",
        "module_prefix",
        "python_nan_infinity",
        "rope_linear_factor_1",
        "swish_alias",
        "symlink_broken_readme",
        "v_head",
        "wrapped_state_dict",
        "llama_compiled",
        "llama_lightning",
        "llama_other_file",
        "llama_pth",
        "llama_torch_dtype_auto",
    ];
    let plain = ["llama_plain", "gpt2_plain", "gpt_neox_plain", "mpt_plain"];
    let others = ["llama_bare_names", "gpt_neox_bare", "nano_other_name", "mpt_bare"];
    let house = house(&[llamas.as_slice(), &plain, &others].concat()).await;
    let expected = cut(&house, "llama_plain", 2).await.0;
    for name in llamas {
        let found = cut(&house, name, 2).await.0;
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        assert!(found == expected, "{name}");
    }
    for (name, plain) in [
        ("llama_bare_names", "llama_plain"),
        ("gpt_neox_bare", "gpt_neox_plain"),
        ("nano_other_name", "gpt2_plain"),
        ("mpt_bare", "mpt_plain"),
    ] {
        let (mut expected, found) = (cut(&house, plain, 2).await.0, cut(&house, name, 2).await.0);
        expected.retain(|tensor, _| !matches!(tensor.as_str(), "lm_head.weight" | "embed_out.weight"));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        assert!(found == expected, "{name}");
    }
    for (name, tensor) in
        [("extra_state", "model.layers.0.self_attn.q_proj._extra_state"), ("v_head", "v_head.summary.weight")]
    {
        assert!(has(&left_out(&house, name).await, "tensor", tensor), "{name}");
    }
    assert!(has(&left_out(&house, "python_nan_infinity").await, "config key", "my_limit"));
    assert!(has(&left_out(&house, "max_sequence_length").await, "config key", "pad_token_id"));
    house.close().await;
}

#[tokio::test]
async fn what_is_refused_says_what_it_is_and_what_to_name_instead() {
    let cases = [
        ("fp8", ["quantised (fp8)", "dequantise"]),
        ("gptq", ["quantised (gptq)", "dequantise"]),
        ("lfs_pointer", ["model.safetensors is a Git LFS pointer", "git lfs pull"]),
        ("peft_adapter", ["is a PEFT adapter", "merge it"]),
        ("hub_cache_root", ["a cache of the Hugging Face hub", "models--org--name/snapshots/abc123"]),
        ("only_consolidated", ["consolidated.safetensors", "convert it"]),
        ("llama2c_ckpt", ["is a llama2.c checkpoint", "export.py"]),
    ];
    let house = house(&cases.map(|(name, _)| name)).await;
    for (name, words) in cases {
        let error = refused(&house, name).await;
        assert!(words.iter().all(|word| error.contains(word)), "{name}: {error}");
    }
    std::os::unix::fs::symlink("gone", house.dir.path().join("peft_adapter/config.json")).unwrap();
    std::fs::remove_file(house.dir.path().join("peft_adapter/adapter_config.json")).unwrap();
    std::fs::remove_file(house.dir.path().join("peft_adapter/adapter_model.safetensors")).unwrap();
    let error = refused(&house, "peft_adapter").await;
    assert!(error.contains("config.json is a dangling link"), "{error}");
    house.close().await;
}
