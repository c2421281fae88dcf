//! Slice jobs on a real Postgres and a real folder: the target's bytes equal the reference's.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{
    House, bare, first, gpt2_json, llama_json, read_tensors, sliced, tensors, tokenizer_json, write_checkpoint,
    write_sharded, write_token_set,
};
use inheritune_checkpoint::decoder_config::{Architecture, Family};
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::id::{LayerCount, Sha256Digest};
use inheritune_domain::job::JobStatus;
use inheritune_domain::spec::{JobOutcome, LayerMapRule, MIN_MAX_SHARD_SIZE_BYTES, SliceSource, SliceSpec, defaults};
use safetensors::Dtype;
use serde_json::{Value, json};

#[tokio::test]
async fn a_slice_is_the_reference_s_bytes() {
    let house = House::build().await;
    let dir = house.dir.path().join("reference");
    let config = gpt2_json(4);
    let mut source = tensors(&config, Dtype::F16, 0, bare);
    source.push(("h.3.attn.bias".to_owned(), Dtype::U8, vec![1, 1, 16, 16], vec![1; 256]));
    write_checkpoint(&dir, &config, &source);
    let tokenizer = format!("\n{}  \n", tokenizer_json(32));
    std::fs::write(dir.join("tokenizer.json"), &tokenizer).unwrap();
    std::fs::write(dir.join("merges.txt"), b"#version: 0.2\r\na b").unwrap();
    std::fs::write(dir.join("training_args.bin"), b"not carried over").unwrap();

    let made = house.slice(first(house.location("reference"), 2)).await;
    assert_eq!((made.config.n_layers, made.reference_layers), (LayerCount(2), LayerCount(4)));
    // 2 embeddings, 12 tensors per block, 2 of the final norm.
    assert_eq!((made.copied_tensors, made.fresh_tensors), (28, 0));
    assert_eq!(made.copied_bytes, 2 * made.parameters);

    let names = ["README.md", "config.json", "inheritance.json", "merges.txt", "model.safetensors", "tokenizer.json"];
    assert_eq!(house.names(made.checkpoint).await, names);
    assert_eq!(house.file(made.checkpoint, "tokenizer.json").await, tokenizer.as_bytes());
    assert_eq!(house.file(made.checkpoint, "merges.txt").await, b"#version: 0.2\r\na b".as_slice());

    let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
    assert_eq!(target.len(), 28);
    let source: BTreeMap<String, _> = source.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
    for (name, tensor) in &target {
        assert_eq!(tensor, &source[&bare(name)], "{name}");
    }

    let mut expected = config.clone();
    expected["n_layer"] = json!(2);
    expected["dtype"] = json!("float16");
    assert_eq!(house.json(made.checkpoint, "config.json").await, expected);

    let record = house.json(made.checkpoint, "inheritance.json").await;
    assert_eq!((&record["version"], &record["layer_map"]), (&json!(1), &json!([0, 1])));
    assert_eq!(record["reference"], json!({"location": house.location("reference").to_string(), "layers": 4}));
    let recorded = record["tensors"].as_array().unwrap();
    assert_eq!(recorded.len(), 29, "the record includes the tied head");
    for tensor in recorded {
        let name = tensor["name"].as_str().unwrap();
        if name == "lm_head.weight" {
            assert_eq!((&tensor["origin"], &tensor["from"]), (&json!("tied"), &json!("transformer.wte.weight")));
            continue;
        }
        let (_, shape, bytes) = &target[name];
        assert_eq!((&tensor["origin"], &tensor["from"]), (&json!("copied"), &json!(bare(name))));
        assert_eq!((&tensor["dtype"], &tensor["shape"]), (&json!("F16"), &json!(shape)));
        assert_eq!(tensor["sha256"], json!(Sha256Digest::of(bytes).to_string()));
        assert_eq!(tensor["bytes"], json!(bytes.len()));
    }

    let artifact = house.store.artifact(made.checkpoint).await.unwrap();
    assert_eq!(artifact.kind, ArtifactKind::Checkpoint);
    assert_eq!((&artifact.metadata["family"], &artifact.metadata["layers"]), (&json!("gpt2"), &json!(2)));
    assert_eq!(artifact.metadata["parameters"], json!(made.parameters));
    house.close().await;
}

