//! Reads and writes the tensors of a checkpoint as safetensors.
//!
//! Reads a single `model.safetensors`, or the shards in `model.safetensors.index.json`; F32, F16
//! and BF16 become fp32. Reading is strict: every tensor of the model must exist in its shape, and
//! no others.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use inheritune_checkpoint::decoder_config::{DecoderConfig, NameInFile};
use inheritune_checkpoint::safetensors_header::{self as header, HeaderError, HeaderTensor, SafetensorsHeader};
use inheritune_checkpoint::shard_index::{INDEX_FILE, IndexError, MAX_INDEX_BYTES, ShardFormat, ShardIndex};
use inheritune_checkpoint::tensor_names::TensorNames;
use safetensors::tensor::{Dtype, SafeTensorError, View};
use tch::{Device, Kind, Tensor};

use crate::decoder::Parameter;
use crate::error::LmError;
use crate::files::{self, Mapped};

/// The file of a checkpoint that is not sharded.
pub(crate) use inheritune_checkpoint::safetensors_header::SINGLE_FILE;

/// Reads every parameter of a model of shape `config` from `dir`, in the order of
/// `config.tensors()`. Tied tensors are returned once.
pub(crate) fn read(dir: &Path, config: &DecoderConfig, device: Device) -> Result<Vec<Parameter>, LmError> {
    let source = Source::open(dir)?;
    let mut found = read_files(&source, config)?;
    let mut parameters = Vec::new();
    for spec in config.tensors() {
        match (found.remove(&spec.name), &spec.tied_to) {
            (Some(own), None) => {
                let tensor = own.f_to_device(device)?.f_set_requires_grad(true)?;
                parameters.push(Parameter { name: spec.name, tensor });
            }
            (None, None) => return Err(LmError::tensor(&source.path, &spec.name, "is missing")),
            (None, Some(_)) => {}
            (Some(own), Some(tied_to)) => check_tied(&source.path, &spec.name, &own, (tied_to, &parameters))?,
        }
    }
    Ok(parameters)
}

/// Checks that a stored copy of a tied tensor equals the original.
fn check_tied(
    path: &Path,
    name: &str,
    own: &Tensor,
    (tied_to, parameters): (&str, &[Parameter]),
) -> Result<(), LmError> {
    let same = match parameters.iter().find(|parameter| parameter.name == tied_to) {
        Some(parameter) => parameter.tensor.f_detach()?.f_to_device(Device::Cpu)?.f_equal(own)?,
        None => false,
    };
    if same {
        return Ok(());
    }
    Err(LmError::tensor(path, name, format!("differs from `{tied_to}`, which config.json ties it to")))
}

/// The files of a checkpoint, with checked headers.
struct Source {
    /// The single file or the index.
    path: PathBuf,
    files: Vec<TensorFile>,
}

impl Source {
    fn open(dir: &Path) -> Result<Self, LmError> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            return Ok(Self { files: vec![TensorFile::open(&single)?], path: single });
        }
        let path = dir.join(INDEX_FILE);
        if !path.exists() {
            return Err(LmError::file(dir, format!("contains neither {SINGLE_FILE} nor {INDEX_FILE}")));
        }
        let bad = |error| match error {
            IndexError::NotValid { problem, .. } => LmError::file(&path, problem),
            IndexError::Tensor { tensor, problem, .. } => LmError::tensor(&path, &tensor, problem),
        };
        let index = ShardIndex::parse(&files::read(&path, MAX_INDEX_BYTES)?, ShardFormat::Safetensors).map_err(bad)?;
        // The shards' own headers count: an index may name tensors that do not exist.
        let files =
            index.files().into_iter().map(|name| TensorFile::open(&dir.join(name))).collect::<Result<_, _>>()?;
        Ok(Self { path, files })
    }
}

/// Every tensor of the files under its canonical name, in fp32 on the CPU.
fn read_files(source: &Source, config: &DecoderConfig) -> Result<HashMap<String, Tensor>, LmError> {
    let shapes: HashMap<String, Vec<u64>> = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    let all = source.files.iter().flat_map(|file| file.header.tensors().iter().map(|tensor| tensor.name.as_str()));
    let names = TensorNames::new(config, all);
    let mut found = HashMap::new();
    for file in &source.files {
        for entry in file.header.tensors() {
            let bad = |problem: String| Err(LmError::tensor(&file.path, &entry.name, problem));
            let canonical = match names.meaning(&entry.name) {
                NameInFile::Tensor(canonical) => Some(canonical),
                NameInFile::NotNeeded(_) => continue,
                NameInFile::Unknown => None,
            };
            // A name can have the right form without belonging to a tensor: `h.01.ln_1.bias`.
            let Some((canonical, wanted)) = canonical.and_then(|name| shapes.get(&name).map(|shape| (name, shape)))
            else {
                return bad(format!("is not part of a {} model of {} layers", config.family.as_str(), config.n_layers));
            };
            if *wanted != entry.shape {
                return bad(format!("has shape {:?}; config.json requires {wanted:?}", entry.shape));
            }
            if found.insert(canonical, file.fp32(entry)?).is_some() {
                return bad("occurs twice".to_owned());
            }
        }
    }
    Ok(found)
}

