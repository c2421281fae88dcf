//! Checkpoints that are not in Hugging Face's layout: nanoGPT's and lit-gpt's.

use std::sync::Arc;

use inheritune_domain::artifact::Location;
use inheritune_domain::checkpoint::decoder_config::{ConfigError, DecoderConfig};
use inheritune_domain::checkpoint::litgpt::{self, LITGPT_CONFIG_FILE, LITGPT_FILE};
use inheritune_domain::checkpoint::nanogpt::{NANOGPT_FILE, NanoGpt};
use inheritune_store::objects::Folder;

use super::{Checkpoint, WeightsSource, archive, json};
use crate::error::{BadCheckpoint, SlicerError};

/// `ckpt.pt`, which has its settings in it.
pub(super) async fn nanogpt(location: Location, folder: Arc<Folder>) -> Result<Checkpoint, SlicerError> {
    let file = WeightsSource { location, folder, name: NANOGPT_FILE.to_owned() };
    let (model, tensors) = archive::read(&file, NanoGpt::parse, NanoGpt::state_dict).await?;
    let inventory = model.inventory(NANOGPT_FILE, &tensors).map_err(|e| file.bad(e.into()))?;
    Ok(Checkpoint { config_json: model.config_json(), inventory, location: file.location, folder: file.folder })
}

/// `lit_model.pth` and `lit_config.json`.
pub(super) async fn litgpt(location: Location, folder: Arc<Folder>) -> Result<Checkpoint, SlicerError> {
    if !folder.has(LITGPT_CONFIG_FILE) {
        let hint = format!(", which belongs to {LITGPT_FILE}");
        let problem = BadCheckpoint::MissingFile { file: LITGPT_CONFIG_FILE.to_owned(), hint };
        return Err(SlicerError::checkpoint(&location, problem));
    }
    let lit = json(&location, &folder, LITGPT_CONFIG_FILE).await?;
    let file = WeightsSource { location, folder, name: LITGPT_FILE.to_owned() };
    let settings = |error: ConfigError| {
        let problem = match error {
            ConfigError::Key { key, problem } => format!("`{key}` {problem}"),
            ConfigError::UnknownFamily { .. } => error.to_string(),
        };
        file.bad(BadCheckpoint::Json { file: LITGPT_CONFIG_FILE.to_owned(), problem })
    };
    let config_json = litgpt::config_json(&lit).map_err(settings)?;
    let config = DecoderConfig::from_hf(&config_json).map_err(settings)?;
    let (_, tensors) = archive::read(&file, litgpt::state_dict, |state_dict| state_dict).await?;
    let inventory = litgpt::inventory(config, LITGPT_FILE, &tensors).map_err(|e| file.bad(e.into()))?;
    Ok(Checkpoint { config_json, inventory, location: file.location, folder: file.folder })
}