/// Layers 0, 2, 2 of every family: the bytes of those layers under the target's names. Buffers are
/// left out.
#[tokio::test]
async fn every_family_is_sliced_by_its_list() {
    let house = House::build().await;
    for family in Family::ALL {
        let architecture = Architecture {
            family,
            n_layers: LayerCount(3),
            d_model: 12,
            n_heads: 2,
            n_kv_heads: None,
            d_ff: None,
            max_positions: 16,
            rope_theta: None,
            tied_head: None,
            inverse_layer_scale: false,
            no_bias: family == Family::Gpt2,
            pad_vocab_to_multiple_of: None,
        };
        let config = architecture.config(30).to_hf();
        let mut source = tensors(&config, Dtype::F16, 0, str::to_owned);
        let stored = source.len();
        if family == Family::GptNeox {
            let name = "gpt_neox.layers.2.attention.bias".to_owned();
            source.push((name, Dtype::U8, vec![1, 1, 16, 16], vec![1; 256]));
        }
        write_checkpoint(&house.dir.path().join(family.as_str()), &config, &source);
        let list = (LayerMapRule::List(vec![0, 2, 2]), InheritSet::ALL);
        let made = house.slice(sliced(house.location(family.as_str()), 3, list)).await;
        assert_eq!((made.copied_tensors as usize, made.fresh_tensors), (stored, 0), "{family:?}");
        // A vocabulary of 30 has no row for the default ids of GPT-2's class.
        let mut expected = config.clone();
        if family == Family::Gpt2 {
            expected["bos_token_id"] = Value::Null;
            expected["eos_token_id"] = Value::Null;
        }
        assert_eq!(house.json(made.checkpoint, "config.json").await, expected, "{family:?}");

        let source: BTreeMap<String, _> = source.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
        let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
        assert_eq!(target.len(), stored);
        for (name, tensor) in &target {
            assert_eq!(tensor, &source[&name.replacen(".1.", ".2.", 1)], "{name}");
        }
    }
    house.close().await;
}

#[tokio::test]
async fn shards_are_read_and_written() {
    let house = House::build().await;
    // Embedding and head take 1.2 MB each: one file for the embedding, one for the blocks, one for
    // the head.
    let mut config = llama_json(3);
    config["vocab_size"] = json!(50_000);
    let source = tensors(&config, Dtype::BF16, 0, str::to_owned);
    write_sharded(&house.dir.path().join("reference"), &config, &source, 3);
    let spec = sliced(house.location("reference"), 4, (LayerMapRule::List(vec![2, 0, 1, 0]), InheritSet::ALL));
    let spec = SliceSpec { max_shard_size_bytes: MIN_MAX_SHARD_SIZE_BYTES, ..spec };
    let record = house.job(inheritune_slicer::handler(&house.store), spec).await;
    let Some(JobOutcome::Sliced(made)) = record.outcome else { panic!("{:?}", record.error) };
    assert_eq!(record.progress.percentage(), Some(100.0));
    assert_eq!((record.progress.done, record.progress.unit.as_str()), (made.copied_bytes, "bytes"));

    let names = house.names(made.checkpoint).await;
    let shards: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert_eq!(shards.len(), 3, "{names:?}");
    let index = house.json(made.checkpoint, "model.safetensors.index.json").await;
    assert_eq!(index["metadata"]["total_size"], json!(made.copied_bytes));
    let mut target = BTreeMap::new();
    for shard in shards {
        for (name, tensor) in read_tensors(&house.file(made.checkpoint, shard).await) {
            assert_eq!(index["weight_map"][&name], json!(shard));
            assert!(target.insert(name, tensor).is_none());
        }
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), target.len());
    let source: BTreeMap<String, _> = source.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
    for (name, tensor) in &target {
        let from = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => format!("model.layers.{}.{rest}", [2, 0, 1, 0][layer.parse::<usize>().unwrap()]),
            None => name.clone(),
        };
        assert_eq!(tensor, &source[&from], "{name} from {from}");
    }

    // The sharded target is itself a valid reference.
    let again = sliced(Location::Artifact(made.checkpoint), 1, (LayerMapRule::First, InheritSet::ALL));
    let again = house.slice(again).await;
    assert_eq!(again.reference_layers, LayerCount(4));
    let cut = read_tensors(&house.file(again.checkpoint, "model.safetensors").await);
    assert_eq!(cut["model.layers.0.mlp.up_proj.weight"], source["model.layers.2.mlp.up_proj.weight"]);
    house.close().await;
}

