//! Slices of checkpoints that torch.save wrote (`scripts/golden/make-pickles.py`) equal what torch.load
//! returns.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Client, House, first, read_tensors};
use inheritune_api::v1::{self, TensorOrigin};
use inheritune_domain::id::Sha256Digest;
use serde_json::json;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// Copies a case to a folder that the slicer may read, without torch.load's result.
fn copy(house: &House, case: &str, name: &str) -> PathBuf {
    let dir = house.dir.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for file in golden(case).read_dir().unwrap().map(Result::unwrap) {
        if file.file_name() != "expected.safetensors" {
            std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
    dir
}

#[tokio::test]
async fn slices_are_what_torch_loads() {
    let house = House::build().await;
    for (case, layers) in [
        ("gpt2-tied", 2),
        ("llama-f16-inv-freq", 2),
        ("llama-bf16-sharded", 2),
        ("llama-from-type", 1),
        ("gpt2-views", 1),
    ] {
        copy(&house, case, case);
        let expected = read_tensors(&std::fs::read(golden(case).join("expected.safetensors")).unwrap());
        for kept in 1..=layers {
            let made = house.slice(first(house.location(case), kept)).await;
            assert_eq!((made.fresh_tensors, made.reference_layers.0), (0, layers), "{case}");
            let target = read_tensors(&house.file(made.checkpoint, "model.safetensors").await);
            let record = house.json(made.checkpoint, "inheritance.json").await;
            let record: BTreeMap<&str, _> =
                record["tensors"].as_array().unwrap().iter().map(|t| (t["name"].as_str().unwrap(), t)).collect();
            let wanted = expected.iter().filter(|(name, _)| !name.contains(&format!(".{kept}.")));
            let wanted: BTreeMap<String, _> = wanted
                .map(|(name, tensor)| match case {
                    "gpt2-views" => (format!("transformer.{name}"), tensor.clone()),
                    _ => (name.clone(), tensor.clone()),
                })
                .collect();
            assert_eq!(target.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{case}");
            for (name, tensor) in &target {
                assert_eq!(tensor, &wanted[name], "{case}: {name}");
                let told = record[name.as_str()];
                assert_eq!(
                    (&told["origin"], &told["sha256"]),
                    (&json!("copied"), &json!(Sha256Digest::of(&tensor.2).to_string()))
                );
                assert!(told["file"].as_str().unwrap().ends_with(".bin"), "{told}");
                assert_eq!((&told["shape"], &told["bytes"]), (&json!(tensor.1), &json!(tensor.2.len())));
            }
        }
    }
    house.close().await;
}

#[tokio::test]
async fn bad_pickles_fail_for_good_and_say_what() {
    let house = House::build().await;
    let weights = |name: &str| copy(&house, "gpt2-tied", name).join("pytorch_model.bin");
    let edit = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = weights(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let replace = |from: &'static [u8], to: &'static [u8]| {
        move |bytes: &mut Vec<u8>| {
            let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes.splice(at..at + from.len(), to.iter().copied());
        }
    };
    edit("truncated", &|bytes| bytes.truncate(bytes.len() / 2));
    edit("empty", &Vec::clear);
    // The replacement has the same length, so that the archive stays intact.
    edit("malicious", &replace(b"ccollections\nOrderedDict\n", b"cposix\nsystem\nq\x00q\x00q\x00q\x00q\x00N"));
    edit("opcode", &replace(b"\x80\x02", b"\x80\x69"));
    edit("renamed", &replace(b"transformer.h.0.ln_1.weight", b"transformer.h.7.ln_1.weight"));
    edit("big-endian", &replace(b"little", b"bigger"));
    edit("compressed", &|bytes| {
        let at = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[at + 10] = 8;
    });
    std::fs::copy(golden("not-read/legacy.bin"), weights("legacy")).unwrap();
    std::fs::copy(golden("not-read/module.bin"), weights("module")).unwrap();
    std::fs::copy(golden("not-read/transposed.bin"), weights("transposed")).unwrap();
    let shards = copy(&house, "llama-bf16-sharded", "shardless");
    std::fs::remove_file(shards.join("pytorch_model-00002-of-00002.bin")).unwrap();
    let shards = copy(&house, "llama-bf16-sharded", "swapped");
    std::fs::copy(shards.join("pytorch_model-00001-of-00002.bin"), shards.join("pytorch_model-00002-of-00002.bin"))
        .unwrap();
    let cases = [
        ("truncated", "pytorch_model.bin is not a zip archive, or is truncated: it has no end record"),
        ("empty", "pytorch_model.bin is not a zip archive, or is truncated: it has no end record"),
        (
            "malicious",
            "refers to `posix.system` at byte 2, which is not a known part of a tensor; it is neither loaded nor executed",
        ),
        ("opcode", "protocol 105 is not supported"),
        (
            "renamed",
            "tensor `transformer.h.7.ln_1.weight` belongs to layer 7, but config.json says that there are 2 layers",
        ),
        ("big-endian", "its byte order is `bigger`; only `little` is supported"),
        ("compressed", "entry `pytorch_model/data.pkl` is compressed (method 8)"),
        (
            "legacy",
            "is a pickle of PyTorch before 1.6, which is not supported: convert it with `torch.save(torch.load(",
        ),
        ("module", "refers to `torch.nn.modules.linear.Linear` at byte 2"),
        ("transposed", "tensor `wte.weight` has strides [1, 3] for shape [3, 4]"),
        ("shardless", "pytorch_model-00002-of-00002.bin is missing, though pytorch_model.bin.index.json names it"),
        ("swapped", "occurs twice: also as `"),
    ];
    house.fails_for_good(&cases).await;
    house.close().await;
}

#[tokio::test]
async fn pickles_are_inspected_and_slices_of_them_planned() {
    let house = House::build().await;
    copy(&house, "llama-bf16-sharded", "reference");
    let calls = async |client: &mut Client| {
        let checkpoint = house.location("reference").to_string();
        let request = v1::InspectRequest { checkpoint: checkpoint.clone() };
        let reply = client.inspect(request).await.unwrap().into_inner();
        assert_eq!((reply.config.unwrap().n_layers, reply.size_bytes), (2, 2 * reply.total_parameters));
        let head = reply.tensors.last().unwrap();
        assert_eq!((head.file.as_str(), head.dtype.as_str()), ("pytorch_model-00002-of-00002.bin", "BF16"));

        let reference = v1::CheckpointSource { checkpoint, layers: 1, ..v1::CheckpointSource::default() };
        let source = Some(v1::slice_spec::Source::Reference(reference));
        let request = v1::PlanSliceRequest { spec: Some(v1::SliceSpec { source, ..v1::SliceSpec::default() }) };
        let reply = client.plan_slice(request).await.unwrap().into_inner();
        assert_eq!((reply.reference_layers, reply.copied_bytes), (2, 2 * reply.total_parameters));
        assert!(reply.tensors.iter().all(|tensor| tensor.origin() == TensorOrigin::Copied));
    };
    house.serve(calls).await;
    house.close().await;
}
