#![allow(clippy::unwrap_used)]

use super::*;

fn single(name: &str) -> WeightsFiles {
    let format = if name.ends_with(".safetensors") { ShardFormat::Safetensors } else { ShardFormat::Pickle };
    WeightsFiles::Single(format, name.to_owned())
}

#[test]
fn known_names_win_and_others_count_where_there_is_one() {
    let cases: [(&[&str], WeightsFiles); 11] = [
        (&["config.json", "model.safetensors", "model.safetensors.index.json", "x.bin"], single("model.safetensors")),
        (&["config.json", "model.safetensors.index.json"], WeightsFiles::Indexed(ShardFormat::Safetensors)),
        (&["config.json", "pytorch_model.bin", "other.safetensors"], single("pytorch_model.bin")),
        (&["config.json", "model.fp16.safetensors", "optimizer.pt"], single("model.fp16.safetensors")),
        (
            &["config.json", "weights.pth", "training_args.bin", "scheduler.pt", "rng_state_0.pth"],
            single("weights.pth"),
        ),
        (&["config.json", "open_llama.safetensors", "b.pt", "a.pt"], single("open_llama.safetensors")),
        (
            &["config.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            WeightsFiles::Numbered(
                ShardFormat::Safetensors,
                vec!["model-00001-of-00002.safetensors".to_owned(), "model-00002-of-00002.safetensors".to_owned()],
            ),
        ),
        (&["ckpt_10000.pt"], WeightsFiles::NanoGpt("ckpt_10000.pt".to_owned())),
        (&["ckpt.pt", "ckpt_best.pt"], WeightsFiles::NanoGpt("ckpt.pt".to_owned())),
        (&["lit_model.pth", "model_config.yaml"], WeightsFiles::LitGpt("model_config.yaml")),
        (&["config.json", "lit_model.pth", "lit_config.json"], WeightsFiles::LitGpt("lit_config.json")),
    ];
    for (files, expected) in cases {
        assert_eq!(find(files).unwrap(), expected, "{files:?}");
    }
}

#[test]
fn another_folder_than_a_models_says_what_it_is() {
    let cases: [(&[&str], &str); 15] = [
        (&["config.json", "tokenizer.json"], "model.safetensors is missing, and so are"),
        (&["tokenizer.json"], "config.json is missing: expected a Hugging Face checkpoint folder"),
        (&["adapter_config.json", "adapter_model.safetensors"], "is a PEFT adapter"),
        (&["config.json", "adapter_config.json", "adapter_model.bin"], "is a PEFT adapter"),
        (
            &["models--o--n/blobs/0", "models--o--n/snapshots/abc/config.json", "models--o--n/refs/main"],
            "specify a snapshot in it: models--o--n/snapshots/abc",
        ),
        (
            &["blobs/0", "snapshots/b/config.json", "snapshots/a/x"],
            "specify a snapshot in it: snapshots/a and snapshots/b",
        ),
        (
            &["config.json", "consolidated.safetensors"],
            "contains consolidated.safetensors, the layout of weights published by Meta",
        ),
        (&["consolidated.00.pth", "params.json"], "the layout of weights published by Meta"),
        (&["model-q4.gguf"], "llama.cpp's format"),
        (
            &["checkpoint-10/config.json", "checkpoint-20/config.json", "trainer_state.json"],
            "specify one of checkpoint-10",
        ),
        (&["best/config.json"], "specify best"),
        (&["__0_0.distcp", ".metadata"], "a distributed checkpoint of PyTorch"),
        (&["zero_to_fp32.py", "global_step1/mp_rank_00_model_states.pt"], "DeepSpeed"),
        (&["config.json", "tf_model.h5"], "contains tf_model.h5"),
        (
            &["config.json", "a.safetensors", "b.safetensors"],
            "it is unclear which of a.safetensors and b.safetensors is meant",
        ),
    ];
    for (files, expected) in cases {
        let error = find(files).unwrap_err().to_string();
        assert!(error.contains(expected), "{files:?}: {error}");
    }
    let several = find(&["a.pt", "b.pt"]).unwrap_err().to_string();
    assert!(several.contains("of a.pt and b.pt"), "{several}");
    let part = find(&["config.json", "model-00001-of-00002.safetensors"]).unwrap_err().to_string();
    assert!(part.contains("not all of them exist"), "{part}");
}

#[test]
fn two_whole_sets_are_one_too_many() {
    let files = [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let error = find(&files).unwrap_err().to_string();
    assert!(error.contains("model-00001-of-00001.safetensors and model-00001-of-00002.safetensors"), "{error}");
    // An incomplete set cannot be the one that is meant.
    assert!(find(&files[..3]).is_ok());
}