#[tokio::test]
async fn controls_carry_and_fresh_models() {
    let house = House::build().await;
    let config = gpt2_json(4);
    write_checkpoint(&house.dir.path().join("reference"), &config, &tensors(&config, Dtype::F16, 0, bare));
    controls(&house).await;
    official_code(&house).await;
    carry(&house).await;
    fresh(&house).await;
    house.close().await;
}

/// A control of the reference's shape is reproducible, depends on the seed, and has the expected
/// distribution.
async fn controls(house: &House) {
    let mut made = Vec::new();
    for seed in [1, 1, 2] {
        let spec = sliced(house.location("reference"), 2, (LayerMapRule::First, InheritSet::NOTHING));
        let sliced = house.slice(SliceSpec { seed, ..spec }).await;
        assert_eq!((sliced.copied_tensors, sliced.fresh_tensors, sliced.copied_bytes), (0, 28, 0));
        made.push(house.file(sliced.checkpoint, "model.safetensors").await);
    }
    assert_eq!(made[0], made[1]);
    let (one, two) = (read_tensors(&made[0]), read_tensors(&made[2]));
    for (name, tensor) in &one {
        let random = tensor.1.len() == 2;
        assert_eq!(tensor != &two[name], random, "{name}");
        assert_eq!(tensor.0, Dtype::F16);
    }
    assert_ne!(one["transformer.h.0.mlp.c_fc.weight"], one["transformer.h.1.mlp.c_fc.weight"]);
    assert_eq!(one["transformer.ln_f.weight"].2, [0x00, 0x3c].repeat(8), "ones in F16");
    assert_eq!(one["transformer.ln_f.bias"].2, vec![0; 16]);
}

async fn official_code(house: &House) {
    let spec = sliced(house.location("reference"), 1, (LayerMapRule::First, InheritSet::OFFICIAL_CODE));
    let made = house.slice(spec).await;
    assert_eq!((made.copied_tensors, made.fresh_tensors), (13, 3), "wpe and both tensors of ln_f are fresh");
    let record = house.json(made.checkpoint, "inheritance.json").await;
    let fresh: Vec<_> = record["tensors"].as_array().unwrap().iter().filter(|t| t["origin"] == "fresh").collect();
    assert_eq!(
        fresh.iter().map(|t| (t["name"].as_str().unwrap(), t["from"].as_str().unwrap())).collect::<Vec<_>>(),
        [
            ("transformer.wpe.weight", "normal(0, 0.02)"),
            ("transformer.ln_f.weight", "ones"),
            ("transformer.ln_f.bias", "zeros")
        ]
    );
}

/// Growth that keeps the trained layers: first those, in their own type, then the next layers of
/// the reference.
async fn carry(house: &House) {
    let trained = tensors(&gpt2_json(2), Dtype::F32, 100, str::to_owned);
    write_checkpoint(&house.dir.path().join("trained"), &gpt2_json(2), &trained);
    let previous = Some(house.registered(ArtifactKind::Checkpoint, "trained").await);
    let mut spec = first(house.location("reference"), 3);
    if let SliceSource::Checkpoint { previous: p, .. } = &mut spec.source {
        *p = previous;
    }
    let made = house.slice(spec).await;
    assert_eq!((made.config.n_layers, made.reference_layers), (LayerCount(3), LayerCount(4)));
    let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
    let trained: BTreeMap<String, _> = trained.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
    let reference = tensors(&gpt2_json(4), Dtype::F16, 0, str::to_owned);
    let reference: BTreeMap<String, _> = reference.into_iter().map(|(name, d, s, b)| (name, (d, s, b))).collect();
    for (name, tensor) in &target {
        let source = if name.contains(".h.2.") { &reference } else { &trained };
        assert_eq!(tensor, &source[name], "{name}");
    }
    let record = house.json(made.checkpoint, "inheritance.json").await;
    assert_eq!(record["previous"]["layers"], json!(2));
    assert_eq!(record["tensors"][0]["from"], json!("previous candidate: transformer.wte.weight"));
}

