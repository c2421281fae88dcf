//! Transformers 5 and 4 load every export of the test matrix (`scripts/test/check-exports.py`) without a
//! warning. The logits equal those of the reference cut to the same layers, in both versions.
//!
//! `INHERITUNE_TRANSFORMERS_PYTHON` is a Python with transformers 5, `INHERITUNE_TRANSFORMERS_457`
//! a folder for PYTHONPATH with version 4; `scripts/setup/setup-transformers.sh` makes both. Without them
//! the test prints a note and is skipped.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{House, sliced};
use inheritune_checkpoint::decoder_config::{Architecture, Family};
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::{ArtifactId, LayerCount};
use inheritune_domain::spec::{LayerMapRule, SliceSource, SliceSpec, defaults};
use serde_json::{Value, json};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts");
/// Layers of every reference that the generator makes.
const LAYERS: u32 = 4;

/// References that transformers loads itself. Their logits are the expected ones: of the whole
/// model, and of the layers that are taken.
const READ_BY_TRANSFORMERS: [&str; 39] = [
    "llama_plain",
    "llama_bf16",
    "llama_tied_f16",
    "llama_v4",
    "llama_dynamic",
    "llama_dynamic_2",
    "llama_llama3_1",
    "llama_yarn_1",
    "gpt2_plain",
    "gpt2_f16_hub_names",
    "gpt2_inverse_scale",
    "gpt_neox_plain",
    "gpt_neox_tied_bf16",
    "gpt_neox_v5",
    "opt_f16",
    "opt_plain_bin",
    "mpt_bf16",
    "mpt_plain",
    "gpt2_head_copy",
    "gpt2_untied_flag_same_head",
    "llama_head_copy_other_type",
    "gpt2_both_names",
    "gpt2_alias_conflict",
    "mpt_both_names",
    "llama_lists",
    "llama_bare_names",
    "gpt_neox_bare",
    "mpt_bare",
    "extra_state",
    "extra_state_none",
    "v_head",
    "v5_as_saved",
    "swish_alias",
    "rope_linear_factor_1",
    "max_sequence_length",
    "python_nan_infinity",
    "gpt2_default_ids",
    "llama_how_to_run",
    "llama_idle_generation",
];
/// References that transformers loads only with a warning, or not at all. The expected logits come
/// from a plain reference with the same numbers.
const MEASURED_BY_ANOTHER: [(&str, &str); 13] = [
    ("quantization_config_left", "llama_plain"),
    ("gpt2_claims", "gpt2_plain"),
    ("config_bom", "llama_plain"),
    ("module_prefix", "llama_plain"),
    ("wrapped_state_dict", "llama_plain"),
    ("lit_new_yaml", "llama_plain"),
    ("lit_new_with_hf_config", "llama_plain"),
    ("nano_other_name", "gpt2_plain"),
    ("llama_other_file", "llama_plain"),
    ("llama_torch_dtype_auto", "llama_plain"),
    ("index_wrong_shard", "llama_plain"),
    ("layer_types_left_by_converter", "llama_plain"),
    ("llama_ids_without_rows", "llama_plain"),
];
/// References with a tied flag but a separate head.
const OWN_HEADS: [&str; 2] = ["tied_flag_but_own_head", "gpt_neox_own_head_bin"];

#[tokio::test]
async fn every_export_loads_in_both_versions_with_the_same_logits() {
    let (Some(python), Some(four)) = (path("INHERITUNE_TRANSFORMERS_PYTHON"), path("INHERITUNE_TRANSFORMERS_457"))
    else {
        eprintln!("skipped: INHERITUNE_TRANSFORMERS_PYTHON and INHERITUNE_TRANSFORMERS_457 are not set");
        return;
    };
    let house = House::build().await;
    let faults = Path::new(SCRIPTS).join("faults/checkpoints.py");
    assert!(Command::new("python3").arg(faults).arg(house.dir.path()).status().unwrap().success());
    let mut cases = Vec::new();
    let read = READ_BY_TRANSFORMERS.iter().map(|name| (*name, *name)).chain(MEASURED_BY_ANOTHER);
    for (name, measure) in read.chain(OWN_HEADS.iter().map(|name| (*name, *name))) {
        // An import, and a slice in which layers move, if the family allows it.
        let moved = if name == "gpt2_inverse_scale" { vec![0, 1] } else { vec![0, 3, 1] };
        for layers in [(0..LAYERS).collect(), moved] {
            let export = export(&house, name, &layers).await;
            let tokenizer = house.dir.path().join(name).join("tokenizer.json").exists();
            cases.push(json!({
                "name": format!("{name} {layers:?}"),
                "export": export,
                "reference": house.dir.path().join(measure),
                "layers": layers,
                "untied": OWN_HEADS.contains(&name),
                "tokenizer": tokenizer.then(|| house.dir.path().join(measure)),
            }));
        }
    }
    for family in [Family::Gpt2, Family::Llama, Family::GptNeox, Family::Opt, Family::Mpt] {
        let export = fresh(&house, family).await;
        cases.push(json!({ "name": format!("fresh {}", family.as_str()), "export": export }));
    }
    let (list, five) = (house.dir.path().join("cases.json"), house.dir.path().join("five.json"));
    std::fs::write(&list, Value::Array(cases).to_string()).unwrap();
    check(&python, None, &[&list, &five]);
    check(&python, Some(&four), &[&list, &house.dir.path().join("four.json"), &five]);
    house.close().await;
}

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn check(python: &Path, before: Option<&Path>, args: &[&Path]) {
    let mut command = Command::new(python);
    command.arg(Path::new(SCRIPTS).join("test/check-exports.py")).args(args);
    if let Some(folder) = before {
        command.env("PYTHONPATH", folder);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
}

async fn export(house: &House, name: &str, layers: &[u32]) -> PathBuf {
    let rule = LayerMapRule::List(layers.to_vec());
    let spec = sliced(house.location(name), layers.len() as u32, (rule, InheritSet::ALL));
    let made = house.slice(spec).await;
    fetched(house, made.checkpoint).await
}

async fn fresh(house: &House, family: Family) -> PathBuf {
    let architecture = Architecture {
        family,
        n_layers: LayerCount(2),
        d_model: 32,
        n_heads: 4,
        n_kv_heads: None,
        d_ff: None,
        max_positions: 128,
        rope_theta: None,
        tied_head: None,
        inverse_layer_scale: family == Family::Gpt2,
        no_bias: false,
        pad_vocab_to_multiple_of: None,
    };
    let source = SliceSource::Architecture { architecture, vocab_size: 320 };
    let spec = SliceSpec { source, tokenizer: None, seed: 7, max_shard_size_bytes: defaults::max_shard_size_bytes() };
    let made = house.slice(spec).await;
    fetched(house, made.checkpoint).await
}

async fn fetched(house: &House, artifact: ArtifactId) -> PathBuf {
    let to = house.dir.path().join(format!("export-{artifact}"));
    let folder = house.store.open(&Location::Artifact(artifact)).await.unwrap();
    folder.fetch(&to).await.unwrap();
    to
}
