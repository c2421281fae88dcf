//! Where every tensor of a target comes from: nothing is silently random.
//!
//! A plan is made from what the sources' headers say ([`Inventory`]), before any weight is read; carrying
//! it out is the slicer's work. Paper: "Inherit" of Algorithm 1; which tensors count is
//! [`InheritSet`]'s choice.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::decoder_config::{DecoderConfig, Init, MAX_LAYERS, NameInFile, TensorRole, TensorSpec};
use super::inherit_set::{InheritPart, InheritSet};
use super::layer_map::LayerMap;
use super::safetensors_header::{Dtype, HeaderTensor};
use crate::id::LayerCount;
use crate::spec::LayerMapRule;
use crate::violation::Violations;

#[cfg(test)]
mod tests;

/// A tensor where it lies in a source checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Its name in the file.
    pub name: String,
    /// The file, relative to the checkpoint.
    pub file: String,
    /// What its numbers are.
    pub dtype: Dtype,
    /// Its dimensions, those of the tensor it means.
    pub shape: Vec<u64>,
    /// Its bytes, counted from the start of the file; those of a fused tensor that it is a part of.
    pub bytes: Range<u64>,
    /// How its numbers are taken from them.
    pub reading: Reading,
}

impl SourceTensor {
    /// Bytes of its numbers; less than those of a fused tensor.
    pub fn size_bytes(&self) -> u64 {
        // Held against the config's shape, whose sizes fit in 64 bits.
        self.shape.iter().product::<u64>() * self.dtype.size_bytes()
    }

    /// A tensor that is in `file` as it is meant.
    pub fn whole(file: &str, tensor: &HeaderTensor) -> Self {
        let HeaderTensor { name, dtype, shape, bytes } = tensor.clone();
        Self { name, file: file.to_owned(), dtype, shape, bytes, reading: Reading::Whole }
    }
}

/// How a tensor's numbers are taken from its bytes in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All of them, as they are.
    Whole,
    /// The file has it as [columns, rows]: `nn.Linear` where Hugging Face has `Conv1D`.
    Transposed,
    /// Some rows of a fused tensor, one part after another.
    Parts {
        /// Where the first part begins, counted from the start of the fused tensor's bytes.
        first: u64,
        /// Bytes of a part.
        length: u64,
        /// Bytes from the start of one part to the start of the next.
        step: u64,
        /// How many parts there are.
        count: u64,
    },
}

/// Every learned tensor of a checkpoint, under its canonical name: complete, of the right shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    config: DecoderConfig,
    tensors: BTreeMap<String, SourceTensor>,
}

/// Which checkpoint a tensor is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The reference.
    Reference,
    /// The previous candidate of a run that carries trained layers over.
    Previous,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Previous => "previous",
        })
    }
}

/// Where one target tensor comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// These numbers, unchanged.
    Copied {
        /// Of this checkpoint.
        source: Source,
        /// From here.
        tensor: SourceTensor,
    },
    /// It is another tensor of the target, and is not stored.
    Tied {
        /// That tensor.
        to: String,
    },
    /// Made anew.
    Fresh {
        /// Filled like this.
        init: Init,
    },
}

/// One target tensor and its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The tensor.
    pub target: TensorSpec,
    /// What its numbers will be; a copied one keeps its own.
    pub dtype: Dtype,
    /// Where it comes from.
    pub origin: Origin,
}

impl Placement {
    /// Bytes it will take in the target's file; 0 for a tied one.
    pub fn size_bytes(&self) -> u64 {
        match &self.origin {
            Origin::Copied { tensor, .. } => tensor.size_bytes(),
            Origin::Tied { .. } => 0,
            Origin::Fresh { .. } => self.target.shape.iter().product::<u64>() * self.dtype.size_bytes(),
        }
    }
}