/// A model without a reference has F32 weights, the tokenizer of its token set, and that
/// tokenizer's ids.
async fn fresh(house: &House) {
    write_token_set(&house.dir.path().join("tokens"), 40);
    let architecture = Architecture {
        family: Family::Llama,
        n_layers: LayerCount(2),
        d_model: 64,
        n_heads: 4,
        n_kv_heads: Some(2),
        d_ff: None,
        max_positions: 32,
        rope_theta: None,
        tied_head: Some(true),
        inverse_layer_scale: false,
        no_bias: false,
        pad_vocab_to_multiple_of: None,
    };
    let spec = SliceSpec {
        source: SliceSource::Architecture { architecture, vocab_size: 40 },
        tokenizer: Some(house.registered(ArtifactKind::TokenSet, "tokens").await),
        seed: 3,
        max_shard_size_bytes: defaults::max_shard_size_bytes(),
    };
    let made = house.slice(spec).await;
    assert_eq!((made.copied_tensors, made.reference_layers), (0, LayerCount(2)));
    let names = [
        "README.md",
        "config.json",
        "inheritance.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(house.names(made.checkpoint).await, names);
    assert_eq!(house.file(made.checkpoint, "tokenizer.json").await, tokenizer_json(40).as_bytes());
    let config = house.json(made.checkpoint, "config.json").await;
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(5), &json!(5)));
    assert_eq!((&config["tie_word_embeddings"], &config["num_hidden_layers"]), (&json!(true), &json!(2)));

    let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
    assert!(!target.contains_key("lm_head.weight"));
    let (_, _, bytes) = &target["model.layers.1.mlp.up_proj.weight"];
    let weights: Vec<f64> =
        bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    let n = weights.len() as f64;
    let mean = weights.iter().sum::<f64>() / n;
    let std = (weights.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n).sqrt();
    // 16384 draws: a tolerance of five standard errors each.
    assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{mean}");
    assert!((std - 0.02).abs() < 5.0 * 0.02 / (2.0 * n).sqrt(), "{std}");
}

