//! The header of a safetensors file.

use bytes::Bytes;
use inheritune_checkpoint::safetensors_header::{HeaderTensor, PREFIX_BYTES, SafetensorsHeader};

use super::WeightsSource;
use crate::error::{BadCheckpoint, SlicerError};

/// Size of the first read of a file: most headers fit.
const FIRST_READ_BYTES: u64 = 128 << 10;

/// The tensors of one file, in at most two reads.
pub(super) async fn tensors(file: WeightsSource) -> Result<(String, Vec<HeaderTensor>), SlicerError> {
    let bad = |problem| file.bad(BadCheckpoint::Header { file: file.name.clone(), problem });
    // Object stores reject requests for an empty range.
    let first = match file.size_bytes() {
        0 => Bytes::new(),
        size => file.read(0..size.min(FIRST_READ_BYTES)).await?,
    };
    let json_bytes = SafetensorsHeader::length(&first, file.size_bytes()).map_err(bad)?;
    let end = PREFIX_BYTES + json_bytes;
    let json = if end <= first.len() as u64 {
        first.slice(PREFIX_BYTES as usize..end as usize)
    } else {
        file.read(PREFIX_BYTES..end).await?
    };
    let header = SafetensorsHeader::parse(&json, file.size_bytes()).map_err(bad)?;
    Ok((file.name, header.tensors().to_vec()))
}
