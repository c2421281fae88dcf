//! `model.safetensors.index.json` and `pytorch_model.bin.index.json`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use inheritune_domain::checkpoint::safetensors_header::{Dtype, HeaderTensor, MAX_TENSORS};
use inheritune_domain::checkpoint::shard_index::{MAX_SHARDS, ShardFormat, ShardIndex};
use serde::Deserialize;

use super::{Heap, refused};

const HEAP: Heap = Heap { fixed: 64 << 10, per_byte: 24, most: 64 << 20 };

pub fn check(json: &[u8]) {
    for format in [ShardFormat::Safetensors, ShardFormat::Pickle] {
        match HEAP.hold(json, |json| ShardIndex::parse(json, format)) {
            Ok(index) => accepted(&index, json),
            Err(error) => refused(&error),
        }
    }
}

#[derive(Deserialize)]
struct Map {
    weight_map: BTreeMap<String, String>,
}

/// Every file is one in the folder of the index, and the index is right about the shards it describes and no others.
fn accepted(index: &ShardIndex, json: &[u8]) {
    let files = index.files();
    assert!((1..=MAX_SHARDS).contains(&files.len()));
    for file in &files {
        let path = Path::new(file);
        assert!(matches!(path.components().collect::<Vec<_>>()[..], [Component::Normal(name)] if name == *file));
        assert!(!file.contains(['/', '\\', ':', '\0']) && !file.starts_with('.'), "{file}");
    }
    let mut shards: BTreeMap<&str, Vec<HeaderTensor>> = BTreeMap::new();
    let Map { weight_map } = serde_json::from_slice(json).unwrap();
    for (name, file) in &weight_map {
        let tensor = HeaderTensor { name: name.clone(), dtype: Dtype::U8, shape: Vec::new(), bytes: 0..1 };
        shards.entry(file).or_default().push(tensor);
    }
    let mut shards: Vec<(String, Vec<HeaderTensor>)> =
        shards.into_iter().map(|(file, tensors)| (file.to_owned(), tensors)).collect();
    assert!(shards.iter().map(|(_, tensors)| tensors.len()).sum::<usize>() <= MAX_TENSORS);
    assert_eq!(shards.iter().map(|(file, _)| file.as_str()).collect::<Vec<_>>(), files);
    index.check(&shards).unwrap();

    let moved = shards[0].1.pop().unwrap();
    refused(&index.check(&shards).unwrap_err());
    shards.last_mut().unwrap().1.push(HeaderTensor { name: format!("{}x", moved.name), ..moved });
    refused(&index.check(&shards).unwrap_err());
}
