//! `model.safetensors.index.json` and `pytorch_model.bin.index.json`: the mapping from the tensors
//! of a sharded checkpoint to files. Only the file names are used. The header of a shard determines
//! which tensors it contains, because an index may belong to another version of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::safetensors_header::{MAX_TENSORS, check_name, shortened};

#[cfg(test)]
mod tests;

/// The name of the index in a checkpoint of safetensors files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The name of the index in a checkpoint of pickles.
pub const PICKLE_INDEX_FILE: &str = "pytorch_model.bin.index.json";
/// Maximum size of an index.
pub const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Maximum number of shards of a checkpoint.
pub const MAX_SHARDS: usize = 1024;

/// The format of a checkpoint's shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardFormat {
    /// `model-00001-of-00002.safetensors`.
    Safetensors,
    /// `pytorch_model-00001-of-00002.bin`.
    Pickle,
}

impl ShardFormat {
    /// Returns the name of the index.
    pub fn index_file(self) -> &'static str {
        match self {
            Self::Safetensors => INDEX_FILE,
            Self::Pickle => PICKLE_INDEX_FILE,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Safetensors => ".safetensors",
            Self::Pickle => ".bin",
        }
    }
}

/// A parsed index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Why an index cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The index is not the expected JSON.
    #[error("{index}: {problem}")]
    NotValid {
        /// The index.
        index: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The file of a tensor is not valid.
    #[error("{index}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The index.
        index: &'static str,
        /// The name of the tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl ShardIndex {
    /// Parses an index.
    ///
    /// # Errors
    /// [`IndexError`]: bad JSON, too many entries, or a file name that leaves the folder.
    pub fn parse(json: &[u8], format: ShardFormat) -> Result<Self, IndexError> {
        let (index, extension) = (format.index_file(), format.extension());
        let invalid = |problem: String| IndexError::NotValid { index, problem };
        #[derive(Deserialize)]
        #[serde(expecting = "an object with `weight_map`")]
        struct Raw {
            #[serde(deserialize_with = "unique_strings")]
            weight_map: BTreeMap<String, String>,
        }
        // serde_json does not validate UTF-8 in values that it skips.
        let json = std::str::from_utf8(json).map_err(|e| invalid(e.to_string()))?;
        let Raw { weight_map } = serde_json::from_str(json).map_err(|e| invalid(shortened(&e.to_string())))?;
        if weight_map.is_empty() {
            return Err(invalid("`weight_map` is empty".to_owned()));
        }
        for (name, file) in &weight_map {
            check_name(name).map_err(|e| invalid(e.to_string()))?;
            let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !plain || !file.ends_with(extension) || file.starts_with('.') {
                let why = if file.contains('/') {
                    "which is in another folder: all weight files must be in the checkpoint's folder".to_owned()
                } else {
                    format!("which is not a {extension} file name")
                };
                let problem = format!("is mapped to `{}`, {why}", shortened(file));
                return Err(IndexError::Tensor { index, tensor: name.clone(), problem });
            }
        }
        let parsed = Self { weight_map };
        let shards = parsed.files().len();
        if shards > MAX_SHARDS {
            return Err(invalid(format!("names {shards} shards; at most {MAX_SHARDS} are allowed")));
        }
        Ok(parsed)
    }

    /// Returns the shards, sorted and without duplicates.
    pub fn files(&self) -> Vec<&str> {
        let files: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        files.into_iter().collect()
    }
}

fn unique_strings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct MapVisitor;

    impl<'de> Visitor<'de> for MapVisitor {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of file names")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, file)) = map.next_entry::<String, String>()? {
                if all.len() == MAX_TENSORS {
                    return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                }
                if all.insert(name.clone(), file).is_some() {
                    return Err(A::Error::custom(format!("tensor `{}` occurs twice", shortened(&name))));
                }
            }
            Ok(all)
        }
    }

    deserializer.deserialize_map(MapVisitor)
}
