//! The fetched inputs of a training, and the files that turn its weights into a complete model.

use std::path::{Path, PathBuf};

use inheritune_checkpoint::carried_files::{Fate, fates};
use inheritune_checkpoint::carried_settings;
use inheritune_checkpoint::config_json::{self, WeightsDtype};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::layer_map::LayerMap;
use inheritune_checkpoint::safetensors_header::Dtype;
use inheritune_checkpoint::tokenizer_files::{VocabularyFiles, is_tokenizer_file};
use inheritune_domain::spec::{Precision, TrainSpec};
use inheritune_runtime::worker::JobError;
use inheritune_store::artifacts::ArtifactWriter;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::file_error;

const CONFIG_FILE: &str = "config.json";
/// Records the origin of every tensor of a slice; training does not change it.
const RECORD_FILE: &str = "inheritance.json";

/// The inputs of a training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inputs {
    /// The spec of the job.
    pub spec: TrainSpec,
    /// The local folder of the checkpoint to start from.
    pub checkpoint: PathBuf,
    /// The local folder of the token set.
    pub tokens: PathBuf,
}

impl Inputs {
    /// Adds the files that belong to the trained weights to their artifact: the configuration, the
    /// tokenizer, and the files that are carried over.
    ///
    /// # Errors
    /// A file cannot be read, or the store rejects it.
    pub async fn put_model_files(&self, artifact: &mut ArtifactWriter) -> Result<(), JobError> {
        let path = self.checkpoint.join(CONFIG_FILE);
        let (json, config) = config_of_trained(&path, self.spec.training.precision).await?;
        artifact.put_bytes(CONFIG_FILE, format!("{json:#}\n").into()).await?;
        let carried = self.carried().await?;
        let settings = carried_settings::files(carried.iter().map(|(name, _)| name.as_str()));
        for (name, path) in &carried {
            let written = match settings.iter().find(|file| *file == name) {
                Some(file) => {
                    let content = tokio::fs::read(path).await.map_err(|error| file_error(path, error))?;
                    carried_settings::written(file, &content, &config)
                }
                None => None,
            };
            match written {
                Some((json, _)) => drop(artifact.put_bytes(name, format!("{json:#}\n").into()).await?),
                None => drop(artifact.put_file(name, path).await?),
            }
        }
        Ok(())
    }

    /// The names and paths of the files that are carried over: those of the checkpoint, plus the
    /// token set's tokenizer if the checkpoint has no supported one.
    async fn carried(&self) -> Result<Vec<(String, PathBuf)>, JobError> {
        let is_read = VocabularyFiles::find(|name| self.checkpoint.join(name).exists()).is_some();
        let mut theirs = carried_of(&self.tokens).await?;
        theirs.retain(|name| !is_read && is_tokenizer_file(name));
        let mut own = carried_of(&self.checkpoint).await?;
        own.retain(|name| theirs.is_empty() || !is_tokenizer_file(name));
        if self.checkpoint.join(RECORD_FILE).exists() {
            own.push(RECORD_FILE.to_owned());
        }
        let at = |dir: &Path, name: String| (name.clone(), dir.join(name));
        let own = own.into_iter().map(|name| at(&self.checkpoint, name));
        let carried = own.chain(theirs.into_iter().map(|name| at(&self.tokens, name))).collect();
        Ok(carried)
    }
}

/// Returns the names of the files in a fetched folder that are carried over along with its weights.
///
/// # Errors
/// The folder cannot be listed.
pub async fn carried_of(dir: &Path) -> Result<Vec<String>, JobError> {
    let mut files: Vec<(String, u64)> = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let failed = |error| file_error(&path, error);
        let mut entries = tokio::fs::read_dir(&path).await.map_err(failed)?;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = tokio::fs::metadata(entry.path()).await.map_err(failed)?;
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if metadata.is_dir() {
                folders.push(name);
            } else {
                files.push((name, metadata.len()));
            }
        }
    }
    let files = files.iter().map(|(name, size_bytes)| (name.as_str(), *size_bytes));
    let carried = fates(files, |_| false).into_iter().filter(|(_, fate)| *fate == Fate::Carried);
    Ok(carried.map(|(name, _)| name.to_owned()).collect())
}

/// Returns the `config.json` and the shape of the trained weights. Their dtype follows from the
/// training's precision, whatever the checkpoint's dtype was.
async fn config_of_trained(path: &Path, precision: Precision) -> Result<(Value, DecoderConfig), JobError> {
    let bad = |problem: String| JobError::Permanent(format!("{}: {problem}", path.display()));
    let bytes = tokio::fs::read(path).await.map_err(|error| file_error(path, error))?;
    let read = config_json::parse(&bytes).map_err(bad)?;
    let config = DecoderConfig::from_hf(&read.json).map_err(|error| bad(error.to_string()))?;
    let layers = LayerMap::identity(config.n_layers);
    let dtype = match precision {
        Precision::Fp32 | Precision::Bf16Mixed => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
    };
    let (json, _) = read.finite();
    let target = config_json::target(&json, &config, &layers, WeightsDtype::Trained(dtype));
    Ok((target.map_err(|error| bad(error.to_string()))?.0, config))
}

/// Reads a small JSON file of an input.
///
/// # Errors
/// The file is missing or not valid.
pub async fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, JobError> {
    let bytes = tokio::fs::read(path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => JobError::Permanent(format!("{} is missing", path.display())),
        _ => file_error(path, error),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| JobError::Permanent(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::carried_of;

    async fn of(files: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for name in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        carried_of(dir.path()).await.unwrap()
    }

    #[tokio::test]
    async fn c3_what_stands_beside_a_checkpoints_weights_goes_into_the_trained_model() {
        let files = [
            "LICENSE",
            "README.md",
            "additional_chat_templates/a.jinja",
            "config.json",
            "inheritance.json",
            "model.safetensors",
            "spiece.model",
            "tokenizer_config.json",
            "vocab.txt",
        ];
        let carried =
            ["LICENSE", "additional_chat_templates/a.jinja", "spiece.model", "tokenizer_config.json", "vocab.txt"];
        assert_eq!(of(&files).await, carried);
        assert_eq!(of(&["train.bin", "validation.bin", "tokens.json", "tokenizer.json"]).await, ["tokenizer.json"]);
    }
}
