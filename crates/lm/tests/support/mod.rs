//! Helpers that the tests of this package share: the golden checkpoints, and larger ones made on
//! demand.
// Each test binary compiles this module and uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use inheritune_checkpoint::config_json::{self, WeightsDtype};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_checkpoint::safetensors_header::{Dtype, NewTensor, SafetensorsHeader, write_header};
use inheritune_checkpoint::slice_plan::{Inheritance, Inventory, Origin, SlicePlan, layer_map};
use inheritune_domain::spec::{DecayOn, LayerMapRule};
use inheritune_lm::optimizer::AdamWConfig;
use inheritune_lm::{Decoder, Device, Kind, Tensor, no_grad};

/// Must match scripts/golden/make-golden.py.
pub const ADAMW: AdamWConfig =
    AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, decay: DecayOn::Matrices };
/// Must match scripts/golden/make-golden.py.
pub const LR: f64 = 3e-3;
/// Must match scripts/golden/make-golden.py.
pub const MAX_NORM: f64 = 1.0;

/// The folder that scripts/golden/make-golden.py wrote.
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folders of the golden cases, by name.
pub fn golden_cases() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> =
        entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect();
    cases.sort();
    cases
}

pub fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, Device::Cpu).unwrap()
}

/// The tensors of a safetensors file, read by tch itself, by name.
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// The largest |a - b| over all elements; infinite if either is not a number.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let difference = no_grad(|| (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[]));
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// Copies the files of a folder that has no subfolders.
pub fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Writes into `to` the model with these layers of the one in `from`. Executes the checkpoint
/// crate's plan, as the slicer does with a store.
pub fn slice(from: &Path, layers: &[u32], to: &Path) {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let config = DecoderConfig::from_hf(&json).unwrap();
    let is_weights = |name: &str| name.starts_with("model") && name.ends_with(".safetensors");
    let names = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeMap<String, Vec<u8>> = names
        .filter(|name| is_weights(name))
        .map(|name| (name.clone(), std::fs::read(from.join(name)).unwrap()))
        .collect();
    let header = |(name, bytes): (&String, &Vec<u8>)| {
        let end = 8 + SafetensorsHeader::length(bytes, bytes.len() as u64).unwrap() as usize;
        (name.clone(), SafetensorsHeader::parse(&bytes[8..end], bytes.len() as u64).unwrap())
    };
    let headers: Vec<_> = files.iter().map(header).collect();
    let rule = LayerMapRule::List(layers.to_vec());
    let reference_layers = config.n_layers;
    let reference = Inventory::new(config, &headers).unwrap();
    let map = layer_map(&rule, reference_layers, reference_layers).unwrap();
    let from = Inheritance { reference: &reference, layer_map: &map, inherit: InheritSet::ALL, previous: None };
    let plan = SlicePlan::new(from).unwrap();
    let mut placements: Vec<_> =
        plan.tensors().iter().filter(|placement| !matches!(placement.origin, Origin::Tied { .. })).collect();
    placements.sort_by_key(|placement| std::cmp::Reverse(placement.dtype.size_bytes()));
    let entries: Vec<_> =
        placements.iter().map(|p| NewTensor { name: &p.target.name, dtype: p.dtype, shape: &p.target.shape }).collect();
    let mut file = write_header(&entries).unwrap();
    for placement in placements {
        let Origin::Copied { tensor, .. } = &placement.origin else {
            panic!("{} is not copied", placement.target.name)
        };
        file.extend_from_slice(&files[&tensor.file][tensor.bytes.start as usize..tensor.bytes.end as usize]);
    }
    std::fs::write(to.join("model.safetensors"), file).unwrap();
    let (json, _) = config_json::target(&json, reference.config(), &map, WeightsDtype::Copied(None)).unwrap();
    std::fs::write(to.join("config.json"), json.to_string()).unwrap();
}

/// A reproducible sequence of pseudo-random numbers from -1 to 1.
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        // Knuth's MMIX constants.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}

/// Writes a checkpoint of shape `config` with weights from -0.1 to 0.1, and norms around 1.
pub fn write_checkpoint(dir: &Path, config: &DecoderConfig) {
    let specs: Vec<_> = config.tensors().into_iter().filter(|spec| spec.tied_to.is_none()).collect();
    let entries: Vec<_> =
        specs.iter().map(|s| NewTensor { name: &s.name, dtype: Dtype::F32, shape: &s.shape }).collect();
    let mut file = write_header(&entries).unwrap();
    let mut next = noise(7);
    for spec in &specs {
        let centre = if spec.shape.len() == 1 && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
        for _ in 0..spec.shape.iter().product() {
            file.extend_from_slice(&(centre + 0.1 * next()).to_le_bytes());
        }
    }
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    std::fs::write(dir.join("config.json"), config.to_hf().to_string()).unwrap();
}
