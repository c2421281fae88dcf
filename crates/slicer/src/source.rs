//! A checkpoint in the Hugging Face layout, read by ranges: `config.json` and the headers of its weights.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_domain::artifact::Location;
use inheritune_domain::checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::checkpoint::safetensors_header::{PREFIX_BYTES, SINGLE_FILE, SafetensorsHeader};
use inheritune_domain::checkpoint::shard_index::{INDEX_FILE, MAX_INDEX_BYTES, ShardIndex};
use inheritune_domain::checkpoint::slice_plan::Inventory;
use inheritune_store::Store;
use inheritune_store::objects::Folder;
use serde_json::Value;

use crate::error::{BadCheckpoint, SlicerError};

/// Longest `config.json`.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// First read of a file: most headers end within it.
const FIRST_READ_BYTES: u64 = 128 << 10;
/// Headers of shards read at once.
const HEADERS_AT_ONCE: usize = 8;

/// A checkpoint whose shape is known and whose tensors are all there.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Where it is.
    pub location: Location,
    /// Its files.
    pub folder: Arc<Folder>,
    /// Its `config.json`, every key in its order.
    pub config_json: Value,
    /// Its tensors.
    pub inventory: Inventory,
}

impl Checkpoint {
    /// Opens the checkpoint at `location`; reads `config.json`, the index where there is one, and the headers.
    ///
    /// # Errors
    /// [`SlicerError::Checkpoint`] naming the location, the file and what is wrong; the store's errors.
    pub async fn open(store: &Store, location: &Location) -> Result<Self, SlicerError> {
        let folder = Arc::new(store.open(location).await?);
        Self::read(location.clone(), folder).await
    }

    async fn read(location: Location, folder: Arc<Folder>) -> Result<Self, SlicerError> {
        let bad = |problem: BadCheckpoint| SlicerError::checkpoint(&location, problem);
        if !folder.has("config.json") {
            let hint = ": a Hugging Face checkpoint folder is expected".to_owned();
            return Err(bad(BadCheckpoint::MissingFile { file: "config.json".to_owned(), hint }));
        }
        let config_bytes = folder.read("config.json", MAX_CONFIG_BYTES).await?;
        let config_json: Value = serde_json::from_slice(&config_bytes)
            .map_err(|e| bad(BadCheckpoint::Json { file: "config.json".to_owned(), problem: e.to_string() }))?;
        let config = DecoderConfig::from_hf(&config_json).map_err(|e| bad(e.into()))?;
        let headers = headers(&location, &folder).await?;
        let inventory = Inventory::new(config, &headers).map_err(|e| bad(e.into()))?;
        Ok(Self { location, folder, config_json, inventory })
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        self.inventory.config()
    }
}

async fn headers(location: &Location, folder: &Arc<Folder>) -> Result<Vec<(String, SafetensorsHeader)>, SlicerError> {
    // As transformers does: the single file wins over an index.
    if folder.has(SINGLE_FILE) {
        return Ok(vec![header(location.clone(), folder.clone(), SINGLE_FILE.to_owned()).await?]);
    }
    if !folder.has(INDEX_FILE) {
        let pickled = folder.files().iter().any(|file| file.name.ends_with(".bin") || file.name.ends_with(".pt"));
        let hint = match pickled {
            true => {
                " and pickled weights are not read: load the model in transformers and save_pretrained it".to_owned()
            }
            false => format!(", and so is {INDEX_FILE}"),
        };
        return Err(SlicerError::checkpoint(
            location,
            BadCheckpoint::MissingFile { file: SINGLE_FILE.to_owned(), hint },
        ));
    }
    let bytes = folder.read(INDEX_FILE, MAX_INDEX_BYTES).await?;
    let index = ShardIndex::parse(&bytes).map_err(|e| SlicerError::checkpoint(location, e))?;
    let files: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
    if let Some(file) = files.iter().find(|file| !folder.has(file)) {
        let hint = format!(", though {INDEX_FILE} names it");
        return Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file: file.clone(), hint }));
    }
    let headers: Vec<_> = futures::stream::iter(files)
        .map(|file| header(location.clone(), folder.clone(), file))
        .buffered(HEADERS_AT_ONCE)
        .try_collect()
        .await?;
    index.check(&headers).map_err(|e| SlicerError::checkpoint(location, e))?;
    Ok(headers)
}

/// The header of one file, in two reads at most.
async fn header(
    location: Location,
    folder: Arc<Folder>,
    file: String,
) -> Result<(String, SafetensorsHeader), SlicerError> {
    let file_bytes = folder.files().iter().find(|f| f.name == file).map_or(0, |f| f.size_bytes);
    let read = async |range: std::ops::Range<u64>| -> Result<Bytes, SlicerError> {
        let bytes = folder.read_range(&file, range.clone()).await?;
        let (start, end, got) = (range.start, range.end, bytes.len() as u64);
        if got == end - start {
            return Ok(bytes);
        }
        Err(SlicerError::checkpoint(&location, BadCheckpoint::ShortRead { file: file.clone(), start, end, got }))
    };
    let bad = |problem| SlicerError::checkpoint(&location, BadCheckpoint::Header { file: file.clone(), problem });
    // An empty range is no request that a store understands.
    let first = if file_bytes == 0 { Bytes::new() } else { read(0..file_bytes.min(FIRST_READ_BYTES)).await? };
    let json_bytes = SafetensorsHeader::length(&first, file_bytes).map_err(bad)?;
    let end = PREFIX_BYTES + json_bytes;
    let json = if end <= first.len() as u64 {
        first.slice(PREFIX_BYTES as usize..end as usize)
    } else {
        read(PREFIX_BYTES..end).await?
    };
    let header = SafetensorsHeader::parse(&json, file_bytes).map_err(bad)?;
    Ok((file, header))
}
