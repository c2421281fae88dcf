//! `config.json`, lit-gpt's `lit_config.json`, and the plan of a checkpoint with the tensors they
//! describe.

use std::collections::BTreeSet;

use inheritune_checkpoint::config_json::{self, WeightsDtype};
use inheritune_checkpoint::decoder_config::{DecoderConfig, MAX_LAYERS, NameInFile, TensorSpec};
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_checkpoint::layer_map::LayerMap;
use inheritune_checkpoint::layer_map::LayerMapRule;
use inheritune_checkpoint::litgpt;
use inheritune_checkpoint::safetensors_header::{
    Dtype, NewTensor, PREFIX_BYTES, SINGLE_FILE, SafetensorsHeader, size_bytes, write_header,
};
use inheritune_checkpoint::slice_plan::{Inheritance, Inventory, Origin, SlicePlan, layer_map};
use inheritune_ids::id::LayerCount;
use serde_json::Value;

use super::{Heap, refused};

/// Maximum number of layers for which a checkpoint is planned. More layers only take more time.
const MAX_PLANNED_LAYERS: u32 = 4;

/// For a file of at most a megabyte. A number in a list takes two bytes.
const HEAP: Heap = Heap { fixed: 64 << 10, per_byte: 128, most: 128 << 20 };
/// For the tensors of the deepest model.
const TENSORS_HEAP: Heap = Heap { fixed: 16 << 20, per_byte: 0, most: 16 << 20 };

pub fn check(json: &[u8]) {
    if let Ok(text) = std::str::from_utf8(json)
        && let Ok(settings) = HEAP.hold(json, |_| litgpt::yaml(text))
        && let Err(error) = litgpt::config_json(&settings)
    {
        refused(&error);
    }
    let Ok(json) = HEAP.hold(json, |json| config_json::parse(json).map(|read| read.json)) else { return };
    match TENSORS_HEAP.hold(&[], |_| DecoderConfig::from_hf(&json)) {
        Ok(config) => accepted(&config, &json),
        Err(error) => refused(&error),
    }
    match TENSORS_HEAP.hold(&[], |_| litgpt::config_json(&json)) {
        Ok(json) => accepted(&DecoderConfig::from_hf(&json).unwrap(), &json),
        Err(error) => refused(&error),
    }
}

fn accepted(config: &DecoderConfig, json: &Value) {
    assert!((1..=MAX_LAYERS).contains(&config.n_layers.0));
    assert_eq!(config.n_heads % config.n_kv_heads, 0);
    assert_eq!(DecoderConfig::from_hf(&config.to_hf()).as_ref(), Ok(config));
    match config_json::target(json, config, &LayerMap::identity(LayerCount(1)), WeightsDtype::Copied(None)) {
        Ok((one, _)) => assert_eq!(DecoderConfig::from_hf(&one), Ok(config.with_layers(LayerCount(1)))),
        Err(error) => refused(&error),
    }
    let tensors = TENSORS_HEAP.hold(&[], |_| config.tensors());
    assert!(config.block_parameters() < config.parameters() && tensors.len() as u64 <= config.parameters());
    if config.n_layers.0 <= MAX_PLANNED_LAYERS {
        planned(config);
    }
}

/// Checks that a file with exactly the tensors of this shape results in a plan in which every
/// tensor has its place.
fn planned(config: &DecoderConfig) {
    let specs = config.tensors();
    let stored: Vec<&TensorSpec> = specs.iter().filter(|spec| spec.tied_to.is_none()).collect();
    let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names.len(), specs.len());
    for spec in &stored {
        assert_eq!(config.name_in_file(&spec.name), NameInFile::Tensor(spec.name.clone()));
    }
    let tensors: Vec<NewTensor<'_>> =
        stored.iter().map(|TensorSpec { name, shape, .. }| NewTensor { name, dtype: Dtype::F32, shape }).collect();
    let written = write_header(&tensors).unwrap();
    let data: u64 = stored.iter().map(|spec| size_bytes(Dtype::F32, &spec.shape).unwrap()).sum();
    let file_bytes = written.len() as u64 + data;
    let header = SafetensorsHeader::parse(&written[PREFIX_BYTES as usize..], file_bytes).unwrap();
    let reference = Inventory::new(config.clone(), &[(SINGLE_FILE.to_owned(), header)]).unwrap();
    let layer_map = layer_map(&LayerMapRule::First, LayerCount(1), config.n_layers).unwrap();
    let inheritance = Inheritance {
        reference: &reference,
        layer_map: &layer_map,
        inherit: InheritSet::OFFICIAL_CODE,
        previous: None,
    };
    let plan = SlicePlan::new(inheritance).unwrap();
    assert_eq!(plan.tensors().len(), config.with_layers(LayerCount(1)).tensors().len());
    for placement in plan.copied() {
        let Origin::Copied { tensor, .. } = &placement.origin else { unreachable!() };
        assert_eq!(tensor.size_bytes(), tensor.bytes.end - tensor.bytes.start);
        assert!(tensor.bytes.end <= file_bytes);
    }
}
