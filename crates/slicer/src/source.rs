//! Reads a checkpoint by ranges: its settings and the headers of its weights. These are the headers
//! of safetensors files, or the directories and pickles of PyTorch archives. `weights_files`
//! decides which files are used.

mod archive;
mod foreign;
mod head;
mod safetensors;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use inheritune_checkpoint::config_json::{self, WeightsDtype};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::layer_map::LayerMap;
use inheritune_checkpoint::left_out::LeftOut;
use inheritune_checkpoint::other_content::other_content;
use inheritune_checkpoint::safetensors_header::{Dtype, HeaderTensor};
use inheritune_checkpoint::shard_index::{MAX_INDEX_BYTES, ShardFormat, ShardIndex};
use inheritune_checkpoint::slice_plan::Inventory;
use inheritune_checkpoint::torch_archive::StateDict;
use inheritune_checkpoint::weights_files::{self, CONFIG_FILE, WeightsFiles};
use inheritune_domain::artifact::Location;
use inheritune_objects::Folder;
use inheritune_store::Store;
use serde_json::Value;

use crate::error::{BadCheckpoint, SlicerError};

/// Longest settings file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Shard headers read concurrently.
const HEADERS_AT_ONCE: usize = 8;
/// Shard pickles read concurrently: parsing one of 64 MiB can take three times as much memory.
const PICKLES_AT_ONCE: usize = 2;
/// First bytes of a pointer, which replaces a file that Git LFS has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A checkpoint whose shape is known and whose tensors are complete.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The checkpoint's location.
    pub location: Location,
    /// The checkpoint's folder.
    pub folder: Arc<Folder>,
    /// Its `config.json`, with all keys in their order.
    pub config_json: Value,
    /// Its tensors.
    pub inventory: Inventory,
    /// Keys of its `config.json` that cannot be written again.
    pub unwritable: Vec<LeftOut>,
}

impl Checkpoint {
    /// Opens the checkpoint at `location`. Reads `config.json`, the index if there is one, and the
    /// headers; also the numbers of a head that is stored next to the embedding that it should be
    /// tied to.
    ///
    /// # Errors
    /// [`SlicerError::Checkpoint`] with the location, the file and the problem; the store's errors.
    pub async fn open(store: &Store, location: &Location) -> Result<Self, SlicerError> {
        let folder = Arc::new(store.open(location).await?);
        let checkpoint = Self::read(location.clone(), folder).await?;
        head::decided(checkpoint).await
    }

    async fn read(location: Location, folder: Arc<Folder>) -> Result<Self, SlicerError> {
        let names: Vec<&str> = folder.files().iter().map(|file| file.name.as_str()).collect();
        let found = weights_files::find(&names);
        // A nanoGPT checkpoint is a single file, and the location may be that file.
        if let (Err(_), true, [only]) = (&found, folder.is_one_file(), names.as_slice()) {
            return Err(SlicerError::checkpoint(&location, BadCheckpoint::FileOfAFolder { file: (*only).to_owned() }));
        }
        if let (Err(_), Some(link)) = (&found, folder.dangling_links().iter().find(|link| is_of_a_model(link))) {
            let problem = BadCheckpoint::DanglingLink { file: link.clone() };
            return Err(SlicerError::checkpoint(&location, problem));
        }
        match found.map_err(|problem| SlicerError::checkpoint(&location, problem))? {
            WeightsFiles::NanoGpt(file) => foreign::nanogpt(location, folder, &file).await,
            WeightsFiles::LitGpt(settings) => foreign::litgpt(location, folder, settings).await,
            WeightsFiles::Single(format, file) => Self::hugging_face((location, folder), format, vec![file]).await,
            WeightsFiles::Numbered(format, files) => Self::hugging_face((location, folder), format, files).await,
            WeightsFiles::Indexed(format) => {
                let files = indexed(&location, &folder, format).await?;
                Self::hugging_face((location, folder), format, files).await
            }
        }
    }

    async fn hugging_face(
        (location, folder): (Location, Arc<Folder>),
        format: ShardFormat,
        files: Vec<String>,
    ) -> Result<Self, SlicerError> {
        let bad = |problem: BadCheckpoint| SlicerError::checkpoint(&location, problem);
        let read = config_json::parse(&small_file(&location, &folder, CONFIG_FILE).await?);
        let read = read.map_err(|problem| bad(BadCheckpoint::Json { file: CONFIG_FILE.to_owned(), problem }))?;
        let head = head::Claim::take(&read.json);
        let config = DecoderConfig::from_hf(head.json()).map_err(|e| bad(e.into()))?;
        let quantised = quantised_by(&read.json);
        let inventory = async {
            let headers = headers((&location, &folder), format, files).await?;
            let inventory = Inventory::new(config, &headers).map_err(|e| SlicerError::checkpoint(&location, e))?;
            head.check(&inventory).map_err(|e| SlicerError::checkpoint(&location, e))?;
            Ok::<_, SlicerError>(inventory)
        };
        let inventory = inventory.await.map_err(|error| match (error, &quantised) {
            // Plain weights with such a key are fine.
            (SlicerError::Checkpoint { location, problem }, Some(method)) => {
                let problem = BadCheckpoint::Quantised { method: method.clone(), problem: Box::new(problem) };
                SlicerError::Checkpoint { location, problem }
            }
            (error, _) => error,
        })?;
        let (config_json, unwritable) = read.finite();
        Ok(Self { location, folder, config_json, inventory, unwritable })
    }

