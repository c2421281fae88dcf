//! Tests with files that `scripts/golden/make-pickles.py` wrote with torch.save, and with modified copies.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::safetensors_header::{PREFIX_BYTES, SafetensorsHeader};
use crate::zip_directory::{DirectoryEnd, END_BYTES};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../slicer/tests/golden")
}

fn part<'a>(file: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &file[range.start as usize..range.end as usize]
}

/// Reads the tensors of a whole file as the slicer reads them by ranges.
fn read(file: &[u8]) -> Result<Vec<HeaderTensor>, ArchiveError> {
    TorchArchive::check_start(file)?;
    let tail = &file[file.len().saturating_sub(END_BYTES as usize)..];
    let end = DirectoryEnd::find(tail, file.len() as u64)?;
    let archive = TorchArchive::new(ZipDirectory::parse(part(file, &end.directory), &end)?)?;
    let data = |entry: &ZipEntry| entry.data(part(file, &entry.span));
    if let Some(entry) = archive.byte_order() {
        TorchArchive::check_byte_order(part(file, &data(entry)?))?;
    }
    let tensors = StateDict::parse(part(file, &data(archive.pickle())?))?;
    let storages: Result<BTreeMap<_, _>, ArchiveError> =
        archive.storages(&tensors)?.into_iter().map(|(key, entry)| Ok((key, data(&entry)?))).collect();
    tensors.located(&storages?)
}

/// Returns the dtype, shape and bytes of each tensor, by name.
fn contents(file: &[u8], tensors: &[HeaderTensor]) -> BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)> {
    let content = |t: &HeaderTensor| (t.name.clone(), (t.dtype, t.shape.clone(), part(file, &t.bytes).to_vec()));
    tensors.iter().map(content).collect()
}

#[test]
fn tensors_are_what_torch_load_gives() {
    for (case, files, buffers) in [
        ("gpt2-tied", &["pytorch_model.bin"][..], 5),
        ("llama-f16-inv-freq", &["pytorch_model.bin"], 2),
        ("llama-bf16-sharded", &["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], 0),
        ("llama-from-type", &["pytorch_model.bin"], 0),
        ("gpt2-views", &["pytorch_model.bin"], 0),
    ] {
        let folder = golden().join(case);
        let mut found = BTreeMap::new();
        for file in files {
            let file = std::fs::read(folder.join(file)).unwrap();
            found.extend(contents(&file, &read(&file).unwrap()));
        }
        let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let json_end = PREFIX_BYTES + SafetensorsHeader::length(&expected, expected.len() as u64).unwrap();
        let header =
            SafetensorsHeader::parse(part(&expected, &(PREFIX_BYTES..json_end)), expected.len() as u64).unwrap();
        let expected = contents(&expected, header.tensors());
        // The files also contain the tied head and buffers.
        assert_eq!(found.len(), expected.len() + buffers, "{case}");
        for (name, tensor) in &expected {
            assert_eq!(found.get(name), Some(tensor), "{case}: {name}");
        }
        if case == "gpt2-tied" {
            assert_eq!(found["lm_head.weight"], found["transformer.wte.weight"]);
        }
    }
}

#[test]
fn other_files_are_refused() {
    let check = |file: &str, expected: Expect| {
        let file = std::fs::read(golden().join("not-read").join(file)).unwrap();
        expected.assert_eq(&read(&file).unwrap_err().to_string());
    };
    check(
        "legacy.bin",
        expect![[
            r#"is a pickle of PyTorch before 1.6, which is not supported: convert it with `torch.save(torch.load(FILE, map_location="cpu", weights_only=True), FILE)` in a current PyTorch"#
        ]],
    );
    check(
        "transposed.bin",
        expect![
            "tensor `wte.weight` has strides [1, 3] for shape [3, 4]: it is not stored row by row. Save it with `tensor.contiguous()`"
        ],
    );
    check(
        "complex.bin",
        expect![
            "its pickle refers to `torch.ComplexFloatStorage` at byte 73, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    check(
        "float8.bin",
        expect![
            "its pickle refers to `torch._utils._rebuild_tensor_v3` at byte 22, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    check(
        "module.bin",
        expect![
            "its pickle refers to `torch.nn.modules.linear.Linear` at byte 2, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
}

/// Returns `file` with the first occurrence of `from` replaced by `to`, which has the same length.
fn replaced(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    [&file[..at], to, &file[at + from.len()..]].concat()
}

fn views() -> Vec<u8> {
    std::fs::read(golden().join("gpt2-views/pytorch_model.bin")).unwrap()
}

#[test]
fn edited_files_are_refused() {
    let good = std::fs::read(golden().join("gpt2-tied/pytorch_model.bin")).unwrap();
    let check = |from: &[u8], to: &[u8], expected: Expect| {
        expected.assert_eq(&read(&replaced(&good, from, to)).unwrap_err().to_string());
    };
    check(
        b"little",
        b"bigger",
        expect!["is not a checkpoint that torch.save wrote: its byte order is `bigger`; only `little` is supported"],
    );
    check(
        b"_rebuild_tensor_v2",
        b"_rebuild_tensor_v9",
        expect![
            "its pickle refers to `torch._utils._rebuild_tensor_v9` at byte 63, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    check(
        b"transformer.wte.weight",
        b"transformer wte.weight",
        expect![
            "is not a checkpoint that torch.save wrote: tensor `transformer wte.weight` has a name with characters other than A-Z a-z 0-9 . _ / -"
        ],
    );
    check(
        b"transformer.wte.weight",
        b"transformer.wpe.weight",
        expect!["tensor `transformer.wpe.weight` occurs twice"],
    );
    check(
        b"FloatStorage",
        b"LongsStorage",
        expect![
            "its pickle refers to `torch.LongsStorage` at byte 114, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    check(
        b"\nByteStorage",
        b"\nLongStorage",
        expect!["tensor `transformer.h.0.attn.bias` needs a storage of 2048 bytes, but its entry has 256"],
    );
}

#[test]
fn a_dict_must_hold_tensors_and_counters_only() {
    let check = |pickle: &[u8], expected: Expect| {
        expected.assert_eq(&StateDict::parse(pickle).unwrap_err().to_string());
    };
    check(
        b"\x80\x02](K\x01K\x02e.",
        expect!["is not a checkpoint that torch.save wrote: expected a dict of tensors, found a list"],
    );
    check(b"\x80\x02}X\x01\x00\x00\x00w]s.", expect!["tensor `w` is a list, not a tensor"]);
    let counter = StateDict::parse(b"\x80\x02}X\x01\x00\x00\x00wK\x01s.").unwrap();
    assert!(counter.tensors.is_empty());
    check(b"\x80\x02}K\x01K\x01s.", expect!["is not a checkpoint that torch.save wrote: a tensor's name is an int"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn mutations_never_panic_and_stay_inside(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_pickle in any::<bool>(),
    ) {
        let mut file = views();
        // The pickle is within the first 1.2 kB.
        let length = if in_pickle { 1200 } else { file.len() };
        for (at, byte) in edits {
            file[at.index(length)] = byte;
        }
        if let Ok(tensors) = read(&file) {
            for tensor in tensors {
                prop_assert!(tensor.bytes.start <= tensor.bytes.end && tensor.bytes.end <= file.len() as u64);
            }
        }
    }
}
