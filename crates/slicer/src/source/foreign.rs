//! Checkpoints that are not in Hugging Face's layout: nanoGPT's and lit-gpt's.

use std::sync::Arc;

use inheritune_checkpoint::decoder_config::{ConfigError, DecoderConfig};
use inheritune_checkpoint::litgpt::{self, LITGPT_FILE, LITGPT_YAML_FILE};
use inheritune_checkpoint::nanogpt::NanoGpt;
use inheritune_checkpoint::torch_archive::StateDict;
use inheritune_domain::artifact::Location;
use inheritune_objects::Folder;

use super::{Checkpoint, WeightsSource, archive, small_file};
use crate::error::{BadCheckpoint, SlicerError};

/// Opens `ckpt.pt` or a similar file, which contains its own settings.
pub(super) async fn nanogpt(location: Location, folder: Arc<Folder>, name: &str) -> Result<Checkpoint, SlicerError> {
    let file = WeightsSource { location, folder, name: name.to_owned() };
    file.refuse_pointer().await?;
    let (model, tensors) = archive::read(&file, NanoGpt::parse, NanoGpt::state_dict).await?;
    let inventory = model.inventory(name, &tensors).map_err(|e| file.bad(e.into()))?;
    let WeightsSource { location, folder, .. } = file;
    Ok(Checkpoint { config_json: model.config_json(), inventory, location, folder, unwritable: Vec::new() })
}

/// Opens `lit_model.pth` and its settings file, JSON or YAML.
pub(super) async fn litgpt(
    location: Location,
    folder: Arc<Folder>,
    settings_file: &str,
) -> Result<Checkpoint, SlicerError> {
    let bytes = small_file(&location, &folder, settings_file).await?;
    let lit = match settings_file {
        LITGPT_YAML_FILE => std::str::from_utf8(&bytes).map_err(|error| error.to_string()).and_then(litgpt::yaml),
        _ => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
    };
    let json = |problem: String| BadCheckpoint::Json { file: settings_file.to_owned(), problem };
    let lit = lit.map_err(|problem| SlicerError::checkpoint(&location, json(problem)))?;
    let file = WeightsSource { location, folder, name: LITGPT_FILE.to_owned() };
    file.refuse_pointer().await?;
    let settings = |error: ConfigError| {
        let problem = match error {
            ConfigError::Key { key, problem } => format!("`{key}` {problem}"),
            ConfigError::UnknownFamily { .. } | ConfigError::NotAnObject { .. } => error.to_string(),
        };
        file.bad(json(problem))
    };
    let config_json = litgpt::config_json(&lit).map_err(settings)?;
    let config = DecoderConfig::from_hf(&config_json).map_err(settings)?;
    let (_, tensors) = archive::read(&file, StateDict::parse, |state_dict| state_dict).await?;
    let inventory = litgpt::inventory(config, LITGPT_FILE, &tensors).map_err(|e| file.bad(e.into()))?;
    let WeightsSource { location, folder, .. } = file;
    Ok(Checkpoint { config_json, inventory, location, folder, unwritable: Vec::new() })
}
