//! nanoGPT's `ckpt.pt`: GPT-2 with settings, weights and the optimizer state in one pickle.
//!
//! Source: `train.py` and `model.py` of karpathy/nanoGPT. It differs from Hugging Face's GPT-2 in
//! three ways. Names may start with `_orig_mod.` (torch.compile). Projections are `nn.Linear`,
//! [out, in], instead of Hugging Face's Conv1D, [in, out], so they are transposed while they are
//! copied. With `bias = False` there are no biases, as in the paper's variant of the family (ADR
//! 5). nanoGPT's GELU has been exact since 2023 and was the tanh form before. Hugging Face's config
//! specifies the tanh form, and the two differ by less than 0.001.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::decoder_config::{DecoderConfig, NameInFile};
use super::left_out::LeftOut;
use super::pickle::{Pickle, Value};
use super::safetensors_header::{HeaderTensor, shortened};
use super::slice_plan::{Inventory, PlanError, Reading, SourceTensor};
use super::tensor_names::TensorNames;
use super::torch_archive::{ArchiveError, StateDict};

#[cfg(test)]
mod tests;

/// The name of the file.
pub const NANOGPT_FILE: &str = "ckpt.pt";

/// Message for `model_args` with `dim`, which belong to llama2.c. Its training script is derived
/// from nanoGPT's.
const LLAMA2_C: &str = "is a llama2.c checkpoint, which is not supported: convert it to a Hugging Face folder with llama2.c's \
     `python export.py FOLDER --checkpoint FILE --version -1`, and specify that folder";
/// The names of the settings in nanoGPT and in Hugging Face's config.
const KEYS: [(&str, &str); 5] = [
    ("n_layer", "n_layer"),
    ("n_head", "n_head"),
    ("n_embd", "n_embd"),
    ("block_size", "n_positions"),
    ("vocab_size", "vocab_size"),
];
const PROJECTIONS: [&str; 4] = [".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"];

/// A `ckpt.pt`, without the values of its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct NanoGpt {
    config: DecoderConfig,
    state_dict: StateDict,
}

impl NanoGpt {
    /// Parses the pickle.
    ///
    /// # Errors
    /// [`ArchiveError`]: the pickle is not valid, a setting is missing or would change what the
    /// model computes, or [`StateDict::of`] rejects the tensors.
    pub fn parse(pickle: &[u8]) -> Result<Self, ArchiveError> {
        let pickle = Pickle::parse(pickle)?;
        let not = |problem: String| ArchiveError::NotCheckpoint { problem };
        let entry = |name: &str| {
            let entries = pickle.dict(pickle.root())?;
            entries.iter().find(|(key, _)| *key == Value::Text(name)).map(|(_, value)| *value)
        };
        let (Some(model), Some(args)) = (entry("model"), entry("model_args")) else {
            return Err(not("a nanoGPT checkpoint has `model` and `model_args`".to_owned()));
        };
        let Some(args) = pickle.dict(args) else {
            return Err(not(format!("`model_args` is {}, not a dict", pickle.kind(args))));
        };
        if args.iter().any(|(key, _)| *key == Value::Text("dim")) {
            return Err(ArchiveError::OtherProgram { problem: LLAMA2_C });
        }
        let mut keys = Map::from_iter([("model_type".to_owned(), Json::from("gpt2"))]);
        for (key, value) in args {
            let known = KEYS.iter().find(|(theirs, _)| *key == Value::Text(theirs)).map(|(_, ours)| *ours);
            match (key, known, value) {
                (_, Some(ours), Value::Int(number)) => drop(keys.insert(ours.to_owned(), (*number).into())),
                (Value::Text(key @ ("bias" | "scale_attn_by_inverse_layer_idx")), _, Value::Bool(setting)) => {
                    keys.insert((*key).to_owned(), (*setting).into());
                }
                // Only used in training.
                (Value::Text("dropout"), ..) => {}
                (Value::Text(key), ..) => {
                    let (key, kind) = (shortened(key), pickle.kind(*value));
                    return Err(ArchiveError::Settings {
                        problem: format!(
                            "its model_args have `{key}`, {kind}, which nanoGPT does not have: its effect is unknown"
                        ),
                    });
                }
                _ => return Err(not("its model_args have a key that is not a string".to_owned())),
            }
        }
        let config = DecoderConfig::from_hf(&Json::Object(keys));
        let config = config.map_err(|e| ArchiveError::Settings {
            problem: format!("its model_args, under Hugging Face's names, are not valid: {e}"),
        })?;
        Ok(Self { config, state_dict: StateDict::of(&pickle, model)? })
    }

    /// Returns a Hugging Face `config.json`. The special token ids are null, because nanoGPT does
    /// not record its tokenizer.
    pub fn config_json(&self) -> Json {
        let mut json = self.config.to_hf();
        if let Some(object) = json.as_object_mut() {
            object.insert("bos_token_id".to_owned(), Json::Null);
            object.insert("eos_token_id".to_owned(), Json::Null);
        }
        json
    }

    /// Returns the tensors.
    pub fn state_dict(&self) -> &StateDict {
        &self.state_dict
    }

    /// Returns the tensors as those of a Hugging Face GPT-2. `tensors` are the result of
    /// [`StateDict::located`] for the file `file`.
    ///
    /// # Errors
    /// Same as [`Inventory::new`].
    pub fn inventory(&self, file: &str, tensors: &[HeaderTensor]) -> Result<Inventory, PlanError> {
        let specs = self.config.tensors();
        let shapes: BTreeMap<&str, &[u64]> = specs.iter().map(|s| (s.name.as_str(), s.shape.as_slice())).collect();
        let names = TensorNames::new(&self.config, tensors.iter().map(|tensor| tensor.name.as_str()));
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let error = |problem: String| {
                Err(PlanError::Tensor { file: file.to_owned(), tensor: tensor.name.clone(), problem })
            };
            let canonical = match names.meaning(&tensor.name) {
                NameInFile::Tensor(canonical) => canonical,
                NameInFile::NotNeeded(why) => {
                    left_out.push(LeftOut::tensor(&tensor.name, why));
                    continue;
                }
                NameInFile::Unknown => return error("is unknown in nanoGPT's GPT-2".to_owned()),
            };
            let mut source = SourceTensor::whole(file, tensor);
            if PROJECTIONS.iter().any(|end| canonical.ends_with(end)) {
                let expected = shapes.get(canonical.as_str()).map(|shape| shape.iter().rev().copied().collect());
                if expected.as_ref() != Some(&source.shape) {
                    return error(format!("has shape {:?}, not {:?}", source.shape, expected.unwrap_or_default()));
                }
                source.shape.reverse();
                source.reading = Reading::Transposed;
            }
            found.push((canonical, source));
        }
        Inventory::from_tensors(self.config.clone(), found, left_out)
    }
}
