//! The origin of every tensor of a target, so that no tensor is silently random.
//!
//! A plan is computed from the headers of the sources ([`Inventory`]) before any weight is read.
//! The slicer carries it out. Paper: "Inherit" in Algorithm 1. [`InheritSet`] determines which
//! tensors are inherited.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::decoder_config::{DecoderConfig, Init, MAX_LAYERS, NameInFile, TensorRole, TensorSpec};
use super::inherit_set::{InheritPart, InheritSet};
use super::layer_map::LayerMap;
use super::left_out::LeftOut;
use super::safetensors_header::{Dtype, HeaderTensor};
use super::tensor_names::{TensorNames, wrong_dtype};
use crate::layer_map::LayerMapRule;
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

#[cfg(test)]
mod tests;

/// A tensor in a source checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// The name in the file.
    pub name: String,
    /// The file, relative to the checkpoint.
    pub file: String,
    /// The data type.
    pub dtype: Dtype,
    /// The dimensions of the canonical tensor.
    pub shape: Vec<u64>,
    /// The byte range in the file. If the tensor is part of a fused tensor, the range of the fused
    /// tensor.
    pub bytes: Range<u64>,
    /// How to read the values from that range.
    pub reading: Reading,
}

impl SourceTensor {
    /// Returns the size of its values in bytes, which is less than that of a fused tensor.
    pub fn size_bytes(&self) -> u64 {
        // The shape has been compared with the config's, whose sizes fit in 64 bits.
        self.shape.iter().product::<u64>() * self.dtype.size_bytes()
    }

    /// Creates a tensor that is stored in `file` in its canonical form.
    pub fn whole(file: &str, tensor: &HeaderTensor) -> Self {
        let HeaderTensor { name, dtype, shape, bytes } = tensor.clone();
        Self { name, file: file.to_owned(), dtype, shape, bytes, reading: Reading::Whole }
    }
}

/// How to read a tensor's values from its bytes in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Unchanged.
    Whole,
    /// Transposed: the file has [columns, rows], such as `nn.Linear` instead of Hugging Face's
    /// `Conv1D`.
    Transposed,
    /// Some rows of a fused tensor, in several parts.
    Parts {
        /// Start of the first part, relative to the start of the fused tensor, in bytes.
        first: u64,
        /// Length of a part, in bytes.
        length: u64,
        /// Distance between the starts of consecutive parts, in bytes.
        step: u64,
        /// Number of parts.
        count: u64,
    },
}

/// All learned tensors of a checkpoint, by canonical name. Complete, with the correct shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    config: DecoderConfig,
    tensors: BTreeMap<String, SourceTensor>,
    /// A stored head, with its canonical name, although config.json ties it to another tensor.
    second_head: Option<(String, SourceTensor)>,
    left_out: Vec<LeftOut>,
}

/// A stored head that config.json ties to another tensor: either a copy of that tensor, or a
/// separate head.
#[derive(Debug, Clone, Copy)]
pub struct SecondHead<'a> {
    /// The head.
    pub head: &'a SourceTensor,
    /// The tensor it is tied to.
    pub tied_to: &'a SourceTensor,
}

/// The checkpoint that a tensor is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The reference.
    Reference,
    /// The previous candidate, in a run that carries trained layers over.
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

/// The origin of a target tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Copied unchanged.
    Copied {
        /// The checkpoint it is copied from.
        source: Source,
        /// The tensor in that checkpoint.
        tensor: SourceTensor,
    },
    /// Tied to another tensor of the target, and not stored.
    Tied {
        /// The name of that tensor.
        to: String,
    },
    /// Freshly initialised.
    Fresh {
        /// How it is initialised.
        init: Init,
    },
}

/// A target tensor and its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The target tensor.
    pub target: TensorSpec,
    /// The dtype in the target. A copied tensor keeps its dtype.
    pub dtype: Dtype,
    /// The origin.
    pub origin: Origin,
}

impl Placement {
    /// Returns its size in the target's file, in bytes. 0 for a tied tensor.
    pub fn size_bytes(&self) -> u64 {
        match &self.origin {
            Origin::Copied { tensor, .. } => tensor.size_bytes(),
            Origin::Tied { .. } => 0,
            Origin::Fresh { .. } => self.target.shape.iter().product::<u64>() * self.dtype.size_bytes(),
        }
    }
}