    /// The checkpoint's shape.
    pub fn config(&self) -> &DecoderConfig {
        self.inventory.config()
    }

    /// What no target of this checkpoint takes over or states differently, whichever layers are
    /// taken.
    pub fn left_out(&self) -> Vec<LeftOut> {
        let layers = LayerMap::identity(self.config().n_layers);
        let target = config_json::target(&self.config_json, self.config(), &layers, WeightsDtype::Copied(self.dtype()));
        let changed = target.map(|(_, changed)| changed).unwrap_or_default();
        self.inventory.left_out().iter().cloned().chain(self.unwritable.iter().cloned()).chain(changed).collect()
    }

    /// The type of all weights; `None` if they have different types.
    pub fn dtype(&self) -> Option<Dtype> {
        let mut dtypes = self.inventory.tensors().map(|(_, tensor)| tensor.dtype);
        let first = dtypes.next()?;
        dtypes.all(|dtype| dtype == first).then_some(first)
    }
}

/// Whether the folder could be a model's folder if this file existed.
fn is_of_a_model(name: &str) -> bool {
    name == CONFIG_FILE || [".safetensors", ".bin", ".pt", ".pth", ".index.json"].iter().any(|end| name.ends_with(end))
}

/// The quantisation method that `config.json` names.
fn quantised_by(config: &Value) -> Option<String> {
    let keys = ["quantization_config", "compression_config", "quantization"];
    let quantisation = keys.into_iter().find_map(|key| config.get(key))?;
    let quantisation = quantisation.as_object().filter(|settings| !settings.is_empty())?;
    let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unknown method");
    Some(method.chars().filter(|c| !c.is_control()).take(40).collect())
}

async fn small_file(location: &Location, folder: &Folder, file: &str) -> Result<Bytes, SlicerError> {
    let bytes = folder.read(file, MAX_CONFIG_BYTES).await?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(SlicerError::checkpoint(location, BadCheckpoint::LfsPointer { file: file.to_owned() }));
    }
    let problem = other_content(&bytes).or(bytes.trim_ascii().is_empty().then_some("is empty"));
    match problem {
        Some(problem) => {
            let problem = BadCheckpoint::OtherContent { file: file.to_owned(), problem };
            Err(SlicerError::checkpoint(location, problem))
        }
        None => Ok(bytes),
    }
}

/// The files that the index names. Only the files' own headers are trusted: an index may name
/// tensors that do not exist, or assign them to the wrong file.
async fn indexed(location: &Location, folder: &Folder, format: ShardFormat) -> Result<Vec<String>, SlicerError> {
    let index_file = format.index_file();
    let bytes = folder.read(index_file, MAX_INDEX_BYTES).await?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(SlicerError::checkpoint(location, BadCheckpoint::LfsPointer { file: index_file.to_owned() }));
    }
    let index = ShardIndex::parse(&bytes, format).map_err(|e| SlicerError::checkpoint(location, e))?;
    let files: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
    if let Some(file) = files.iter().find(|file| !folder.has(file)) {
        let hint = format!(", though {index_file} names it");
        return Err(SlicerError::checkpoint(location, BadCheckpoint::MissingFile { file: file.clone(), hint }));
    }
    Ok(files)
}

/// The tensors of every weights file.
async fn headers(
    (location, folder): (&Location, &Arc<Folder>),
    format: ShardFormat,
    files: Vec<String>,
) -> Result<Vec<(String, Vec<HeaderTensor>)>, SlicerError> {
    let source = |name: String| WeightsSource { location: location.clone(), folder: folder.clone(), name };
    let at_once = match format {
        ShardFormat::Safetensors => HEADERS_AT_ONCE,
        ShardFormat::Pickle => PICKLES_AT_ONCE,
    };
    let files = files.into_iter().map(source);
    futures::stream::iter(files).map(|file| tensors(format, file)).buffered(at_once).try_collect().await
}

async fn tensors(format: ShardFormat, file: WeightsSource) -> Result<(String, Vec<HeaderTensor>), SlicerError> {
    file.refuse_pointer().await?;
    match format {
        ShardFormat::Safetensors => safetensors::tensors(file).await,
        ShardFormat::Pickle => {
            let (_, tensors) = archive::read(&file, StateDict::parse, |state_dict| state_dict).await?;
            Ok((file.name, tensors))
        }
    }
}

/// One weights file.
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

    /// Rejects a pointer, the few lines that replace a file that Git LFS has not fetched.
    async fn refuse_pointer(&self) -> Result<(), SlicerError> {
        // A pointer is about 130 bytes long.
        let size = self.size_bytes();
        if size == 0 || size > 1024 || !self.read(0..size).await?.starts_with(LFS_POINTER) {
            return Ok(());
        }
        Err(self.bad(BadCheckpoint::LfsPointer { file: self.name.clone() }))
    }

    /// Reads exactly `range`.
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
