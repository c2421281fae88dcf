//! `model.safetensors.index.json` and `pytorch_model.bin.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use inheritune_checkpoint::safetensors_header::MAX_TENSORS;
use inheritune_checkpoint::shard_index::{MAX_SHARDS, ShardFormat, ShardIndex};
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

/// Checks that every file is in the folder of the index.
fn accepted(index: &ShardIndex, json: &[u8]) {
    let files = index.files();
    assert!((1..=MAX_SHARDS).contains(&files.len()));
    for file in &files {
        let path = Path::new(file);
        assert!(matches!(path.components().collect::<Vec<_>>()[..], [Component::Normal(name)] if name == *file));
        assert!(!file.contains(['/', '\\', ':', '\0']) && !file.starts_with('.'), "{file}");
    }
    let Map { weight_map } = serde_json::from_slice(json).unwrap();
    assert!(weight_map.len() <= MAX_TENSORS);
    let named: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    assert_eq!(named.into_iter().collect::<Vec<_>>(), files);
}