/// All tensors of a target, each exactly once, in forward order.
#[derive(Debug, Clone, PartialEq)]
pub struct SlicePlan {
    config: DecoderConfig,
    layer_map: Option<LayerMap>,
    tensors: Vec<Placement>,
}

/// The inputs of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Inheritance<'a> {
    /// The reference.
    pub reference: &'a Inventory,
    /// The layers of the reference that the target consists of.
    pub layer_map: &'a LayerMap,
    /// The parts of the reference that are inherited.
    pub inherit: InheritSet,
    /// With `Carry` growth, the previous candidate. Its layers come first, and its embeddings,
    /// final norm and head are taken regardless of `inherit`.
    pub previous: Option<&'a Inventory>,
}

/// Why a plan cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A tensor of a source is not valid.
    #[error("{file}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The head is separate in a family that only has tied heads.
    #[error(
        "{file}: tensor `{head}` differs from `{tied_to}`; separate heads are not supported in the {family} \
         family, whose head is its token embedding"
    )]
    OwnHead {
        /// The head's file.
        file: String,
        /// The head's name in the file.
        head: String,
        /// The name, in its file, of the tensor that the head is tied to.
        tied_to: String,
        /// The family.
        family: &'static str,
    },
    /// Tensors of a model of this shape are missing from all files.
    #[error(
        "{} missing: config.json says {layers} layers of the {family} family, and no file contains {}",
        missing(tensors), if tensors.len() == 1 { "it" } else { "them" }
    )]
    MissingTensors {
        /// Their canonical names, in forward order. At least one.
        tensors: Vec<String>,
        /// Number of layers in the config.
        layers: LayerCount,
        /// Family in the config.
        family: &'static str,
    },
    /// The target has more layers than the reference.
    #[error("the target asks for {asked} layers but the reference has only {reference}")]
    TooManyLayers {
        /// Number of layers of the target.
        asked: LayerCount,
        /// Number of layers of the reference.
        reference: LayerCount,
    },
    /// A layer list does not fit the reference.
    #[error("{0}")]
    LayerMap(Violations),
    /// A block would have a different attention scale in its new position.
    #[error(
        "layer {from} of the reference would become layer {to} of the target, but the reference sets \
         scale_attn_by_inverse_layer_idx, which divides the attention scores of layer i by i + 1: the copied block would \
         compute something different. Use the first n layers"
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
    /// Token ids have no row.
    #[error("the tokenizer ({tokenizer}) has {entries} entries but the token embedding has only {rows} rows")]
    TokenizerTooLarge {
        /// Where the tokenizer comes from.
        tokenizer: String,
        /// Its highest id plus one.
        entries: u64,
        /// Number of rows of the embedding.
        rows: u32,
    },
}

impl Inventory {
    /// Collects the learned tensors of a checkpoint of the shape `config`, from the headers of its
    /// files. Tensors that no language model needs are left out. A tied head that is stored anyway
    /// becomes a [`SecondHead`].
    ///
    /// # Errors
    /// The first tensor that is unknown, occurs twice, has the wrong shape or a dtype not allowed
    /// for weights, or is missing.
    pub fn new<T: AsRef<[HeaderTensor]>>(config: DecoderConfig, files: &[(String, T)]) -> Result<Self, PlanError> {
        let all = files.iter().flat_map(|(_, header)| header.as_ref().iter().map(|tensor| tensor.name.as_str()));
        let names = TensorNames::new(&config, all);
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        for (file, header) in files {
            for tensor in header.as_ref() {
                match names.meaning(&tensor.name) {
                    NameInFile::Tensor(canonical) => found.push((canonical, SourceTensor::whole(file, tensor))),
                    NameInFile::NotNeeded(why) => left_out.push(LeftOut::tensor(&tensor.name, why)),
                    NameInFile::Unknown => {
                        let problem = names.unknown(&tensor.name);
                        return Err(PlanError::Tensor { file: file.clone(), tensor: tensor.name.clone(), problem });
                    }
                }
            }
        }
        Self::from_tensors(config.clone(), found, left_out)
    }