/// Every tensor of a target, exactly once, in the order of its forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct SlicePlan {
    config: DecoderConfig,
    layer_map: Option<LayerMap>,
    tensors: Vec<Placement>,
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inheritance<'a> {
    /// The reference.
    pub reference: &'a Inventory,
    /// Which of its layers are the target's.
    pub layer_map: &'a LayerMap,
    /// Which of its parts are taken.
    pub inherit: InheritSet,
    /// `Carry` growth: the candidate whose layers come first, and whose embeddings, final norm and head
    /// are taken whatever `inherit` says of the reference's.
    pub previous: Option<&'a Inventory>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One tensor of a source cannot be accepted.
    #[error("{file}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor's name in it.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// Tensors that a model of this shape has are in no file.
    #[error(
        "{} missing: config.json says {layers} layers of the {family} family, and no file holds {}",
        missing(tensors), if tensors.len() == 1 { "it" } else { "them" }
    )]
    MissingTensors {
        /// Their canonical names, in the order of the forward pass; at least one.
        tensors: Vec<String>,
        /// Layers by the config.
        layers: LayerCount,
        /// Family by the config.
        family: &'static str,
    },
    /// More layers than there are.
    #[error("the target asks for {asked} layers but the reference has only {reference}")]
    TooManyLayers {
        /// Asked for.
        asked: LayerCount,
        /// There are.
        reference: LayerCount,
    },
    /// A layer list that does not fit the reference.
    #[error("{0}")]
    LayerMap(Violations),
    /// A block would change its attention scale by moving.
    #[error(
        "layer {from} of the reference would become layer {to} of the target, but the reference sets \
         scale_attn_by_inverse_layer_idx, which divides the attention scores of layer i by i + 1: the copied block would \
         compute something else. Take the first n layers"
    )]
    MovedScaledLayer {
        /// Its index in the reference.
        from: u32,
        /// Its index in the target.
        to: u32,
    },
    /// The previous candidate cannot be grown into this target.
    #[error("the previous candidate cannot be carried over: {problem}")]
    Carry {
        /// Why.
        problem: String,
    },
    /// Token ids that have no row.
    #[error("the tokenizer ({tokenizer}) has {entries} entries but the token embedding has only {rows} rows")]
    TokenizerTooLarge {
        /// Where the tokenizer was found.
        tokenizer: String,
        /// Its highest id plus one.
        entries: u64,
        /// Rows of the embedding.
        rows: u32,
    },
}

impl Inventory {
    /// The learned tensors of a checkpoint of the shape `config`, from the headers of its files.
    /// Computed buffers, and a tied head's second copy, are left out.
    ///
    /// # Errors
    /// The first tensor that is unknown, there twice, of another shape, not of a type for weights, or missing.
    pub fn new<T: AsRef<[HeaderTensor]>>(config: DecoderConfig, files: &[(String, T)]) -> Result<Self, PlanError> {
        let mut found = Vec::new();
        for (file, header) in files {
            for tensor in header.as_ref() {
                let canonical = match config.name_in_file(&tensor.name) {
                    NameInFile::Tensor(canonical) => canonical,
                    NameInFile::Buffer => continue,
                    NameInFile::Unknown => {
                        let (layers, family) = (config.n_layers, config.family.as_str());
                        let problem = format!("is unknown in the {family} family with {layers} layers");
                        return Err(PlanError::Tensor { file: file.clone(), tensor: tensor.name.clone(), problem });
                    }
                };
                found.push((canonical, SourceTensor::whole(file, tensor)));
            }
        }
        Self::from_tensors(config, found)
    }

    /// The same from tensors whose canonical names are known already.
    ///
    /// # Errors
    /// As [`Inventory::new`].
    pub fn from_tensors(config: DecoderConfig, found: Vec<(String, SourceTensor)>) -> Result<Self, PlanError> {
        let specs: BTreeMap<String, TensorSpec> =
            config.tensors().into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let mut tensors: BTreeMap<String, SourceTensor> = BTreeMap::new();
        for (canonical, found) in found {
            let error = |problem: String| {
                Err(PlanError::Tensor { file: found.file.clone(), tensor: found.name.clone(), problem })
            };
            let Some(spec) = specs.get(&canonical) else {
                return error("is unknown".to_owned());
            };
            if found.shape != spec.shape {
                return error(format!("has shape {:?}; config.json makes it {:?}", found.shape, spec.shape));
            }
            if !found.dtype.is_learned() {
                return error(format!("has dtype {}; weights must be F32, F16 or BF16", found.dtype));
            }
            // Some savers store the tied head once more; the embedding is what counts.
            if spec.tied_to.is_some() {
                continue;
            }
            if let Some(first) = tensors.get(&canonical) {
                return error(format!("is there twice: also as `{}` in {}", first.name, first.file));
            }
            tensors.insert(canonical, found);
        }
        let is_there = |spec: &TensorSpec| spec.tied_to.is_some() || tensors.contains_key(&spec.name);
        let missing = config.tensors().into_iter().filter(|spec| !is_there(spec));
        let missing: Vec<String> = missing.map(|spec| spec.name).collect();
        if missing.is_empty() { Ok(Self { config, tensors }) } else { Err(missing_tensors(&config, missing)) }
    }

