//! Lays a plan out in files: which tensor is in which file, and the files' headers.

use std::collections::BTreeMap;

use inheritune_checkpoint::safetensors_header::{HeaderError, NewTensor, SINGLE_FILE, write_header};
use inheritune_checkpoint::slice_plan::{Origin, Placement, SlicePlan};
use serde_json::json;

use crate::error::SlicerError;

/// Maximum number of weights files: an artifact contains at most 10,000 files, some of which are
/// not weights.
pub const MAX_WEIGHTS_FILES: usize = 9_900;

/// From this size on, a tensor is an upload part of its own: the minimum size of a part in S3.
const LARGE_BYTES: u64 = 5 << 20;

/// One weights file to write: its header, then its tensors in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightsFile<'a> {
    /// The file's name.
    pub name: String,
    /// The header, with its length prefix.
    pub header: Vec<u8>,
    /// The file's tensors.
    pub tensors: Vec<&'a Placement>,
}

/// The weights files of `plan`. Each has at most `max_shard_size_bytes` of tensors, unless a single
/// tensor is larger. Several files are named as transformers' `save_pretrained` names them.
///
/// # Errors
/// A header is too long.
pub fn files(plan: &SlicePlan, max_shard_size_bytes: u64) -> Result<Vec<WeightsFile<'_>>, HeaderError> {
    let groups = groups(plan, max_shard_size_bytes);
    let count = groups.len();
    (1..).zip(groups).map(|(number, group)| weights_file(number, count, group)).collect()
}

/// Returns the number of files that [`files`] makes.
///
/// # Errors
/// [`SlicerError::TooManyFiles`].
pub fn count(plan: &SlicePlan, max_shard_size_bytes: u64) -> Result<u32, SlicerError> {
    let files = groups(plan, max_shard_size_bytes).len();
    match u32::try_from(files) {
        Ok(count) if files <= MAX_WEIGHTS_FILES => Ok(count),
        _ => Err(SlicerError::TooManyFiles { files, max_shard_size_bytes }),
    }
}

fn groups(plan: &SlicePlan, max_shard_size_bytes: u64) -> Vec<Vec<&Placement>> {
    let mut groups: Vec<Vec<&Placement>> = vec![Vec::new()];
    let mut group_bytes = 0;
    for placement in plan.tensors().iter().filter(|p| !matches!(p.origin, Origin::Tied { .. })) {
        let size = placement.size_bytes();
        if group_bytes > 0 && group_bytes + size > max_shard_size_bytes {
            groups.push(Vec::new());
            group_bytes = 0;
        }
        group_bytes += size;
        if let Some(group) = groups.last_mut() {
            group.push(placement);
        }
    }
    groups
}

/// The `model.safetensors.index.json` of several files; `None` for a single file.
pub fn index(files: &[WeightsFile<'_>]) -> Option<String> {
    if files.len() < 2 {
        return None;
    }
    let tensors = || files.iter().flat_map(|file| file.tensors.iter().map(move |tensor| (file, *tensor)));
    let weight_map: BTreeMap<&str, &str> =
        tensors().map(|(file, tensor)| (tensor.target.name.as_str(), file.name.as_str())).collect();
    let total_size: u64 = tensors().map(|(_, tensor)| tensor.size_bytes()).sum();
    Some(format!("{:#}\n", json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map })))
}

fn weights_file(number: usize, count: usize, mut tensors: Vec<&Placement>) -> Result<WeightsFile<'_>, HeaderError> {
    let name = match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{number:05}-of-{count:05}.safetensors"),
    };
    // Wider types first keeps every tensor aligned. Small tensors first leaves long ranges at the
    // end that S3 servers can copy themselves. The sort is stable, so forward order is kept
    // otherwise.
    tensors.sort_by_key(|tensor| (std::cmp::Reverse(tensor.dtype.size_bytes()), tensor.size_bytes() >= LARGE_BYTES));
    let entries: Vec<NewTensor<'_>> = tensors
        .iter()
        .map(|tensor| NewTensor { name: &tensor.target.name, dtype: tensor.dtype, shape: &tensor.target.shape })
        .collect();
    Ok(WeightsFile { header: write_header(&entries)?, name, tensors })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use inheritune_checkpoint::decoder_config::{Architecture, Family};
    use inheritune_checkpoint::safetensors_header::SafetensorsHeader;
    use inheritune_domain::id::LayerCount;
    use inheritune_domain::spec::defaults;

    use super::*;

    fn plan(layers: u32) -> SlicePlan {
        let architecture = Architecture {
            family: Family::Llama,
            n_layers: LayerCount(layers),
            d_model: 8,
            n_heads: 2,
            n_kv_heads: None,
            d_ff: None,
            max_positions: 16,
            rope_theta: None,
            tied_head: None,
            inverse_layer_scale: false,
            no_bias: false,
            pad_vocab_to_multiple_of: None,
        };
        SlicePlan::fresh(architecture.config(32))
    }

    #[test]
    fn every_tensor_is_in_one_file_within_the_limit() {
        let plan = plan(3);
        let size_bytes = plan.size_bytes();
        for max_shard_size_bytes in [1, 1000, 1024, 5000, size_bytes - 1, size_bytes, defaults::max_shard_size_bytes()]
        {
            let files = files(&plan, max_shard_size_bytes).unwrap();
            assert_eq!(count(&plan, max_shard_size_bytes).unwrap() as usize, files.len());
            let mut names = Vec::new();
            for file in &files {
                let size: u64 = file.tensors.iter().map(|tensor| tensor.size_bytes()).sum();
                assert!(size <= max_shard_size_bytes || file.tensors.len() == 1);
                let read = SafetensorsHeader::parse(&file.header[8..], file.header.len() as u64 + size).unwrap();
                assert_eq!(read.tensors().len(), file.tensors.len());
                names.extend(file.tensors.iter().map(|tensor| tensor.target.name.as_str()));
            }
            assert_eq!(names, plan.tensors().iter().map(|tensor| tensor.target.name.as_str()).collect::<Vec<_>>());
            assert_eq!(files.len() == 1, max_shard_size_bytes >= size_bytes);
            assert_eq!(index(&files).is_none(), files.len() == 1);
        }
    }

    #[test]
    fn an_artifact_holds_so_many_files() {
        // A block of this model has nine tensors.
        let fits = plan(1_000);
        assert_eq!(count(&fits, 1).unwrap(), 9_003);
        let error = count(&plan(1_100), 1).unwrap_err().to_string();
        assert_eq!(error, "max_shard_size_bytes = 1 makes 9903 weights files; the limit is 9900");
        assert_eq!(count(&plan(1_100), defaults::max_shard_size_bytes()).unwrap(), 1);
    }

    #[test]
    fn files_are_named_as_transformers_names_them() {
        let plan = plan(3);
        let one = files(&plan, defaults::max_shard_size_bytes()).unwrap();
        assert_eq!(one[0].name, "model.safetensors");
        let two = files(&plan, plan.size_bytes() - 1).unwrap();
        let names: Vec<&str> = two.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        let index: serde_json::Value = serde_json::from_str(&index(&two).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], plan.size_bytes());
        assert_eq!(index["weight_map"]["lm_head.weight"], "model-00002-of-00002.safetensors");
    }
}