    /// Like [`Inventory::new`], for tensors whose canonical names are already known. `left_out` are
    /// the tensors that are not needed.
    ///
    /// # Errors
    /// Same as [`Inventory::new`].
    pub fn from_tensors(
        config: DecoderConfig,
        found: Vec<(String, SourceTensor)>,
        left_out: Vec<LeftOut>,
    ) -> Result<Self, PlanError> {
        let specs: BTreeMap<String, TensorSpec> =
            config.tensors().into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let mut tensors: BTreeMap<String, SourceTensor> = BTreeMap::new();
        let mut second_head: Option<(String, SourceTensor)> = None;
        for (canonical, found) in found {
            let error = |problem: String| {
                Err(PlanError::Tensor { file: found.file.clone(), tensor: found.name.clone(), problem })
            };
            let Some(spec) = specs.get(&canonical) else {
                return error("is unknown".to_owned());
            };
            // Quantised tensors also have another shape, so check the dtype first.
            if !found.dtype.is_learned() {
                return error(wrong_dtype(found.dtype));
            }
            if found.shape != spec.shape {
                return error(format!("has shape {:?}; config.json requires {:?}", found.shape, spec.shape));
            }
            let first = match &spec.tied_to {
                Some(_) => second_head.as_ref().map(|(_, first)| first),
                None => tensors.get(&canonical),
            };
            if let Some(first) = first {
                return error(format!("occurs twice: also as `{}` in {}", first.name, first.file));
            }
            match &spec.tied_to {
                Some(_) => second_head = Some((canonical, found)),
                None => drop(tensors.insert(canonical, found)),
            }
        }
        // For a tensor with two names, safetensors' `save_model` keeps the one that comes first.
        if let Some(tied_to) = config.tensors().into_iter().find_map(|spec| spec.tied_to)
            && !tensors.contains_key(&tied_to)
            && let Some((_, head)) = second_head.take()
        {
            tensors.insert(tied_to, head);
        }
        let is_there = |spec: &TensorSpec| spec.tied_to.is_some() || tensors.contains_key(&spec.name);
        let missing = config.tensors().into_iter().filter(|spec| !is_there(spec));
        let missing: Vec<String> = missing.map(|spec| spec.name).collect();
        if missing.is_empty() {
            return Ok(Self { config, tensors, second_head, left_out });
        }
        Err(missing_tensors(&config, missing))
    }

    /// Returns a stored head that config.json ties to another tensor, as long as it is unknown
    /// whether it is a copy.
    pub fn second_head(&self) -> Option<SecondHead<'_>> {
        let (_, head) = self.second_head.as_ref()?;
        let tied_to = self.config.tensors().into_iter().find_map(|spec| spec.tied_to)?;
        Some(SecondHead { head, tied_to: self.tensors.get(&tied_to)? })
    }

    /// Returns the inventory with the second head removed, after it has been found to equal the
    /// tensor it is tied to.
    pub fn with_head_as_copy(mut self) -> Self {
        if let Some((_, head)) = self.second_head.take() {
            let why = "a copy of the tensor that it is tied to";
            self.left_out.push(LeftOut::tensor(&head.name, why));
        }
        self
    }

    /// Returns the inventory of an untied model, after the second head has been found to differ
    /// from the tensor it is tied to.
    ///
    /// # Errors
    /// [`PlanError::OwnHead`] in families whose head is always the token embedding.
    pub fn with_own_head(mut self) -> Result<Self, PlanError> {
        let Some((canonical, head)) = self.second_head.take() else { return Ok(self) };
        if !self.config.family.table().untied_head {
            let tied_to = self.config.tensors().into_iter().find_map(|spec| spec.tied_to).unwrap_or_default();
            let tied_to = self.tensors.get(&tied_to).map_or(tied_to, |tensor| tensor.name.clone());
            let family = self.config.family.as_str();
            return Err(PlanError::OwnHead { file: head.file, head: head.name, tied_to, family });
        }
        self.config.tied_head = false;
        self.tensors.insert(canonical, head);
        Ok(self)
    }

    /// Returns the tensors of the files that do not belong to the model.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Returns the checkpoint's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the tensor with this canonical name, or `None` if it is tied.
    pub fn tensor(&self, canonical: &str) -> Option<&SourceTensor> {
        self.tensors.get(canonical)
    }

    /// Returns canonical names and tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &SourceTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// Returns the source layers that `rule` takes from a reference, for a target of `layers` blocks.