    /// The checkpoint's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The tensor of this canonical name; none for a tied one.
    pub fn tensor(&self, canonical: &str) -> Option<&SourceTensor> {
        self.tensors.get(canonical)
    }

    /// Canonical names and tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &SourceTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// The source layers that `rule` takes from a reference, for a target of `layers` blocks.
///
/// # Errors
/// [`PlanError::TooManyLayers`] with both numbers, or the bad entries of an explicit list.
pub fn layer_map(rule: &LayerMapRule, layers: LayerCount, reference: LayerCount) -> Result<LayerMap, PlanError> {
    let asked = match rule {
        LayerMapRule::First | LayerMapRule::FirstAndLast => layers,
        // A list may repeat layers, so only its entries are held against the reference.
        LayerMapRule::List(list) if list.len() as u64 > u64::from(MAX_LAYERS) => {
            return Err(PlanError::TooManyLayers {
                asked: LayerCount(u32::try_from(list.len()).unwrap_or(u32::MAX)),
                reference,
            });
        }
        LayerMapRule::List(_) => reference,
    };
    if asked > reference {
        return Err(PlanError::TooManyLayers { asked, reference });
    }
    rule.layer_map(layers, reference).map_err(PlanError::LayerMap)
}

/// Every id of a tokenizer must have a row.
///
/// # Errors
/// [`PlanError::TokenizerTooLarge`], calling the tokenizer `tokenizer`.
pub fn check_tokenizer(config: &DecoderConfig, tokenizer: &str, entries: u64) -> Result<(), PlanError> {
    if entries <= u64::from(config.vocab_size) {
        return Ok(());
    }
    Err(PlanError::TokenizerTooLarge { tokenizer: tokenizer.to_owned(), entries, rows: config.vocab_size })
}

impl SlicePlan {
    /// A target that inherits.
    ///
    /// # Errors
    /// A previous candidate of another shape or depth, or a moved block whose attention scale depends on
    /// its index.
    pub fn new(from: Inheritance<'_>) -> Result<Self, PlanError> {
        let config = from.reference.config.with_layers(from.layer_map.layers());
        if let Some(previous) = from.previous {
            check_carry(&config, from.layer_map, &previous.config)?;
        }
        check_scale(&config, &from)?;
        let tensors =
            config.tensors().into_iter().map(|target| place(target, &config, &from)).collect::<Result<_, _>>()?;
        Ok(Self { config, layer_map: Some(from.layer_map.clone()), tensors })
    }

    /// A model that inherits nothing: every tensor fresh, in F32.
    pub fn fresh(config: DecoderConfig) -> Self {
        let tensors = config
            .tensors()
            .into_iter()
            .map(|target| {
                let origin = match &target.tied_to {
                    Some(to) => Origin::Tied { to: to.clone() },
                    None => Origin::Fresh { init: target.init },
                };
                Placement { target, dtype: Dtype::F32, origin }
            })
            .collect();
        Self { config, layer_map: None, tensors }
    }

    /// The target's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The source layers; none for a model without a source.
    pub fn layer_map(&self) -> Option<&LayerMap> {
        self.layer_map.as_ref()
    }

    /// Every tensor, in the order of the forward pass.
    pub fn tensors(&self) -> &[Placement] {
        &self.tensors
    }

    /// Bytes of all stored tensors.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(Placement::size_bytes).sum()
    }

    /// Bytes of the copied tensors.
    pub fn copied_bytes(&self) -> u64 {
        self.copied().map(Placement::size_bytes).sum()
    }

    /// The copied tensors.
    pub fn copied(&self) -> impl Iterator<Item = &Placement> {
        self.tensors.iter().filter(|p| matches!(p.origin, Origin::Copied { .. }))
    }

    /// The parts of which something is copied; a tied head is the token embedding.
    pub fn copied_parts(&self) -> InheritSet {
        self.copied().map(|placement| InheritPart::of(placement.target.role)).collect()
    }

    /// The parts of which something is fresh.
    pub fn fresh_parts(&self) -> InheritSet {
        self.fresh_tensors().map(|placement| InheritPart::of(placement.target.role)).collect()
    }

    /// The fresh tensors.
    pub fn fresh_tensors(&self) -> impl Iterator<Item = &Placement> {
        self.tensors.iter().filter(|p| matches!(p.origin, Origin::Fresh { .. }))
    }
}

