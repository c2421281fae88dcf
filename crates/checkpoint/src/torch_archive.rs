//! `pytorch_model.bin`: a zip archive of a pickle and the numbers that it describes.
//!
//! ```text
//! NAME/data.pkl     the pickle: a dict of tensors
//! NAME/byteorder    `little`; older writers have none
//! NAME/data/KEY     one storage: the numbers of one tensor, or of several that share them
//! ```
//! [`TorchArchive`] knows the entries, [`StateDict`] the tensors; [`StateDict::located`] puts both together once the
//! local headers of the storages are read. None of it holds a number of a tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::other_content::other_content;
use super::pickle::{Pickle, PickleError, PickledTensor, Storage, Value};
use super::safetensors_header::{Dtype, HeaderTensor, MAX_TENSORS, check_name, shortened};
use super::zip_directory::{ZipDirectory, ZipEntry, ZipError};

#[cfg(test)]
mod tests;

/// The weights of a checkpoint in one file.
pub const SINGLE_PICKLE_FILE: &str = "pytorch_model.bin";
/// Longest entry that only says a word.
pub const MAX_WORD_BYTES: u64 = 64;

const PICKLE: &str = "data.pkl";
const BYTE_ORDER: &str = "byteorder";
/// Where trainers put the weights in a checkpoint that holds more.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model_state", "model", "module"];
/// What modules keep that is no weight; often `None`.
const EXTRA_STATE: &str = "_extra_state";
/// Only a TorchScript program has it.
const PROGRAM: &str = "constants.pkl";

/// The entries of an archive that `torch.save` wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchArchive {
    directory: ZipDirectory,
    /// What every name starts with.
    prefix: String,
    pickle: ZipEntry,
}

/// The tensors of a pickle, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDict {
    tensors: Vec<StoredTensor>,
}

/// One tensor, without where its storage is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StoredTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    storage: String,
    /// Bytes of the storage, all of it.
    storage_bytes: u64,
    /// Its part of the storage.
    bytes: Range<u64>,
}

