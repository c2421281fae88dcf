//! A head that is stored next to the token embedding that it should be tied to. It is either a copy
//! of the embedding or a separate head; only the numbers tell which.

use std::borrow::Cow;

use inheritune_checkpoint::safetensors_header::Dtype;
use inheritune_checkpoint::slice_plan::{PlanError, Reading, SourceTensor};
use inheritune_objects::Folder;
use serde_json::Value;

use super::{Checkpoint, Inventory};
use crate::error::{BadCheckpoint, SlicerError};

/// Numbers compared at a time.
const PIECE: u64 = 2 << 20;

/// What `config.json` says about the head, in the families whose head is always the token
/// embedding. In these, an untied head is equivalent if its numbers equal the embedding's.
pub(super) struct Claim<'a> {
    json: Cow<'a, Value>,
    untied: bool,
}

impl<'a> Claim<'a> {
    pub(super) fn take(json: &'a Value) -> Self {
        let text = |key: &str| json.get(key).and_then(Value::as_str);
        let always_tied = matches!(text("model_type"), Some("gpt2" | "opt" | "mpt" | "mosaic_gpt"));
        let untied = always_tied && json.get("tie_word_embeddings") == Some(&Value::Bool(false));
        let mut json = Cow::Borrowed(json);
        if untied {
            json.to_mut()["tie_word_embeddings"] = true.into();
        }
        Self { json, untied }
    }

    /// The config with a tied head.
    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    /// An untied head that is not stored cannot be compared with the embedding: the head is
    /// missing.
    pub(super) fn check(&self, inventory: &Inventory) -> Result<(), BadCheckpoint> {
        if !self.untied || inventory.second_head().is_some() {
            return Ok(());
        }
        let config = inventory.config();
        let (tensors, layers) = (vec!["lm_head.weight".to_owned()], config.n_layers);
        Err(PlanError::MissingTensors { tensors, layers, family: config.family.as_str() }.into())
    }
}

/// Resolves whether the stored head is a copy of the embedding or a separate head.
pub(super) async fn decided(checkpoint: Checkpoint) -> Result<Checkpoint, SlicerError> {
    let Some(second) = checkpoint.inventory.second_head() else { return Ok(checkpoint) };
    let same = same_numbers(&checkpoint, second.head, second.tied_to).await?;
    let Checkpoint { location, folder, config_json, inventory, unwritable } = checkpoint;
    let inventory = if same {
        inventory.with_head_as_copy()
    } else {
        inventory.with_own_head().map_err(|error| SlicerError::checkpoint(&location, error))?
    };
    Ok(Checkpoint { location, folder, config_json, inventory, unwritable })
}

async fn same_numbers(checkpoint: &Checkpoint, a: &SourceTensor, b: &SourceTensor) -> Result<bool, SlicerError> {
    if (&a.file, &a.bytes, a.dtype) == (&b.file, &b.bytes, b.dtype) {
        return Ok(true);
    }
    let numbers: u64 = a.shape.iter().product();
    for start in (0..numbers).step_by(PIECE as usize) {
        let range = start..numbers.min(start + PIECE);
        let piece = |tensor: &SourceTensor| {
            let (tensor, range) = (tensor.clone(), range.clone());
            async move { read(&checkpoint.folder, &tensor, range, checkpoint).await }
        };
        let (first, second) = futures::try_join!(piece(a), piece(b))?;
        let same =
            if a.dtype == b.dtype { first == second } else { floats(&first, a.dtype).eq(floats(&second, b.dtype)) };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn read(
    folder: &Folder,
    tensor: &SourceTensor,
    numbers: std::ops::Range<u64>,
    checkpoint: &Checkpoint,
) -> Result<bytes::Bytes, SlicerError> {
    // No family fuses or transposes its embedding or its head.
    debug_assert_eq!(tensor.reading, Reading::Whole);
    let size = tensor.dtype.size_bytes();
    let range = tensor.bytes.start + numbers.start * size..tensor.bytes.start + numbers.end * size;
    let bytes = folder.read_range(&tensor.file, range.clone()).await?;
    let (start, end, got) = (range.start, range.end, bytes.len() as u64);
    if got == end - start {
        return Ok(bytes);
    }
    let problem = BadCheckpoint::ShortRead { file: tensor.file.clone(), start, end, got };
    Err(SlicerError::checkpoint(&checkpoint.location, problem))
}

/// The numbers in fp32, which represents those of the narrower types exactly.
fn floats(bytes: &[u8], dtype: Dtype) -> Box<dyn Iterator<Item = f32> + '_> {
    let halves = || bytes.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    match dtype {
        Dtype::F16 => Box::new(halves().map(half)),
        Dtype::Bf16 => Box::new(halves().map(|bits| f32::from_bits(u32::from(bits) << 16))),
        _ => Box::new(bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))),
    }
}

/// Decodes IEEE half precision.
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 0x1f, bits & 0x3ff);
    let size = match exponent {
        0 => f32::from(fraction) * 2f32.powi(-24),
        0x1f if fraction == 0 => f32::INFINITY,
        0x1f => f32::NAN,
        _ => (1.0 + f32::from(fraction) / 1024.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_numbers_that_they_are() {
        for (bits, number) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333_251_95), (0x0001, 5.960_464_5e-8), (0x7c00, f32::INFINITY)]
        {
            assert_eq!(half(bits), number);
        }
        let bytes = [0x80_u8, 0x3f, 0x00, 0xc0];
        assert!(floats(&bytes, Dtype::Bf16).eq([1.0, -2.0]));
    }
}
