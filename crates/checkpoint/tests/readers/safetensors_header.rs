//! The start of a safetensors file.

use inheritune_checkpoint::safetensors_header::{
    HeaderError, HeaderTensor, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS, NewTensor, PREFIX_BYTES, SafetensorsHeader,
    size_bytes, write_header,
};

use super::{Heap, refused};

const HEAP: Heap = Heap { fixed: 64 << 10, per_byte: 24, most: 64 << 20 };

pub fn check(file: &[u8]) {
    let file_bytes = file.len() as u64;
    // Read it in the same way as the slicer.
    match SafetensorsHeader::length(file, file_bytes) {
        Ok(json_bytes) => {
            assert!(json_bytes <= MAX_HEADER_BYTES);
            let json = &file[PREFIX_BYTES as usize..][..json_bytes as usize];
            match HEAP.hold(json, |json| SafetensorsHeader::parse(json, file_bytes)) {
                Ok(header) => accepted(&header, json, file_bytes),
                Err(error) => refused(&error),
            }
        }
        Err(error) => refused(&error),
    }
    // Read the JSON alone, with the file size that it describes. Otherwise a wrong length or size,
    // which is easy to detect, would hide the rest.
    let Some(json) = file.get(PREFIX_BYTES as usize..) else { return };
    match HEAP.hold(json, |json| SafetensorsHeader::parse(json, u64::MAX)) {
        Ok(header) => accepted(&header, json, u64::MAX),
        Err(HeaderError::WrongSize { expected_bytes, .. }) => {
            accepted(&SafetensorsHeader::parse(json, expected_bytes).unwrap(), json, expected_bytes);
        }
        Err(error) => refused(&error),
    }
}

/// Checks that every byte of the file belongs to one tensor, and that the header can be written and
/// read again.
fn accepted(header: &SafetensorsHeader, json: &[u8], file_bytes: u64) {
    let data_start = PREFIX_BYTES + json.len() as u64;
    assert!(header.tensors().len() <= MAX_TENSORS);
    assert_eq!(inside(header.tensors(), data_start), file_bytes);
    let tensors: Vec<NewTensor<'_>> = header
        .tensors()
        .iter()
        .map(|HeaderTensor { name, dtype, shape, .. }| NewTensor { name, dtype: *dtype, shape })
        .collect();
    let written = write_header(&tensors).unwrap();
    let Some(written_bytes) = (file_bytes - data_start).checked_add(written.len() as u64) else { return };
    let again = SafetensorsHeader::parse(&written[PREFIX_BYTES as usize..], written_bytes).unwrap();
    let moved = |tensor: &HeaderTensor| {
        let to = |at: u64| at - data_start + written.len() as u64;
        HeaderTensor { bytes: to(tensor.bytes.start)..to(tensor.bytes.end), ..tensor.clone() }
    };
    assert_eq!(again.tensors(), header.tensors().iter().map(moved).collect::<Vec<_>>());
}

/// Checks that the tensors are consecutive, starting at `at`. Returns the end of the last one.
fn inside(tensors: &[HeaderTensor], mut at: u64) -> u64 {
    for HeaderTensor { dtype, shape, bytes, .. } in tensors {
        assert!(shape.len() <= MAX_RANK);
        assert_eq!((bytes.start, bytes.end.checked_sub(bytes.start)), (at, size_bytes(*dtype, shape)));
        at = bytes.end;
    }
    at
}