fn missing_tensors(config: &DecoderConfig, tensors: Vec<String>) -> PlanError {
    PlanError::MissingTensors { tensors, layers: config.n_layers, family: config.family.as_str() }
}

fn missing(tensors: &[String]) -> String {
    match tensors {
        [] => "no tensor is".to_owned(),
        [one] => format!("tensor `{one}` is"),
        [first, rest @ ..] => format!("tensor `{first}` and {} more are", rest.len()),
    }
}

fn check_carry(target: &DecoderConfig, map: &LayerMap, previous: &DecoderConfig) -> Result<(), PlanError> {
    let error = |problem: String| Err(PlanError::Carry { problem });
    if previous.n_layers > target.n_layers {
        return error(format!("it has {} layers, more than the target's {}", previous.n_layers, target.n_layers));
    }
    if map.sources().iter().enumerate().any(|(to, from)| to as u32 != *from) {
        return error("the layer map is not the first n layers, so which ones come next is not defined".to_owned());
    }
    // How fresh weights were once spread is no part of what a model computes.
    let shape = |config: &DecoderConfig| DecoderConfig { init_std: 0.0, ..config.with_layers(target.n_layers) };
    if shape(previous) != shape(target) {
        return error("its config.json differs from the reference's in more than the number of layers".to_owned());
    }
    Ok(())
}

/// Copying a block to another index is only right where what it computes does not depend on the index.
/// Rescaling its query weights by (to + 1) / (from + 1) would keep it right, but then the bytes are no
/// longer the reference's, so this is refused until a plan can say so. Only attention knows the index: without it,
/// the rest of a block may move.
fn check_scale(target: &DecoderConfig, from: &Inheritance<'_>) -> Result<(), PlanError> {
    if !target.inverse_layer_scale || !from.inherit.has(InheritPart::Attention) {
        return Ok(());
    }
    let moved = (0_u32..).zip(from.layer_map.sources()).find(|(to, source)| to != *source);
    match moved {
        Some((to, source)) => Err(PlanError::MovedScaledLayer { from: *source, to }),
        None => Ok(()),
    }
}

fn place(target: TensorSpec, config: &DecoderConfig, from: &Inheritance<'_>) -> Result<Placement, PlanError> {
    let missing = |name: &str, config: &DecoderConfig| missing_tensors(config, vec![name.to_owned()]);
    let (reference_name, carried) = match target.role {
        TensorRole::Block { layer, .. } => {
            let source = from.layer_map.sources().get(layer as usize).copied().unwrap_or(layer);
            let name = config.name_in_layer(&target, source);
            (name, from.previous.filter(|previous| layer < previous.config.n_layers.0))
        }
        TensorRole::TokenEmbedding | TensorRole::PositionEmbedding | TensorRole::FinalNorm | TensorRole::Head => {
            (target.name.clone(), from.previous)
        }
    };
    if let Some(to) = &target.tied_to {
        let dtype = from.reference.tensor(to).map_or(Dtype::F32, |tensor| tensor.dtype);
        let origin = Origin::Tied { to: to.clone() };
        return Ok(Placement { target, dtype, origin });
    }
    if let Some(previous) = carried {
        let tensor = previous.tensor(&target.name).ok_or_else(|| missing(&target.name, &previous.config))?.clone();
        let dtype = tensor.dtype;
        return Ok(Placement { target, dtype, origin: Origin::Copied { source: Source::Previous, tensor } });
    }
    let tensor =
        from.reference.tensor(&reference_name).ok_or_else(|| missing(&reference_name, &from.reference.config))?;
    let dtype = tensor.dtype;
    let origin = if takes(from.inherit, target.role, config) {
        Origin::Copied { source: Source::Reference, tensor: tensor.clone() }
    } else {
        Origin::Fresh { init: target.init }
    };
    Ok(Placement { target, dtype, origin })
}

/// Whether the reference's tensor of this role is inherited.
fn takes(inherit: InheritSet, role: TensorRole, config: &DecoderConfig) -> bool {
    let part = InheritPart::of(role);
    // A tied head is the token embedding: either name asks for the one tensor that there is. So the released GPT-2
    // code, which copies lm_head, copies the token embedding too, and its Llama code does not.
    let as_head = part == InheritPart::TokenEmbedding && config.tied_head && inherit.has(InheritPart::Head);
    inherit.has(part) || as_head
}