///
/// # Errors
/// [`PlanError::TooManyLayers`] with both numbers, or the invalid entries of an explicit list.
pub fn layer_map(rule: &LayerMapRule, layers: LayerCount, reference: LayerCount) -> Result<LayerMap, PlanError> {
    let asked = match rule {
        LayerMapRule::First | LayerMapRule::FirstAndLast => layers,
        // A list may repeat layers, so only its entries are compared with the reference.
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

/// Checks that every id of a tokenizer has a row.
///
/// # Errors
/// [`PlanError::TokenizerTooLarge`], with `tokenizer` as the name of the tokenizer.
pub fn check_tokenizer(config: &DecoderConfig, tokenizer: &str, entries: u64) -> Result<(), PlanError> {
    if entries <= u64::from(config.vocab_size) {
        return Ok(());
    }
    Err(PlanError::TokenizerTooLarge { tokenizer: tokenizer.to_owned(), entries, rows: config.vocab_size })
}

impl SlicePlan {
    /// Plans a target that inherits.
    ///
    /// # Errors
    /// The previous candidate has another shape or depth, or a block moves although its attention
    /// scale depends on its index.
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

    /// Plans a model that inherits nothing: all tensors are fresh, in F32.
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

    /// Returns the target's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the source layers, or `None` for a model without a source.
    pub fn layer_map(&self) -> Option<&LayerMap> {
        self.layer_map.as_ref()
    }

    /// Returns all tensors, in forward order.
    pub fn tensors(&self) -> &[Placement] {
        &self.tensors
    }

    /// Returns the size of all stored tensors, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(Placement::size_bytes).sum()
    }

    /// Returns the size of the copied tensors, in bytes.
    pub fn copied_bytes(&self) -> u64 {
        self.copied().map(Placement::size_bytes).sum()
    }

    /// Returns the copied tensors.
    pub fn copied(&self) -> impl Iterator<Item = &Placement> {
        self.tensors.iter().filter(|p| matches!(p.origin, Origin::Copied { .. }))
    }

    /// Returns the parts with at least one copied tensor. A tied head counts as the token
    /// embedding.
    pub fn copied_parts(&self) -> InheritSet {
        self.copied().map(|placement| InheritPart::of(placement.target.role)).collect()
    }

    /// Returns the parts with at least one fresh tensor.
    pub fn fresh_parts(&self) -> InheritSet {
        self.fresh_tensors().map(|placement| InheritPart::of(placement.target.role)).collect()
    }

    /// Returns the fresh tensors.
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
        return error("the layer map is not the first n layers, so the next layers are not defined".to_owned());
    }
    // The standard deviation of fresh weights does not affect what a model computes.
    let shape = |config: &DecoderConfig| DecoderConfig { init_std: 0.0, ..config.with_layers(target.n_layers) };
    if shape(previous) != shape(target) {
        return error("its config.json differs from the reference's in more than the number of layers".to_owned());
    }
    Ok(())
}

/// Checks that no copied block moves if its computation depends on its index. Rescaling its query
/// weights by (to + 1) / (from + 1) would compensate for that, but the bytes would no longer be the
/// reference's, and a plan cannot express it. Only attention depends on the index: without it, the
/// rest of a block may move.
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

/// Returns whether the reference's tensor of this role is inherited.
fn takes(inherit: InheritSet, role: TensorRole, config: &DecoderConfig) -> bool {
    let part = InheritPart::of(role);
    // A tied head is the token embedding, so either name selects that tensor. The released GPT-2
    // code, which copies lm_head, therefore also copies the token embedding, but its Llama code
    // does not.
    let as_head = part == InheritPart::TokenEmbedding && config.tied_head && inherit.has(InheritPart::Head);
    inherit.has(part) || as_head
}
