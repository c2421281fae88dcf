//! `pytorch_model.bin`: a zip archive with a pickle and the data that it describes.
//!
//! ```text
//! NAME/data.pkl     the pickle: a dict of tensors
//! NAME/byteorder    `little`; older writers have none
//! NAME/data/KEY     one storage: the numbers of one tensor, or of several that share them
//! ```
//! [`TorchArchive`] has the entries and [`StateDict`] the tensors. [`StateDict::located`] combines
//! both once the local headers of the storages have been read. None of them contains tensor data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::other_content::other_content;
use super::pickle::{Pickle, PickleError, PickledTensor, Storage, Value};
use super::safetensors_header::{Dtype, HeaderTensor, MAX_TENSORS, check_name, shortened};
use super::zip_directory::{ZipDirectory, ZipEntry, ZipError};

#[cfg(test)]
mod tests;

/// The file name of a checkpoint's weights in a single file.
pub const SINGLE_PICKLE_FILE: &str = "pytorch_model.bin";
/// Maximum size of an entry that consists of one word.
pub const MAX_WORD_BYTES: u64 = 64;

const PICKLE: &str = "data.pkl";
const BYTE_ORDER: &str = "byteorder";
/// Keys under which trainers store the weights in a checkpoint that contains more.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model_state", "model", "module"];
/// Module state that is not a weight. Often `None`.
const EXTRA_STATE: &str = "_extra_state";
/// An entry that only TorchScript programs have.
const PROGRAM: &str = "constants.pkl";

/// The entries of an archive written by `torch.save`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchArchive {
    directory: ZipDirectory,
    /// The common prefix of all names.
    prefix: String,
    pickle: ZipEntry,
}

/// The tensors of a pickle, in the pickle's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDict {
    tensors: Vec<StoredTensor>,
}

/// A tensor, without the position of its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StoredTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    storage: String,
    /// Size of the whole storage, in bytes.
    storage_bytes: u64,
    /// The tensor's byte range in the storage.
    bytes: Range<u64>,
}

/// Why a file is not a usable archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The file was written before PyTorch 1.6.
    #[error(
        "is a pickle of PyTorch before 1.6, which is not supported: convert it with `torch.save(torch.load(FILE, \
         map_location=\"cpu\", weights_only=True), FILE)` in a current PyTorch"
    )]
    Legacy,
    /// The zip archive is not valid.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// The pickle is not valid.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The archive does not contain a checkpoint.
    #[error("is not a checkpoint that torch.save wrote: {problem}")]
    NotCheckpoint {
        /// What is wrong.
        problem: String,
    },
    /// The checkpoint's settings cannot be used.
    #[error("{problem}")]
    Settings {
        /// What is wrong.
        problem: String,
    },
    /// The file is of another kind.
    #[error("{content}")]
    OtherContent {
        /// What it is, and what to do.
        content: &'static str,
    },
    /// The checkpoint belongs to an unsupported program.
    #[error("{problem}")]
    OtherProgram {
        /// What it is, and what to do.
        problem: &'static str,
    },
    /// A tensor is not valid.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// The name of the tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl TorchArchive {
    /// Rejects a file that is not an archive, from its first bytes. Files from before PyTorch 1.6
    /// are pickles.
    ///
    /// # Errors
    /// [`ArchiveError::Legacy`] or [`ArchiveError::OtherContent`].
    pub fn check_start(first: &[u8]) -> Result<(), ArchiveError> {
        // PROTO, which every pickle starts with since protocol 2. A zip archive starts with `PK`.
        match first {
            [0x80, ..] => Err(ArchiveError::Legacy),
            [b'P', b'K', ..] => Ok(()),
            _ => other_content(first).map_or(Ok(()), |content| Err(ArchiveError::OtherContent { content })),
        }
    }

    /// Finds the pickle among the entries.
    ///
    /// # Errors
    /// There is not exactly one pickle, or the archive contains a TorchScript program.
    pub fn new(directory: ZipDirectory) -> Result<Self, ArchiveError> {
        let not = |problem: &str| ArchiveError::NotCheckpoint { problem: problem.to_owned() };
        let prefix_of = |entry: &ZipEntry| {
            let prefix = entry.name.strip_suffix(PICKLE)?;
            prefix.strip_suffix('/').filter(|top| !top.contains('/')).map(|_| prefix.to_owned())
        };
        let mut pickles = directory.entries().iter().filter_map(|entry| Some((prefix_of(entry)?, entry.clone())));
        let (Some((prefix, pickle)), None) = (pickles.next(), pickles.next()) else {
            return Err(not("it does not contain exactly one data.pkl"));
        };
        if directory.entry(&format!("{prefix}{PROGRAM}")).is_some() {
            return Err(not("it contains a TorchScript program; save the model's state_dict instead"));
        }
        Ok(Self { directory, prefix, pickle })
    }

    /// Returns the entry of the pickle.
    pub fn pickle(&self) -> &ZipEntry {
        &self.pickle
    }

    /// Returns the entry with the byte order. Older writers, all of them little-endian in practice,
    /// do not write it.
    pub fn byte_order(&self) -> Option<&ZipEntry> {
        self.directory.entry(&format!("{}{BYTE_ORDER}", self.prefix))
    }

    /// Checks the content of the byte order entry.
    ///
    /// # Errors
    /// The byte order is not `little`.
    pub fn check_byte_order(word: &[u8]) -> Result<(), ArchiveError> {
        if word == b"little" {
            return Ok(());
        }
        let word = shortened(&String::from_utf8_lossy(word));
        Err(ArchiveError::NotCheckpoint { problem: format!("its byte order is `{word}`; only `little` is supported") })
    }

    /// Returns the entries of the storages that `tensors` use, by key and without duplicates.
    ///
    /// # Errors
    /// A storage does not exist, or its size differs from what its tensors require.
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
                    format!("needs a storage of {says} bytes, but its entry has {has}"),
                ));
            }
            found.entry(tensor.storage.clone()).or_insert_with(|| (*entry).clone());
        }
        Ok(found.into_iter().collect())
    }
}

