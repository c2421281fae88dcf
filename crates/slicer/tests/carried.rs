//! Tests which files next to the weights are copied byte for byte, and which are left out.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{House, first};
use inheritune_api::v1;

/// A GPT-2 with `BertTokenizer`'s `vocab.txt` and the other files that such folders contain.
#[tokio::test]
async fn c3_every_file_of_a_tokenizer_is_carried_and_licences_too() {
    let house = House::build().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/faults/tokenizers.py");
    let status =
        Command::new("python3").arg(script).arg(house.dir.path()).arg("gpt2_vocab_txt_folder").status().unwrap();
    assert!(status.success());
    let reference = house.dir.path().join("gpt2_vocab_txt_folder");
    let write = |name: &str| {
        let path = reference.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("this is {name}")).unwrap();
    };
    let carried = [
        "LICENSE",
        "NOTICE.txt",
        "USE_POLICY.md",
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "spiece.model",
    ];
    let left_out = [
        "README.md",
        "modeling_mine.py",
        "original/tokenizer.model",
        "pytorch_model.bin",
        "tokenizer.pkl",
        "training_args.bin",
    ];
    carried.iter().chain(&left_out).for_each(|name| write(name));

    let made = house.slice(first(house.location("gpt2_vocab_txt_folder"), 2)).await;
    let mut expected = vec![
        "README.md",
        "config.json",
        "generation_config.json",
        "inheritance.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ];
    expected.extend(carried);
    expected.sort_unstable();
    let mut names = house.names(made.checkpoint).await;
    names.sort();
    assert_eq!(names, expected);
    for name in ["LICENSE", "vocab.txt", "tokenizer_config.json", "additional_chat_templates/tool.jinja"] {
        assert_eq!(house.file(made.checkpoint, name).await, std::fs::read(reference.join(name)).unwrap(), "{name}");
    }
    house
        .serve(async |client| {
            let checkpoint = house.location("gpt2_vocab_txt_folder").to_string();
            let reference = v1::CheckpointSource { checkpoint, layers: 2, ..v1::CheckpointSource::default() };
            let source = Some(v1::slice_spec::Source::Reference(reference));
            let request = v1::PlanSliceRequest { spec: Some(v1::SliceSpec { source, ..v1::SliceSpec::default() }) };
            let reply = client.plan_slice(request).await.unwrap().into_inner();
            let names: Vec<&str> = reply.left_out.iter().map(|left| left.name.as_str()).collect();
            // The first entry is a key of config.json, which states what wrote the reference.
            assert_eq!(names, [&["transformers_version"][..], &left_out].concat());
            assert!(reply.left_out.iter().all(|left| !left.reason.is_empty()));
        })
        .await;
    house.close().await;
}