#[tokio::test]
async fn bad_input_fails_for_good_and_says_what() {
    let house = House::build().await;
    let config = gpt2_json(2);
    let good = tensors(&config, Dtype::F32, 0, str::to_owned);
    let bad = |name: &str| {
        let dir = house.dir.path().join(name);
        write_checkpoint(&dir, &config, &good);
        dir
    };
    let edit = |name: &str, change: fn(&mut Vec<u8>)| {
        let path = bad(name).join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };

    edit("truncated", |bytes| bytes.truncate(bytes.len() - 1));
    edit("in-header", |bytes| bytes.truncate(100));
    edit("no-length", |bytes| bytes.truncate(5));
    edit("empty", Vec::clear);
    edit("oversized", |bytes| bytes[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes()));
    edit("overlapping", |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        for offset in header["transformer.wte.weight"]["data_offsets"].as_array_mut().unwrap() {
            *offset = json!(offset.as_u64().unwrap() - 4);
        }
        let mut text = header.to_string().into_bytes();
        text.resize(end - 8, b' ');
        bytes[8..end].copy_from_slice(&text);
    });
    let mut wrong_shape = good.clone();
    wrong_shape[0].2 = vec![8, 32];
    write_checkpoint(&house.dir.path().join("wrong-shape"), &config, &wrong_shape);
    write_checkpoint(&house.dir.path().join("missing"), &config, &good[..5]);
    let mut unknown = config.clone();
    unknown["model_type"] = json!("mamba");
    write_checkpoint(&house.dir.path().join("family"), &unknown, &good);
    std::fs::write(bad("tokenizer").join("tokenizer.json"), tokenizer_json(33)).unwrap();
    let pieces = "../lm/tests/tokenizers/sentencepiece-llama/tokenizer.model";
    std::fs::copy(pieces, bad("sentencepiece").join("tokenizer.model")).unwrap();
    std::fs::write(bad("not-sentencepiece").join("tokenizer.model"), "version https://git-lfs").unwrap();
    std::fs::write(bad("not-json").join("config.json"), "{").unwrap();
    write_sharded(&house.dir.path().join("shardless"), &config, &good, 3);
    std::fs::remove_file(house.dir.path().join("shardless/model-00002-of-00003.safetensors")).unwrap();
    let pickled = bad("pickled");
    std::fs::rename(pickled.join("model.safetensors"), pickled.join("pytorch_model.bin")).unwrap();
    std::fs::remove_file(bad("weightless").join("model.safetensors")).unwrap();
    std::fs::create_dir(house.dir.path().join("nothing")).unwrap();
    std::fs::write(house.dir.path().join("nothing/notes.txt"), "x").unwrap();

    let cases = [
        ("truncated", "model.safetensors its header describes"),
        ("in-header", "does not fit in a file of 100 bytes; it is truncated"),
        ("no-length", "is 5 bytes long, too short for a safetensors file"),
        ("empty", "is 0 bytes long, too short for a safetensors file"),
        ("oversized", "its header of 1099511627776 bytes is longer than the limit of 16777216"),
        ("overlapping", "tensor `transformer.wte.weight` overlaps the previous tensor"),
        ("wrong-shape", "tensor `transformer.wte.weight` has shape [8, 32]; config.json requires [32, 8]"),
        ("missing", "are missing: config.json says 2 layers of the gpt2 family"),
        ("family", "model_type `mamba` is not supported; supported are gpt2, llama, gpt_neox, opt, mpt and mosaic_gpt"),
        ("tokenizer", "tokenizer.json) has 33 entries but the token embedding has only 32 rows"),
        ("sentencepiece", "tokenizer.model) has 1500 entries but the token embedding has only 32 rows"),
        ("not-sentencepiece", "tokenizer.model: is not a SentencePiece model"),
        ("not-json", "config.json: EOF while parsing"),
        ("shardless", "model-00002-of-00003.safetensors is missing, though model.safetensors.index.json names it"),
        ("pickled", "pytorch_model.bin is a safetensors file: rename it to model.safetensors"),
        ("nothing", "config.json is missing"),
        ("weightless", "model.safetensors is missing, and so are model.safetensors.index.json, pytorch_model.bin and"),
    ];
    for (name, expected) in cases {
        failed_for_good(&house, first(house.location(name), 1), &[expected, name]).await;
    }

    bad("good");
    let deeper = first(house.location("good"), 9);
    failed_for_good(&house, deeper, &["the target asks for 9 layers but the reference has only 2"]).await;
    write_token_set(&house.dir.path().join("tokens"), 33);
    let tokenizer = Some(house.registered(ArtifactKind::TokenSet, "tokens").await);
    let spec = SliceSpec { tokenizer, ..first(house.location("good"), 1) };
    failed_for_good(&house, spec, &["tokens.json) has 33 entries but the token embedding has only 32 rows"]).await;
    let outside = Location::Uri("file:///etc".to_owned());
    failed_for_good(&house, first(outside, 1), &["file:///etc"]).await;
    house.close().await;
}

/// Checks that the job fails at its first attempt, with an error that contains all of `expected`.
async fn failed_for_good(house: &House, spec: SliceSpec, expected: &[&str]) {
    let record = house.job(inheritune_slicer::handler(&house.store), spec).await;
    let error = record.error.unwrap_or_default();
    assert_eq!((record.status, record.attempts), (JobStatus::Failed, 1), "{expected:?}: {error}");
    for part in expected {
        assert!(error.contains(part), "{part}: {error}");
    }
}