impl StateDict {
    /// Parses the tensors of a checkpoint whose pickle is a dict of tensors, or contains such a
    /// dict under one of the names that trainers use.
    ///
    /// # Errors
    /// [`ArchiveError`]: the pickle is not valid, or a value is not a tensor or not stored row by
    /// row. The error names the value.
    pub fn parse(pickle: &[u8]) -> Result<Self, ArchiveError> {
        let pickle = Pickle::parse(pickle)?;
        Self::of(&pickle, wrapped(&pickle)?)
    }

    /// Returns the tensors of the dict `value` of a pickle.
    ///
    /// # Errors
    /// Same as [`StateDict::parse`].
    pub fn of(pickle: &Pickle<'_>, value: Value<'_>) -> Result<Self, ArchiveError> {
        let Some(entries) = pickle.dict(value) else {
            let problem = format!("expected a dict of tensors, found {}", pickle.kind(value));
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
                // A trainer's counter, for example. If a learned tensor is not a tensor, it is
                // reported as missing later.
                if matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Text(_)) {
                    continue;
                }
                return Err(tensor_error(name, format!("is {}, not a tensor", pickle.kind(*value))));
            };
            if !names.insert(*name) {
                return Err(tensor_error(name, "occurs twice".to_owned()));
            }
            tensors.push(stored(name, tensor)?);
        }
        Ok(Self { tensors })
    }

    /// Returns the tensors with their positions in the file, given the byte ranges of their
    /// storages, by key.
    ///
    /// # Errors
    /// `storages` lacks a storage.
    pub fn located(&self, storages: &BTreeMap<String, Range<u64>>) -> Result<Vec<HeaderTensor>, ArchiveError> {
        let located = |tensor: &StoredTensor| {
            let storage = storages.get(&tensor.storage);
            let storage = storage.filter(|range| range.end.checked_sub(range.start) == Some(tensor.storage_bytes));
            let Some(storage) = storage else {
                return Err(tensor_error(
                    &tensor.name,
                    format!("refers to storage `{}`, which does not exist", tensor.storage),
                ));
            };
            // `stored` has checked that the range is within the storage, which is within the file.
            let bytes = storage.start + tensor.bytes.start..storage.start + tensor.bytes.end;
            let StoredTensor { name, dtype, shape, .. } = tensor.clone();
            Ok(HeaderTensor { name, dtype, shape, bytes })
        };
        self.tensors.iter().map(located).collect()
    }
}

/// Returns the dict of tensors: the root, or, if the root has no tensors of its own, the only dict
/// of tensors under a known key.
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
                "it contains tensors under both `{}` and `{}`: save the intended ones separately with `torch.save`",
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
    // Less than 2^64 if the tensor is within its storage, and the storage within a file.
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

/// Returns whether the tensor is row-major without gaps. The stride of a dimension of size 1 is
/// irrelevant.
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
