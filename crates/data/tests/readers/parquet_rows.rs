//! Parquet: any bytes result in documents or an error.

use std::sync::Arc;

use inheritune_data::kind::{Content, Kind};
use inheritune_data::unpack::Packing;
use inheritune_data::{row_count, values};

use super::{Stored, read};

pub fn check(file: &[u8]) {
    let kind = Kind { packing: Packing::Plain, content: Content::Parquet };
    let (documents, error) = read(file, kind, 1 << 16, u64::MAX);
    let stored = || Stored { bytes: Arc::new(file.to_vec()), step: 1 << 16 };
    if let (Ok(rows), None) = (row_count(stored(), "file", "text"), error) {
        assert!(documents.len() as u64 <= rows, "{} documents of {rows} rows", documents.len());
    }
    let _rows = values(stored(), "file.parquet", 100);
}