/// Why a file is not an archive that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// Written before PyTorch 1.6.
    #[error(
        "is a pickle of PyTorch before 1.6, which is not read: convert it with `torch.save(torch.load(FILE, \
         map_location=\"cpu\", weights_only=True), FILE)` in a current PyTorch"
    )]
    Legacy,
    /// Its zip archive.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// Its pickle.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// An archive, but not one of a checkpoint.
    #[error("is not a checkpoint that torch.save wrote: {problem}")]
    NotCheckpoint {
        /// What is wrong.
        problem: String,
    },
    /// Settings in it that cannot be used.
    #[error("{problem}")]
    Settings {
        /// What is wrong.
        problem: String,
    },
    /// Another kind of file.
    #[error("{content}")]
    OtherContent {
        /// What it is, and what to do.
        content: &'static str,
    },
    /// A checkpoint of a program that is not read.
    #[error("{problem}")]
    OtherProgram {
        /// What it is, and what to do.
        problem: &'static str,
    },
    /// One tensor cannot be accepted.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl TorchArchive {
    /// Tells a file that is no archive by its first bytes; those of before PyTorch 1.6 are pickles.
    ///
    /// # Errors
    /// [`ArchiveError::Legacy`] or [`ArchiveError::OtherContent`].
    pub fn check_start(first: &[u8]) -> Result<(), ArchiveError> {
        // PROTO, which every pickle since protocol 2 starts with. A zip archive starts with `PK`.
        match first {
            [0x80, ..] => Err(ArchiveError::Legacy),
            [b'P', b'K', ..] => Ok(()),
            _ => other_content(first).map_or(Ok(()), |content| Err(ArchiveError::OtherContent { content })),
        }
    }

    /// Finds the pickle among the entries.
    ///
    /// # Errors
    /// There is none or more than one, or the archive holds a TorchScript program.
    pub fn new(directory: ZipDirectory) -> Result<Self, ArchiveError> {
        let not = |problem: &str| ArchiveError::NotCheckpoint { problem: problem.to_owned() };
        let prefix_of = |entry: &ZipEntry| {
            let prefix = entry.name.strip_suffix(PICKLE)?;
            prefix.strip_suffix('/').filter(|top| !top.contains('/')).map(|_| prefix.to_owned())
        };
        let mut pickles = directory.entries().iter().filter_map(|entry| Some((prefix_of(entry)?, entry.clone())));
        let (Some((prefix, pickle)), None) = (pickles.next(), pickles.next()) else {
            return Err(not("it does not hold exactly one data.pkl"));
        };
        if directory.entry(&format!("{prefix}{PROGRAM}")).is_some() {
            return Err(not("it holds a TorchScript program; save the model's state_dict instead"));
        }
        Ok(Self { directory, prefix, pickle })
    }

    /// The pickle.
    pub fn pickle(&self) -> &ZipEntry {
        &self.pickle
    }

    /// The entry that tells the order of bytes; older writers, all little-endian in practice, have none.
    pub fn byte_order(&self) -> Option<&ZipEntry> {
        self.directory.entry(&format!("{}{BYTE_ORDER}", self.prefix))
    }

    /// Holds what that entry says against what is read.
    ///
    /// # Errors
    /// Anything but `little`.
    pub fn check_byte_order(word: &[u8]) -> Result<(), ArchiveError> {
        if word == b"little" {
            return Ok(());
        }
        let word = shortened(&String::from_utf8_lossy(word));
        Err(ArchiveError::NotCheckpoint { problem: format!("its byte order is `{word}`; only `little` is read") })
    }

    /// The entries of the storages that `tensors` use, by key, each once.
    ///
    /// # Errors
    /// A storage that is not there or has another size than its tensors say.
    pub fn storages(&self, tensors: &StateDict) -> Result<Vec<(String, ZipEntry)>, ArchiveError> {
        let by_name: BTreeMap<&str, &ZipEntry> =
            self.directory.entries().iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let mut found = BTreeMap::new();
        for tensor in &tensors.tensors {
            let name = format!("{}data/{}", self.prefix, tensor.storage);
            let Some(entry) = by_name.get(name.as_str()) else {
                return Err(tensor_error(&tensor.name, format!("is in entry `{name}`, which is not in the archive")));
            };
            if entry.size_bytes != tensor.storage_bytes {
                let (says, has) = (tensor.storage_bytes, entry.size_bytes);
                return Err(tensor_error(
                    &tensor.name,
                    format!("needs a storage of {says} bytes; its entry has {has}"),
                ));
            }
            found.entry(tensor.storage.clone()).or_insert_with(|| (*entry).clone());
        }
        Ok(found.into_iter().collect())
    }
}

impl StateDict {
    /// The tensors of a checkpoint whose pickle is a dict of nothing else, or has such a dict beside other things under
    /// one of the names that trainers give it.
    ///
    /// # Errors
    /// [`ArchiveError`]: the pickle's own, or a value that is no tensor or not stored row by row, named.
    pub fn parse(pickle: &[u8]) -> Result<Self, ArchiveError> {
        let pickle = Pickle::parse(pickle)?;
        Self::of(&pickle, wrapped(&pickle)?)
    }

    /// The tensors of the dict `value` of a pickle.
    ///
    /// # Errors
    /// As [`StateDict::parse`].
    pub fn of(pickle: &Pickle<'_>, value: Value<'_>) -> Result<Self, ArchiveError> {
        let Some(entries) = pickle.dict(value) else {
            let problem = format!("a dict of tensors is expected where it has {}", pickle.kind(value));
            return Err(ArchiveError::NotCheckpoint { problem });
        };
        if entries.len() > MAX_TENSORS {
            return Err(ArchiveError::NotCheckpoint { problem: format!("it has more than {MAX_TENSORS} tensors") });
        }
        let (mut tensors, mut names) = (Vec::with_capacity(entries.len()), BTreeSet::new());
        for (key, value) in entries {
            let Value::Text(name) = key else {
                let problem = format!("a tensor's name is {}", pickle.kind(*key));
                return Err(ArchiveError::NotCheckpoint { problem });
            };
            check_name(name).map_err(|e| ArchiveError::NotCheckpoint { problem: e.to_string() })?;
            if name.rsplit('.').next() == Some(EXTRA_STATE) && pickle.tensor(*value).is_none() {
                continue;
            }
            let Some(tensor) = pickle.tensor(*value) else {
                // A counter of a trainer's; a learned tensor that is none is found missing.
                if matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Text(_)) {
                    continue;
                }
                return Err(tensor_error(name, format!("is {}, not a tensor", pickle.kind(*value))));
            };
            if !names.insert(*name) {
                return Err(tensor_error(name, "is there twice".to_owned()));
            }
            tensors.push(stored(name, tensor)?);
        }
        Ok(Self { tensors })
    }

    /// The tensors where they are in the file, from where their storages are, by key.
    ///
    /// # Errors
    /// A storage that `storages` does not have.
    pub fn located(&self, storages: &BTreeMap<String, Range<u64>>) -> Result<Vec<HeaderTensor>, ArchiveError> {
        let located = |tensor: &StoredTensor| {
            let storage = storages.get(&tensor.storage);
            let storage = storage.filter(|range| range.end.checked_sub(range.start) == Some(tensor.storage_bytes));
            let Some(storage) = storage else {
                return Err(tensor_error(&tensor.name, format!("has a storage `{}` that is nowhere", tensor.storage)));
            };
            // Inside the storage by `stored`, which is inside the file.
            let bytes = storage.start + tensor.bytes.start..storage.start + tensor.bytes.end;
            let StoredTensor { name, dtype, shape, .. } = tensor.clone();
            Ok(HeaderTensor { name, dtype, shape, bytes })
        };
        self.tensors.iter().map(located).collect()
    }
}

