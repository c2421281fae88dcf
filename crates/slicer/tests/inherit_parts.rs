//! Targets that inherit some parts of a reference: those match byte for byte, and nothing else is
//! copied.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{House, bare, gpt2_json, llama_json, read_tensors, sliced, tensors, write_checkpoint};
use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::LayerMapRule;
use safetensors::Dtype;
use serde_json::{Value, json};

/// The paper's "attention + LN" variant, with layers 2 and 0.
#[tokio::test]
async fn attention_and_norms_are_copied_and_the_rest_is_fresh() {
    let house = House::build().await;
    let config = gpt2_json(3);
    let source = tensors(&config, Dtype::F16, 0, bare);
    write_checkpoint(&house.dir.path().join("reference"), &config, &source);
    let parts = InheritSet::of(&[InheritPart::Attention, InheritPart::Norms]);
    let spec = sliced(house.location("reference"), 2, (LayerMapRule::List(vec![2, 0]), parts));
    let made = house.slice(spec).await;
    // Two norms and two projections per block, with biases; two embeddings, an MLP per block and a
    // final norm.
    assert_eq!((made.copied_tensors, made.fresh_tensors), (16, 2 + 2 * 4 + 2));

    let source: BTreeMap<String, _> = source.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
    let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
    let record = house.json(made.checkpoint, "inheritance.json").await;
    let recorded: BTreeMap<&str, &Value> =
        record["tensors"].as_array().unwrap().iter().map(|t| (t["name"].as_str().unwrap(), t)).collect();
    for (name, tensor) in &target {
        let of_reference = bare(name).replace("h.0.", "h.2.").replace("h.1.", "h.0.");
        let inherited = name.contains(".h.") && (name.contains(".attn.") || name.contains(".ln_"));
        assert_eq!(tensor == &source[&of_reference], inherited, "{name} from {of_reference}");
        let (_, _, bytes) = tensor;
        assert_eq!(recorded[name.as_str()]["origin"], if inherited { "copied" } else { "fresh" });
        assert_eq!(recorded[name.as_str()]["sha256"], json!(Sha256Digest::of(bytes).to_string()));
        let constant = |number: [u8; 2]| assert_eq!(bytes, &number.repeat(bytes.len() / 2), "{name}");
        match name.as_str() {
            "transformer.ln_f.weight" => constant([0x00, 0x3c]),
            name if name.ends_with("bias") && !inherited => constant([0, 0]),
            _ => {}
        }
    }
    let card = String::from_utf8(house.file(made.checkpoint, "README.md").await.to_vec()).unwrap();
    for line in [
        "# 2 of 3 layers, inherited in part\n",
        "| copied tensors | 16: attention, norms |\n",
        "| fresh tensors | 12: token_embedding, position_embedding, mlp, final_norm (seed 7) |\n",
    ] {
        assert!(card.contains(line), "{line} is missing in:\n{card}");
    }
    house.close().await;
}

/// A tied head and the token embedding are one tensor, whichever of the two is requested; an untied
/// head is inherited separately.
#[tokio::test]
async fn a_head_is_inherited_as_what_it_is() {
    let house = House::build().await;
    for (name, config) in [("tied", gpt2_json(1)), ("untied", llama_json(1))] {
        let source = tensors(&config, Dtype::F32, 0, str::to_owned);
        write_checkpoint(&house.dir.path().join(name), &config, &source);
    }
    for (reference, part, copied) in [
        ("tied", InheritPart::Head, "transformer.wte.weight"),
        ("tied", InheritPart::TokenEmbedding, "transformer.wte.weight"),
        ("untied", InheritPart::Head, "lm_head.weight"),
        ("untied", InheritPart::TokenEmbedding, "model.embed_tokens.weight"),
    ] {
        let parts = (LayerMapRule::First, InheritSet::of(&[part]));
        let made = house.slice(sliced(house.location(reference), 1, parts)).await;
        let record = house.json(made.checkpoint, "inheritance.json").await;
        let tensors = record["tensors"].as_array().unwrap().iter();
        let of = |origin: &str| -> Vec<&str> {
            tensors.clone().filter(|t| t["origin"] == origin).map(|t| t["name"].as_str().unwrap()).collect()
        };
        assert_eq!(of("copied"), [copied], "{part} of {reference}");
        assert_eq!(of("tied"), if reference == "tied" { vec!["lm_head.weight"] } else { vec![] });
    }
    house.close().await;
}
