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
use super::left_out::LeftOut;
use super::safetensors_header::{Dtype, HeaderTensor};
use super::tensor_names::{TensorNames, wrong_dtype};
use crate::layer_map::LayerMapRule;
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

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
    /// A head of its own beside the tensor that config.json ties it to, by the head's canonical name.
    second_head: Option<(String, SourceTensor)>,
    left_out: Vec<LeftOut>,
}

/// A head that is stored although config.json says that it is another tensor: a copy of it, or a head of its own.
#[derive(Debug, Clone, Copy)]
pub struct SecondHead<'a> {
    /// The head.
    pub head: &'a SourceTensor,
    /// What it is tied to.
    pub tied_to: &'a SourceTensor,
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
    /// A head of its own in a family that has none.
    #[error(
        "{file}: tensor `{head}` holds other numbers than `{tied_to}`; heads of their own are not supported in the {family} \
         family, whose head is its token embedding"
    )]
    OwnHead {
        /// The head's file.
        file: String,
        /// The head's name in it.
        head: String,
        /// The name in a file of the tensor that it should be.
        tied_to: String,
        /// The family.
        family: &'static str,
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
    /// What no language model needs is left out; a tied head that is stored all the same is a [`SecondHead`].
    ///
    /// # Errors
    /// The first tensor that is unknown, there twice, of another shape, not of a type for weights, or missing.
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

    /// The same from tensors whose canonical names are known already, and those that are not needed.
    ///
    /// # Errors
    /// As [`Inventory::new`].
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
            // Quantised ones are of another shape, too.
            if !found.dtype.is_learned() {
                return error(wrong_dtype(found.dtype));
            }
            if found.shape != spec.shape {
                return error(format!("has shape {:?}; config.json makes it {:?}", found.shape, spec.shape));
            }
            let first = match &spec.tied_to {
                Some(_) => second_head.as_ref().map(|(_, first)| first),
                None => tensors.get(&canonical),
            };
            if let Some(first) = first {
                return error(format!("is there twice: also as `{}` in {}", first.name, first.file));
            }
            match &spec.tied_to {
                Some(_) => second_head = Some((canonical, found)),
                None => drop(tensors.insert(canonical, found)),
            }
        }
        // Of two names of one tensor, safetensors' `save_model` keeps the one that comes first.
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

    /// A head that is stored beside what config.json ties it to, until it is known which of the two it is.
    pub fn second_head(&self) -> Option<SecondHead<'_>> {
        let (_, head) = self.second_head.as_ref()?;
        let tied_to = self.config.tensors().into_iter().find_map(|spec| spec.tied_to)?;
        Some(SecondHead { head, tied_to: self.tensors.get(&tied_to)? })
    }

    /// The same, now that the second head is known to hold the numbers of what it is tied to.
    pub fn with_head_as_copy(mut self) -> Self {
        if let Some((_, head)) = self.second_head.take() {
            let why = "a copy of the tensor that it is tied to";
            self.left_out.push(LeftOut::tensor(&head.name, why));
        }
        self
    }

    /// The same, now that the second head is known to hold numbers of its own: an untied model.
    ///
    /// # Errors
    /// [`PlanError::OwnHead`] in the families whose head is always the token embedding.
    pub fn with_own_head(mut self) -> Result<Self, PlanError> {
        let Some((canonical, head)) = self.second_head.take() else { return Ok(self) };
        if !self.config.family.table().rotary {
            let tied_to = self.config.tensors().into_iter().find_map(|spec| spec.tied_to).unwrap_or_default();
            let tied_to = self.tensors.get(&tied_to).map_or(tied_to, |tensor| tensor.name.clone());
            let family = self.config.family.as_str();
            return Err(PlanError::OwnHead { file: head.file, head: head.name, tied_to, family });
        }
        self.config.tied_head = false;
        self.tensors.insert(canonical, head);
        Ok(self)
    }

    /// Tensors of the files that are no part of the model.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
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
