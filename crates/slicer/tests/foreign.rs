//! Slices of nanoGPT and lit-gpt checkpoints (`scripts/golden/make-pickles.py`) equal the Hugging Face
//! model.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{House, first, read_tensors};
use inheritune_domain::id::Sha256Digest;
use serde_json::{Value, json};

/// Copies a case to a folder that the slicer may read, and the expected tensors next to it.
fn copy(house: &House, case: &str, name: &str) -> PathBuf {
    let dir = house.dir.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    for file in golden.read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    std::fs::rename(dir.join("expected.safetensors"), house.dir.path().join(format!("{name}.expected"))).unwrap();
    dir
}

#[tokio::test]
async fn slices_are_hugging_face_models() {
    let house = House::build().await;
    for case in ["nanogpt-compiled", "nanogpt-no-bias", "litgpt"] {
        copy(&house, case, case);
        let expected = read_tensors(&std::fs::read(house.dir.path().join(format!("{case}.expected"))).unwrap());
        for kept in [1, 2] {
            let made = house.slice(first(house.location(case), kept)).await;
            assert_eq!((made.reference_layers.0, made.fresh_tensors), (2, 0), "{case}");
            let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
            let wanted = expected.iter().filter(|(name, _)| !name.contains(&format!(".{kept}.")));
            assert_eq!(target.keys().collect::<Vec<_>>(), wanted.clone().map(|(name, _)| name).collect::<Vec<_>>());
            for (name, tensor) in wanted {
                assert_eq!(&target[name], tensor, "{case}: {name}");
            }
            let record = house.json(made.checkpoint, "inheritance.json").await;
            for told in record["tensors"].as_array().unwrap().iter().filter(|told| told["origin"] != "tied") {
                let name = told["name"].as_str().unwrap();
                assert_eq!(told["sha256"], json!(Sha256Digest::of(&target[name].2).to_string()), "{case}: {name}");
                check_layout(name, told);
            }
            let config = house.json(made.checkpoint, "config.json").await;
            let layers = if case == "litgpt" { "num_hidden_layers" } else { "n_layer" };
            assert_eq!(config[layers], json!(kept), "{case}");
            assert_eq!(config.get("bias") == Some(&json!(false)), case == "nanogpt-no-bias", "{case}");
        }
    }
    house.close().await;
}

/// A nanoGPT checkpoint is a single, complete file. A file of any other kind of checkpoint needs
/// the files next to it.
#[tokio::test]
async fn a_checkpoint_of_one_file_may_be_named_itself() {
    let house = House::build().await;
    copy(&house, "nanogpt-no-bias", "nano");
    let made = house.slice(first(house.location("nano/ckpt.pt"), 1)).await;
    assert_eq!((made.reference_layers.0, made.fresh_tensors), (2, 0));
    std::fs::write(house.dir.path().join("config.json"), "{}").unwrap();
    house.fails_for_good(&[("config.json", "config.json is a single file: specify its folder")]).await;
    house.close().await;
}

fn check_layout(name: &str, told: &Value) {
    let projection = ["c_attn.weight", "c_proj.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end));
    let fused = ["q_proj.weight", "k_proj.weight", "v_proj.weight"].iter().any(|end| name.ends_with(end));
    let expected = match (projection, fused) {
        (true, _) => json!("transposed"),
        (_, true) => json!("rows of a fused tensor"),
        (false, false) => Value::Null,
    };
    assert_eq!(told["layout"], expected, "{name}");
}

#[tokio::test]
async fn bad_ones_fail_for_good_and_say_what() {
    let house = House::build().await;
    std::fs::remove_file(copy(&house, "litgpt", "settingless").join("lit_config.json")).unwrap();
    let path = copy(&house, "litgpt", "neox").join("lit_config.json");
    let settings = std::fs::read_to_string(&path).unwrap().replace("LLaMAMLP", "GptNeoxMLP");
    std::fs::write(path, settings).unwrap();
    let dir = copy(&house, "litgpt", "argless");
    std::fs::rename(dir.join("lit_model.pth"), dir.join("ckpt.pt")).unwrap();
    let cases = [
        ("settingless", "lit_config.json, which lit_model.pth requires, is missing"),
        ("neox", "lit_config.json: `_mlp_class` is \"GptNeoxMLP\"; only LLaMAMLP is supported"),
        (
            "argless",
            "ckpt.pt is not a checkpoint that torch.save wrote: a nanoGPT checkpoint has `model` and `model_args`",
        ),
    ];
    house.fails_for_good(&cases).await;
    house.close().await;
}
