//! The pickle of a checkpoint, in each of the three formats.

use std::collections::BTreeMap;

use inheritune_checkpoint::nanogpt::{NANOGPT_FILE, NanoGpt};
use inheritune_checkpoint::pickle::{Pickle, Value};
use inheritune_checkpoint::safetensors_header::{HeaderTensor, MAX_RANK, MAX_TENSORS, size_bytes};
use inheritune_checkpoint::torch_archive::{ArchiveError, StateDict};

use super::{Heap, refused};

/// An empty tuple takes one byte, and one more in the memo.
const HEAP: Heap = Heap { fixed: 64 << 10, per_byte: 200, most: 256 << 20 };

pub fn check(pickle: &[u8]) {
    match HEAP.hold(pickle, StateDict::parse) {
        Ok(tensors) => drop(accepted(pickle, &tensors)),
        // Then it is not a pickle of the other formats either.
        Err(error @ ArchiveError::Pickle(_)) => return refused(&error),
        Err(error) => refused(&error),
    }
    match HEAP.hold(pickle, NanoGpt::parse) {
        Ok(model) => {
            let tensors = accepted(pickle, model.state_dict());
            if let Err(error) = model.inventory(NANOGPT_FILE, &tensors.unwrap_or_default()) {
                refused(&error);
            }
        }
        Err(error) => refused(&error),
    }
}

/// Reads a large pickle once. Returns whether it is a dict of tensors.
pub fn check_memory(pickle: &[u8]) -> bool {
    HEAP.hold(pickle, StateDict::parse).map_err(|error| refused(&error)).is_ok()
}

/// Returns the tensors as if their storages were consecutive in a file, or `None` if the size of
/// that file does not fit in 64 bits.
fn accepted(pickle: &[u8], tensors: &StateDict) -> Option<Vec<HeaderTensor>> {
    let storages = storages(&Pickle::parse(pickle).unwrap())?;
    // A key with two sizes is rejected here, or by the archive, where a storage has one size.
    let located = tensors.located(&storages).ok()?;
    assert!(located.len() <= MAX_TENSORS);
    for HeaderTensor { dtype, shape, bytes, .. } in &located {
        assert!(shape.len() <= MAX_RANK);
        assert_eq!(bytes.end.checked_sub(bytes.start), size_bytes(*dtype, shape));
        assert!(storages.values().any(|storage| storage.start <= bytes.start && bytes.end <= storage.end));
    }
    Some(located)
}

/// Returns all storages that tensors in a dict refer to, as consecutive ranges. If two have the
/// same key, the last one counts.
fn storages(pickle: &Pickle<'_>) -> Option<BTreeMap<String, std::ops::Range<u64>>> {
    let mut dicts = vec![pickle.root()];
    let root = pickle.dict(pickle.root()).unwrap_or_default();
    dicts.extend(root.iter().filter(|(key, _)| *key == Value::Text("model")).map(|(_, value)| *value));
    let (mut storages, mut at) = (BTreeMap::new(), 0_u64);
    for (_, value) in dicts.into_iter().filter_map(|dict| pickle.dict(dict)).flatten() {
        let Some(tensor) = pickle.tensor(*value) else { continue };
        let end = size_bytes(tensor.storage.dtype, &[tensor.storage.numbers]).and_then(|size| at.checked_add(size))?;
        storages.insert(tensor.storage.key.to_owned(), at..end);
        at = end;
    }
    Some(storages)
}
