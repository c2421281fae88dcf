//! Reading and writing the tensors of a checkpoint as safetensors.
//!
//! Reads one `model.safetensors`, or the shards that `model.safetensors.index.json` names; F32, F16 and
//! BF16 become fp32. Strict: every tensor of the model must be there in its shape, and nothing else.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use inheritune_domain::checkpoint::decoder_config::{DecoderConfig, NameInFile};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::decoder::Parameter;
use crate::error::LmError;
use crate::files;

/// The one file of a checkpoint that is not sharded.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Reads every parameter of a model of shape `config` from `dir`, in the order of `config.tensors()`,
/// tied ones once.
pub(crate) fn read(dir: &Path, config: &DecoderConfig, device: Device) -> Result<Vec<Parameter>, LmError> {
    let source = Source::find(dir)?;
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

/// A second copy of a tied tensor is read only to see that it is a copy.
fn check_tied(path: &Path, name: &str, own: &Tensor, (tied_to, parameters): (&str, &[Parameter])) -> Result<(), LmError> {
    let same = match parameters.iter().find(|parameter| parameter.name == tied_to) {
        Some(parameter) => parameter.tensor.f_detach()?.f_to_device(Device::Cpu)?.f_equal(own)?,
        None => false,
    };
    if same {
        return Ok(());
    }
    Err(LmError::tensor(path, name, format!("differs from `{tied_to}`, which config.json ties it to")))
}

/// Which files hold a checkpoint.
struct Source {
    /// The single file or the index.
    path: PathBuf,
    files: Vec<PathBuf>,
    /// Where the index says that a tensor lies; empty without an index.
    index: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Source {
    fn find(dir: &Path) -> Result<Self, LmError> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            return Ok(Self { path: single.clone(), files: vec![single], index: BTreeMap::new() });
        }
        let path = dir.join(INDEX_FILE);
        if !path.exists() {
            return Err(LmError::file(dir, format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}")));
        }
        let index: Index = files::read_json(&path)?;
        let mut located = BTreeMap::new();
        for (tensor, file) in index.weight_map {
            if file.contains(['/', '\\']) || file.starts_with('.') {
                return Err(LmError::tensor(&path, &tensor, format!("is said to be in `{file}`, which is not a file of this folder")));
            }
            located.insert(tensor, dir.join(file));
        }
        let files: BTreeSet<PathBuf> = located.values().cloned().collect();
        if files.is_empty() {
            return Err(LmError::file(&path, "names no tensor"));
        }
        Ok(Self { path, files: files.into_iter().collect(), index: located })
    }
}

/// Every tensor of the files under its canonical name, fp32, on the CPU.
fn read_files(source: &Source, config: &DecoderConfig) -> Result<HashMap<String, Tensor>, LmError> {
    let shapes: HashMap<String, Vec<u64>> = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    let mut found = HashMap::new();
    for path in &source.files {
        let bytes = files::map(path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| LmError::file(path, describe(&error)))?;
        for (name, view) in file.iter() {
            let canonical = match config.name_in_file(name) {
                NameInFile::Tensor(canonical) => canonical,
                NameInFile::Buffer => continue,
                NameInFile::Unknown => {
                    let problem = format!("is not part of a {} model of {} layers", config.family.as_str(), config.n_layers);
                    return Err(LmError::tensor(path, name, problem));
                }
            };
            let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
            if let Some(wanted) = shapes.get(&canonical).filter(|wanted| **wanted != shape) {
                return Err(LmError::tensor(path, name, format!("has shape {shape:?}, config.json asks for {wanted:?}")));
            }
            let tensor = to_fp32(view.dtype(), view.shape(), view.data()).map_err(|problem| match problem {
                NotRead::Dtype(dtype) => LmError::tensor(path, name, format!("is {dtype:?}; F32, F16 and BF16 are read")),
                NotRead::Torch(error) => error.into(),
            })?;
            if found.insert(canonical, tensor).is_some() {
                return Err(LmError::tensor(path, name, "is there twice"));
            }
        }
        for (tensor, _) in source.index.iter().filter(|(_, file)| *file == path) {
            if file.tensor(tensor).is_err() {
                return Err(LmError::tensor(path, tensor, format!("is missing, {INDEX_FILE} says that it is here")));
            }
        }
    }
    Ok(found)
}

enum NotRead {
    Dtype(Dtype),
    Torch(tch::TchError),
}

fn to_fp32(dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<Tensor, NotRead> {
    let kind = match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => return Err(NotRead::Dtype(other)),
    };
    let size: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    // `deserialize` has checked that `data` holds exactly this shape and type.
    Tensor::f_from_data_size(data, &size, kind).and_then(|tensor| tensor.f_to_kind(Kind::Float)).map_err(NotRead::Torch)
}

fn describe(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer => {
            format!("is truncated or has trailing bytes: not a whole safetensors file ({error})")
        }
        other => format!("is not a safetensors file: {other}"),
    }
}

/// fp32 tensors by name, with the text metadata of the file.
pub(crate) struct NamedTensors {
    pub(crate) tensors: HashMap<String, Tensor>,
    pub(crate) metadata: HashMap<String, String>,
}

/// Reads any safetensors file whole, on the CPU.
pub(crate) fn read_named(path: &Path) -> Result<NamedTensors, LmError> {
    let bytes = files::map(path)?;
    let bad = |error: SafeTensorError| LmError::file(path, describe(&error));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(bad)?;
    let file = SafeTensors::deserialize(&bytes).map_err(bad)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.iter() {
        let tensor = to_fp32(view.dtype(), view.shape(), view.data()).map_err(|problem| match problem {
            NotRead::Dtype(dtype) => LmError::tensor(path, name, format!("is {dtype:?}; F32, F16 and BF16 are read")),
            NotRead::Torch(error) => error.into(),
        })?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(NamedTensors { tensors, metadata: header.metadata().clone().unwrap_or_default() })
}

/// Writes fp32 tensors to `path`: whole or not at all.
pub(crate) fn write_named<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<(), LmError> {
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Fp32View::new(tensor)?)))
        .collect::<Result<Vec<_>, LmError>>()?;
    files::replace(path, |temporary| {
        safetensors::tensor::serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            SafeTensorError::IoError(source) => LmError::io(path, source),
            other => LmError::file(path, other.to_string()),
        })
    })
}

/// A tensor as safetensors wants to see it.
struct Fp32View {
    /// fp32, contiguous, on the CPU.
    tensor: Tensor,
    shape: Vec<usize>,
}

impl Fp32View {
    fn new(tensor: &Tensor) -> Result<Self, LmError> {
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        Ok(Self { tensor, shape })
    }
}

impl View for Fp32View {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    #[allow(unsafe_code)]
    fn data(&self) -> Cow<'_, [u8]> {
        if self.data_len() == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: `new` made the tensor fp32, contiguous and on the CPU, so its storage holds `data_len`
        // initialised bytes from `data_ptr`; the tensor keeps it alive as long as `self`, and nothing
        // writes to it during the borrow because saving and training share one thread.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.data_len()) })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}