/// The dict of tensors: the root, or the one dict of tensors under a known name in a root without tensors of its own.
fn wrapped<'a>(pickle: &Pickle<'a>) -> Result<Value<'a>, ArchiveError> {
    let root = pickle.root();
    let entries = pickle.dict(root).unwrap_or_default();
    if entries.iter().any(|(_, value)| pickle.tensor(*value).is_some()) {
        return Ok(root);
    }
    let is_wrapper = |key: &Value<'_>| WRAPPERS.iter().any(|name| *key == Value::Text(name));
    let is_state_dict = |value: Value<'a>| {
        pickle.dict(value).is_some_and(|dict| dict.iter().any(|(_, value)| pickle.tensor(*value).is_some()))
    };
    let mut found = entries.iter().filter(|(key, value)| is_wrapper(key) && is_state_dict(*value));
    match (found.next(), found.next()) {
        (None, _) => Ok(root),
        (Some((_, one)), None) => Ok(*one),
        (Some((first, _)), Some((second, _))) => {
            let name = |key: &Value<'_>| if let Value::Text(name) = key { (*name).to_owned() } else { String::new() };
            let problem = format!(
                "it holds tensors under `{}` and under `{}`: save the one that is meant, with `torch.save`, by itself",
                name(first),
                name(second)
            );
            Err(ArchiveError::NotCheckpoint { problem })
        }
    }
}

fn stored(name: &str, tensor: &PickledTensor<'_>) -> Result<StoredTensor, ArchiveError> {
    let PickledTensor { storage: Storage { dtype, key, numbers }, offset, shape, strides } = tensor;
    if !is_contiguous(shape, strides) {
        let problem = format!(
            "has strides {strides:?} for shape {shape:?}: it is not stored row by row. Save it with \
             `tensor.contiguous()`"
        );
        return Err(tensor_error(name, problem));
    }
    let size = dtype.size_bytes();
    // Below 2^64 where the tensor is inside its storage, and its storage in a file.
    let within = || {
        let start = offset.checked_mul(size)?;
        let length = shape.iter().try_fold(size, |bytes, dimension| bytes.checked_mul(*dimension))?;
        let end = start.checked_add(length)?;
        let storage_bytes = numbers.checked_mul(size)?;
        (end <= storage_bytes).then_some((start..end, storage_bytes))
    };
    let Some((bytes, storage_bytes)) = within() else {
        return Err(tensor_error(name, format!("of shape {shape:?} is larger than its storage")));
    };
    Ok(StoredTensor {
        name: name.to_owned(),
        dtype: *dtype,
        shape: shape.clone(),
        storage: (*key).to_owned(),
        storage_bytes,
        bytes,
    })
}

/// Row-major without gaps; the stride of a dimension of 1 says nothing.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = Some(1_u64);
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || expected == Some(*stride);
        expected = expected.and_then(|expected| expected.checked_mul(*size));
        fits
    })
}

fn tensor_error(name: &str, problem: String) -> ArchiveError {
    ArchiveError::Tensor { tensor: shortened(name), problem }
}
