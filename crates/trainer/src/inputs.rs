//! What a training starts from, fetched: and the files that make its weights a model again.

use std::path::{Path, PathBuf};

use inheritune_domain::checkpoint::config_json::{self, WeightsDtype};
use inheritune_domain::checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::checkpoint::layer_map::LayerMap;
use inheritune_domain::checkpoint::safetensors_header::Dtype;
use inheritune_domain::checkpoint::tokenizer_files::{TOKENIZER_FILES, VocabularyFiles};
use inheritune_domain::spec::{Precision, TrainSpec};
use inheritune_runtime::worker::JobError;
use inheritune_store::artifacts::ArtifactWriter;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::file_error;

const CONFIG_FILE: &str = "config.json";
/// Files of a checkpoint that training does not change, besides its tokenizer.
const CARRIED_FILES: [&str; 2] = ["generation_config.json", "inheritance.json"];

/// A training's inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inputs {
    /// What to do.
    pub spec: TrainSpec,
    /// The folder of the checkpoint to start from.
    pub checkpoint: PathBuf,
    /// The token set's folder.
    pub tokens: PathBuf,
}

impl Inputs {
    /// Puts what belongs to the trained weights into their artifact: the shape, the tokenizer, and what is carried over.
    ///
    /// # Errors
    /// A file cannot be read, or the store does not take it.
    pub async fn put_model_files(&self, artifact: &mut ArtifactWriter) -> Result<(), JobError> {
        let config = config_of_trained(&self.checkpoint.join(CONFIG_FILE), self.spec.training.precision).await?;
        artifact.put_bytes(CONFIG_FILE, format!("{config:#}\n").into()).await?;
        let tokenizer = if has_tokenizer(&self.checkpoint) { &self.checkpoint } else { &self.tokens };
        let carried = TOKENIZER_FILES.iter().map(|name| (tokenizer, name));
        for (dir, name) in carried.chain(CARRIED_FILES.iter().map(|name| (&self.checkpoint, name))) {
            let path = dir.join(name);
            if path.exists() {
                artifact.put_file(name, &path).await?;
            }
        }
        Ok(())
    }
}

fn has_tokenizer(dir: &Path) -> bool {
    VocabularyFiles::find(|name| dir.join(name).exists()).is_some()
}

/// The `config.json` of the trained weights, which are of the training's type, whatever the checkpoint's were.
async fn config_of_trained(path: &Path, precision: Precision) -> Result<Value, JobError> {
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
    Ok(target.map_err(|error| bad(error.to_string()))?.0)
}

/// A small JSON file of an input.
///
/// # Errors
/// It is missing, or not what it should be.
pub async fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, JobError> {
    let bytes = tokio::fs::read(path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => JobError::Permanent(format!("{} is missing", path.display())),
        _ => file_error(path, error),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| JobError::Permanent(format!("{}: {error}", path.display())))
}
