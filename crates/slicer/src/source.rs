//! A checkpoint in the Hugging Face layout, read by ranges: `config.json` and the headers of its weights, which are
//! those of safetensors files or the directories and pickles of PyTorch's archives.

mod archive;
mod foreign;
mod safetensors;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_domain::artifact::Location;
use inheritune_domain::checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::checkpoint::litgpt::LITGPT_FILE;
use inheritune_domain::checkpoint::nanogpt::NANOGPT_FILE;
use inheritune_domain::checkpoint::safetensors_header::{HeaderTensor, SINGLE_FILE};
use inheritune_domain::checkpoint::shard_index::{
    INDEX_FILE, MAX_INDEX_BYTES, PICKLE_INDEX_FILE, ShardFormat, ShardIndex,
};
use inheritune_domain::checkpoint::slice_plan::Inventory;
use inheritune_domain::checkpoint::torch_archive::{SINGLE_PICKLE_FILE, StateDict};
use inheritune_store::Store;
use inheritune_store::objects::Folder;
use serde_json::Value;

use crate::error::{BadCheckpoint, SlicerError};

/// Hugging Face's settings of a model.
const CONFIG_FILE: &str = "config.json";
/// Longest file of settings.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Headers of shards read at once.
const HEADERS_AT_ONCE: usize = 8;
/// Pickles of shards read at once: one of 64 MiB can take three times as much to understand.
const PICKLES_AT_ONCE: usize = 2;

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
        if !folder.has(CONFIG_FILE) && folder.has(NANOGPT_FILE) {
            return foreign::nanogpt(location, folder).await;
        }
        if !folder.has(CONFIG_FILE) && folder.has(LITGPT_FILE) {
            return foreign::litgpt(location, folder).await;
        }
        let bad = |problem: BadCheckpoint| SlicerError::checkpoint(&location, problem);
        if !folder.has(CONFIG_FILE) {
            let hint = ": a Hugging Face checkpoint folder is expected".to_owned();
            return Err(bad(BadCheckpoint::MissingFile { file: CONFIG_FILE.to_owned(), hint }));
        }
        let config_json = json(&location, &folder, CONFIG_FILE).await?;
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

async fn json(location: &Location, folder: &Folder, file: &str) -> Result<Value, SlicerError> {
    let bytes = folder.read(file, MAX_CONFIG_BYTES).await?;
    let bad = |problem: String| BadCheckpoint::Json { file: file.to_owned(), problem };
    serde_json::from_slice(&bytes).map_err(|e| SlicerError::checkpoint(location, bad(e.to_string())))
}

/// The tensors of every file of weights. As transformers does, safetensors win over pickles, and a single file over
/// an index.
async fn headers(location: &Location, folder: &Arc<Folder>) -> Result<Vec<(String, Vec<HeaderTensor>)>, SlicerError> {
    let source =
        |name: &str| WeightsSource { location: location.clone(), folder: folder.clone(), name: name.to_owned() };
    for (format, single) in [(ShardFormat::Safetensors, SINGLE_FILE), (ShardFormat::Pickle, SINGLE_PICKLE_FILE)] {
        if folder.has(single) {
            return Ok(vec![tensors(format, source(single)).await?]);
        }
        let index_file = format.index_file();
        if !folder.has(index_file) {
            continue;
        }
        let bytes = folder.read(index_file, MAX_INDEX_BYTES).await?;
        let index = ShardIndex::parse(&bytes, format).map_err(|e| SlicerError::checkpoint(location, e))?;
        let files: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
        if let Some(file) = files.iter().find(|file| !folder.has(file)) {
            let hint = format!(", though {index_file} names it");
            return Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file: file.clone(), hint }));
        }
        let at_once = match format {
            ShardFormat::Safetensors => HEADERS_AT_ONCE,
            ShardFormat::Pickle => PICKLES_AT_ONCE,
        };
        let headers: Vec<_> = futures::stream::iter(files)
            .map(|file| tensors(format, source(&file)))
            .buffered(at_once)
            .try_collect()
            .await?;
        index.check(&headers).map_err(|e| SlicerError::checkpoint(location, e))?;
        return Ok(headers);
    }
    let hint = format!(", and so are {INDEX_FILE}, {SINGLE_PICKLE_FILE} and {PICKLE_INDEX_FILE}");
    Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file: SINGLE_FILE.to_owned(), hint }))
}

async fn tensors(format: ShardFormat, file: WeightsSource) -> Result<(String, Vec<HeaderTensor>), SlicerError> {
    match format {
        ShardFormat::Safetensors => safetensors::tensors(file).await,
        ShardFormat::Pickle => {
            let (_, tensors) = archive::read(&file, StateDict::parse, |state_dict| state_dict).await?;
            Ok((file.name, tensors))
        }
    }
}

/// One file of weights.
#[derive(Debug, Clone)]
struct WeightsSource {
    location: Location,
    folder: Arc<Folder>,
    name: String,
}

impl WeightsSource {
    fn size_bytes(&self) -> u64 {
        self.folder.files().iter().find(|f| f.name == self.name).map_or(0, |f| f.size_bytes)
    }

    /// All of `range`.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SlicerError> {
        let bytes = self.folder.read_range(&self.name, range.clone()).await?;
        let (start, end, got) = (range.start, range.end, bytes.len() as u64);
        if got == end - start {
            return Ok(bytes);
        }
        Err(self.bad(BadCheckpoint::ShortRead { file: self.name.clone(), start, end, got }))
    }

    fn bad(&self, problem: BadCheckpoint) -> SlicerError {
        SlicerError::checkpoint(&self.location, problem)
    }
}