/// A mapped safetensors file with a header that describes each of its bytes once.
struct TensorFile {
    path: PathBuf,
    bytes: Mapped,
    header: SafetensorsHeader,
}

impl TensorFile {
    fn open(path: &Path) -> Result<Self, LmError> {
        let bytes = files::map(path)?;
        let header = read_header(&bytes).map_err(|error| match error {
            HeaderError::Tensor { tensor, problem } => LmError::tensor(path, &tensor, problem),
            other => LmError::file(path, other.to_string()),
        })?;
        Ok(Self { path: path.to_owned(), bytes, header })
    }

    /// Copies the tensor of `entry`, which is in this file's header.
    fn fp32(&self, entry: &HeaderTensor) -> Result<Tensor, LmError> {
        let kind = match entry.dtype {
            header::Dtype::F32 => Kind::Float,
            header::Dtype::F16 => Kind::Half,
            header::Dtype::Bf16 => Kind::BFloat16,
            other => {
                let problem = format!("has dtype {other}; supported are F32, F16 and BF16");
                return Err(LmError::tensor(&self.path, &entry.name, problem));
            }
        };
        // The header was checked against the length of `bytes`, which fits in the address space, so
        // sizes and positions fit too. A dimension can only be larger next to a dimension of 0.
        let size: Vec<i64> = entry.shape.iter().map(|n| *n as i64).collect();
        let data = &self.bytes[entry.bytes.start as usize..entry.bytes.end as usize];
        let failed =
            |error: tch::TchError| LmError::tensor(&self.path, &entry.name, format!("cannot be read: {error}"));
        Tensor::f_from_data_size(data, &size, kind).and_then(|tensor| tensor.f_to_kind(Kind::Float)).map_err(failed)
    }
}

fn read_header(bytes: &[u8]) -> Result<SafetensorsHeader, HeaderError> {
    let file_bytes = bytes.len() as u64;
    let length = SafetensorsHeader::length(bytes, file_bytes)? as usize;
    let start = header::PREFIX_BYTES as usize;
    SafetensorsHeader::parse(&bytes[start..start + length], file_bytes)
}

/// fp32 tensors by name, with the text metadata of the file.
pub(crate) struct NamedTensors {
    pub(crate) tensors: HashMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Reads all tensors of a safetensors file, on the CPU.
pub(crate) fn read_named(path: &Path) -> Result<NamedTensors, LmError> {
    let file = TensorFile::open(path)?;
    let entries = file.header.tensors().iter();
    let tensors = entries.map(|entry| Ok((entry.name.clone(), file.fp32(entry)?))).collect::<Result<_, LmError>>()?;
    Ok(NamedTensors { tensors, metadata: file.header.metadata().clone() })
}

/// Writes tensors to `path` atomically: fp32 and bf16 in their own type, others as fp32.
pub(crate) fn write_named<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<(), LmError> {
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, TensorView::new(tensor)?)))
        .collect::<Result<Vec<_>, LmError>>()?;
    files::replace(path, |temporary| {
        safetensors::tensor::serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            SafeTensorError::IoError(source) => LmError::io(path, source),
            other => LmError::file(path, other.to_string()),
        })
    })
}

/// A copy of named tensors on the CPU, which another thread can write while training continues.
#[derive(Debug)]
pub struct Snapshot {
    tensors: Vec<(String, Tensor)>,
    metadata: HashMap<String, String>,
}

impl Snapshot {
    pub(crate) fn of<'a>(
        tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
        metadata: HashMap<String, String>,
    ) -> Result<Self, LmError> {
        let copied = |tensor: &Tensor| tensor.f_detach()?.f_to_device_(Device::Cpu, tensor.f_kind()?, false, true);
        let tensors =
            tensors.into_iter().map(|(name, tensor)| Ok((name, copied(tensor)?))).collect::<Result<_, LmError>>()?;
        Ok(Self { tensors, metadata })
    }

    /// Writes the tensors as safetensors, atomically.
    ///
    /// # Errors
    /// [`LmError::Io`] with the file's path.
    pub fn write(&self, path: &Path) -> Result<(), LmError> {
        write_named(path, self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)), self.metadata.clone())
    }
}

/// Adapts a tensor to safetensors' `View`.
struct TensorView {
    /// Of `dtype`, contiguous, on the CPU.
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl TensorView {
    fn new(tensor: &Tensor) -> Result<Self, LmError> {
        let (kind, dtype) = match tensor.f_kind()? {
            Kind::BFloat16 => (Kind::BFloat16, Dtype::BF16),
            _ => (Kind::Float, Dtype::F32),
        };
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        Ok(Self { tensor, dtype, shape })
    }
}

impl View for TensorView {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    #[allow(unsafe_code)]
    fn data(&self) -> Cow<'_, [u8]> {
        if self.data_len() == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: `new` made the tensor of `dtype`, contiguous and on the CPU, so its storage has
        // `data_len` initialised bytes from `data_ptr`. The tensor keeps it alive as long as
        // `self`, and nothing writes to it during the borrow: saving happens on the training
        // thread, or writes a copy.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.data_len()) })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}
