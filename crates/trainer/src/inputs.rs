//! What a training starts from, fetched: and the files that make its weights a model again.

use std::path::{Path, PathBuf};

use inheritune_domain::checkpoint::tokenizer_files::{TOKENIZER_FILES, VocabularyFiles};
use inheritune_domain::spec::{Precision, TrainSpec};
use inheritune_runtime::worker::JobError;
use inheritune_store::artifacts::ArtifactWriter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
        let config =
            config_of_trained(read_json(&self.checkpoint.join(CONFIG_FILE)).await?, self.spec.training.precision);
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

/// The trained weights are of the training's type, whatever the checkpoint's were.
fn config_of_trained(mut config: Value, precision: Precision) -> Value {
    // transformers calls it `dtype` from version 5 on, and reads both.
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(match precision {
        Precision::Fp32 | Precision::Bf16Mixed => "float32",
        Precision::Bf16 => "bfloat16",
    });
    config
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
