//! Model families, one table each. Everything else is derived from these tables.
//!
//! A table lists the modules of a block with their names in files ([`Slot`]), the norm, activation
//! and biases, and the keys of Hugging Face's `config.json`. Shapes, names in files and initial
//! values follow from the slot, and are implemented once in this module. To add a family, add a
//! file to this folder, a value to [`Family`], and an entry to `TABLES`.

mod gpt2;
mod gpt_neox;
mod llama;
mod mpt;
mod opt;

use inheritune_ids::violation::Violations;
use serde_json::Value;

use crate::decoder_config::{
    Architecture, BlockPart, ConfigError, DecoderConfig, Family, Init, NameInFile, TensorRole, TensorSpec,
};

pub(crate) use gpt2::{ATTENTION_KEY, EAGER};

/// The tables, in the order of [`Family::ALL`].
static TABLES: [&FamilyTable; Family::ALL.len()] =
    [&gpt2::GPT2, &llama::LLAMA, &gpt_neox::GPT_NEOX, &opt::OPT, &mpt::MPT, &mpt::MOSAIC_GPT];

/// A module of a decoder, independent of its name in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The token embedding: [vocabulary, d_model].
    TokenEmbedding,
    /// The position embedding: [positions, d_model].
    PositionEmbedding,
    /// The norm before attention.
    AttentionNorm,
    /// Queries, keys and values in one fused projection.
    Qkv,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The norm over queries.
    QNorm,
    /// The norm over keys.
    KNorm,
    /// Attention's output projection.
    AttentionOut,
    /// The norm before the MLP.
    MlpNorm,
    /// The gate of a gated MLP.
    Gate,
    /// The MLP's first projection.
    Up,
    /// The MLP's second projection.
    Down,
    /// The norm after the last block.
    FinalNorm,
    /// The prediction head: [vocabulary, d_model].
    Head,
}

impl Slot {
    fn is_norm(self) -> bool {
        match self {
            Self::AttentionNorm | Self::MlpNorm | Self::FinalNorm | Self::QNorm | Self::KNorm => true,
            Self::TokenEmbedding
            | Self::PositionEmbedding
            | Self::Qkv
            | Self::Q
            | Self::K
            | Self::V
            | Self::AttentionOut
            | Self::Gate
            | Self::Up
            | Self::Down
            | Self::Head => false,
        }
    }

    /// Returns whether the weight has a row per token or position, which no layout transposes.
    fn is_embedding(self) -> bool {
        matches!(self, Self::TokenEmbedding | Self::PositionEmbedding | Self::Head)
    }

    /// Returns the part of a block that the module belongs to. `None` outside the blocks.
    fn part(self) -> Option<BlockPart> {
        match self {
            Self::AttentionNorm | Self::MlpNorm | Self::QNorm | Self::KNorm => Some(BlockPart::Norm),
            Self::Qkv | Self::Q | Self::K | Self::V | Self::AttentionOut => Some(BlockPart::Attention),
            Self::Gate | Self::Up | Self::Down => Some(BlockPart::Mlp),
            Self::TokenEmbedding | Self::PositionEmbedding | Self::FinalNorm | Self::Head => None,
        }
    }
}

/// The norm of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// LayerNorm (Ba, Kiros and Hinton 2016).
    Layer,
    /// RMSNorm (Zhang and Sennrich 2019), which has no bias.
    Rms,
}

/// An MLP's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU, x Phi(x) (Hendrycks and Gimpel 2016), computed with the error function.
    Gelu,
    /// GELU in its tanh form (same paper, section 2; Hugging Face's `gelu_new` and `gelu_fast`).
    TanhGelu,
    /// max(0, x).
    Relu,
    /// x sigmoid(x), applied to the gate (SwiGLU, Shazeer 2020).
    Silu,
}

/// The layout of a projection's matrix in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixLayout {
    /// PyTorch's Linear: [out, in].
    OutIn,
    /// GPT-2's Conv1D: [in, out].
    InOut,
}

/// The order of queries, keys and values in [`Slot::Qkv`], for families that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// All queries, then all keys, then all values.
    ByKind,
    /// Head by head: its query, its key, its value.
    ByHead,
}

/// Which modules have a bias. Embeddings, heads and RMSNorms never have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    Never,
    /// Every projection and every norm.
    Always,
    /// Depends on [`DecoderConfig::no_bias`].
    Chosen,
}

/// The table of a family.
pub struct FamilyTable {
    pub(crate) family: Family,
    /// Prefix of all module names except the head's. Files of the bare model omit it.
    pub(crate) prefix: &'static str,
    pub(crate) token_embedding: &'static str,
    /// The module of learned positions, and the row of position 0.
    pub(crate) position_embedding: Option<(&'static str, u32)>,
    /// Prefix before a layer's index.
    pub(crate) blocks: &'static str,
    /// The modules of a block in forward order, with their names after the layer's index.
    pub(crate) block: &'static [(Slot, &'static str)],
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    /// An alternative name of the head's tensor in files.
    pub(crate) head_alias: Option<&'static str>,
    /// Names after the layer's index of tensors that are computed, not learned, with a description.
    pub(crate) buffers: &'static [(&'static str, &'static str)],
    pub(crate) norm: NormKind,
    pub(crate) bias: Bias,
    pub(crate) layout: MatrixLayout,
    pub(crate) qkv: QkvLayout,
    pub(crate) activation: fn(&DecoderConfig) -> Activation,
    /// Whether fresh projections into the residual stream are scaled by 1/sqrt(2 x layers) (GPT-2's
    /// paper, section 2.3).
    pub(crate) scaled_residual_init: bool,
    /// Whether positions are rotary.
    pub(crate) rotary: bool,
    /// Whether the head may have its own weights. It does unless `config.json` ties it.
    pub(crate) untied_head: bool,
    /// Whether attention scores may also be divided by the layer's number
    /// ([`DecoderConfig::inverse_layer_scale`]).
    pub(crate) inverse_layer_scale: bool,
    /// Whether there may be fewer key and value heads than query heads.
    pub(crate) grouped_query: bool,
    /// Whether the class in `architectures` is kept, because its code is not part of transformers.
    pub(crate) keeps_architectures: bool,
    /// The key of `config.json` with the number of layers.
    pub(crate) layers_key: &'static str,
    /// The defaults of transformers for `bos_token_id`, `eos_token_id` and `pad_token_id`.
    pub(crate) special_ids: [Option<u32>; 3],
    pub(crate) from_hf: fn(&Value) -> Result<DecoderConfig, ConfigError>,
    pub(crate) to_hf: fn(&DecoderConfig) -> Value,
    /// Fills in what an [`Architecture`] leaves open, as in the family's published models.
    pub(crate) fresh: fn(&Architecture, DecoderConfig) -> DecoderConfig,
    /// Checks additional constraints of the family.
    pub(crate) check: fn(&Architecture, &mut Violations),
}

impl Family {
    /// Returns the family's table.
    pub fn table(self) -> &'static FamilyTable {
        TABLES[self as usize]
    }
}

impl std::fmt::Debug for FamilyTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FamilyTable({})", self.family)
    }
}

impl FamilyTable {
    /// Returns the norm of the family.
    pub fn norm(&self) -> NormKind {
        self.norm
    }

    /// Returns the layout of projections in the family's files.
    pub fn layout(&self) -> MatrixLayout {
        self.layout
    }

    /// Returns the layout of [`Slot::Qkv`], for families that have it.
    pub fn qkv(&self) -> QkvLayout {
        self.qkv
    }

    /// Returns the activation function of a model of this shape.
    pub fn activation(&self, config: &DecoderConfig) -> Activation {
        (self.activation)(config)
    }

    /// Returns the row of position 0 in the table of learned positions.
    pub fn first_position(&self) -> u32 {
        self.position_embedding.map_or(0, |(_, first)| first)
    }

    /// Returns the name of the module `slot`, in block `layer` if it belongs to a block. Returns
    /// `None` if the family does not have this module.
    pub fn module(&self, slot: Slot, layer: u32) -> Option<String> {
        match slot {
            Slot::TokenEmbedding => Some(self.token_embedding.to_owned()),
            Slot::PositionEmbedding => self.position_embedding.map(|(name, _)| name.to_owned()),
            Slot::FinalNorm => Some(self.final_norm.to_owned()),
            Slot::Head => Some(self.head.to_owned()),
            slot => {
                let (_, name) = self.block.iter().find(|(own, _)| *own == slot)?;
                Some(format!("{}{layer}.{name}", self.blocks))
            }
        }
    }

    fn has_bias(&self, config: &DecoderConfig, slot: Slot) -> bool {
        let may = if slot.is_norm() { self.norm == NormKind::Layer } else { !slot.is_embedding() };
        may && match self.bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Chosen => !config.no_bias,
        }
    }

    /// Returns the modules of a block of a model of this shape.
    fn block(&self, config: &DecoderConfig) -> impl Iterator<Item = (Slot, &'static str)> {
        let qk_norm = config.qk_norm;
        self.block.iter().copied().filter(move |(slot, _)| qk_norm || !matches!(slot, Slot::QNorm | Slot::KNorm))
    }

    /// Returns the weight and the bias of the module `name`.
    fn module_tensors(&self, config: &DecoderConfig, slot: Slot, name: &str, role: TensorRole) -> Vec<TensorSpec> {
        let (shape, init) = (self.shape(config, slot), self.init(config, slot));
        let bias = self.has_bias(config, slot).then(|| TensorSpec {
            name: format!("{name}.bias"),
            shape: vec![out_width(config, slot)],
            role,
            init: Init::Zeros,
            tied_to: None,
        });
        let weight = TensorSpec { name: format!("{name}.weight"), shape, role, init, tied_to: None };
        std::iter::once(weight).chain(bias).collect()
    }

    fn shape(&self, config: &DecoderConfig, slot: Slot) -> Vec<u64> {
        let out = out_width(config, slot);
        match (in_width(config, slot), self.layout) {
            (None, _) => vec![out],
            (Some(input), _) if slot.is_embedding() => vec![out, input],
            (Some(input), MatrixLayout::OutIn) => vec![out, input],
            (Some(input), MatrixLayout::InOut) => vec![input, out],
        }
    }

    fn init(&self, config: &DecoderConfig, slot: Slot) -> Init {
        let into_residual = matches!(slot, Slot::AttentionOut | Slot::Down);
        match slot.is_norm() {
            true => Init::Ones,
            false if into_residual && self.scaled_residual_init => {
                Init::Normal { std: config.init_std / f64::from(2 * config.n_layers.0).sqrt() }
            }
            false => Init::Normal { std: config.init_std },
        }
    }

    /// Returns all tensors of a model of this shape, including tied ones, in forward order.
    pub(crate) fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let mut all =
            self.module_tensors(config, Slot::TokenEmbedding, self.token_embedding, TensorRole::TokenEmbedding);
        if let Some((name, _)) = self.position_embedding {
            all.extend(self.module_tensors(config, Slot::PositionEmbedding, name, TensorRole::PositionEmbedding));
        }
        for layer in 0..config.n_layers.0 {
            for (slot, name) in self.block(config) {
                let Some(part) = slot.part() else { continue };
                let role = TensorRole::Block { layer, part };
                all.extend(self.module_tensors(config, slot, &format!("{}{layer}.{name}", self.blocks), role));
            }
        }
        all.extend(self.module_tensors(config, Slot::FinalNorm, self.final_norm, TensorRole::FinalNorm));
        let mut head = self.module_tensors(config, Slot::Head, self.head, TensorRole::Head);
        for tensor in &mut head {
            tensor.tied_to = config.tied_head.then(|| format!("{}.weight", self.token_embedding));
        }
        all.append(&mut head);
        all
    }

    /// Returns the meaning of `name` in a file of this model. Files of the bare model have no
    /// prefix, and some writers store a tied head as a second copy.
    pub(crate) fn name_in_file(&self, config: &DecoderConfig, name: &str) -> NameInFile {
        let head = format!("{}.weight", self.head);
        if name == head || self.head_alias == Some(name) {
            return NameInFile::Tensor(head);
        }
        let canonical = if name.starts_with(self.prefix) { name.to_owned() } else { format!("{}{name}", self.prefix) };
        let inside = canonical.strip_prefix(self.blocks).and_then(|rest| rest.split_once('.'));
        let inside = inside.and_then(|(layer, rest)| Some((layer.parse::<u32>().ok()?, rest)));
        if let Some((_, rest)) = inside
            && let Some((_, why)) = self.buffers.iter().find(|(buffer, _)| *buffer == rest)
        {
            return NameInFile::NotNeeded(why);
        }
        let is = |slot: Slot, module: &str, name: &str| match name.strip_prefix(module) {
            Some(".weight") => true,
            Some(".bias") => self.has_bias(config, slot),
            _ => false,
        };
        let known = is(Slot::TokenEmbedding, self.token_embedding, &canonical)
            || self.position_embedding.is_some_and(|(module, _)| is(Slot::PositionEmbedding, module, &canonical))
            || is(Slot::FinalNorm, self.final_norm, &canonical)
            || inside.is_some_and(|(layer, rest)| {
                layer < config.n_layers.0 && self.block(config).any(|(slot, module)| is(slot, module, rest))
            });
        if known { NameInFile::Tensor(canonical) } else { NameInFile::Unknown }
    }
}

fn out_width(config: &DecoderConfig, slot: Slot) -> u64 {
    let heads = |n: u32| u64::from(n) * u64::from(config.head_dim);
    let (q, kv) = (heads(config.n_heads), heads(config.n_kv_heads));
    match slot {
        Slot::TokenEmbedding | Slot::Head => config.vocab_size.into(),
        Slot::PositionEmbedding => u64::from(config.max_positions) + u64::from(config.family.table().first_position()),
        Slot::AttentionNorm | Slot::MlpNorm | Slot::FinalNorm | Slot::AttentionOut | Slot::Down => {
            config.d_model.into()
        }
        Slot::Qkv => q + 2 * kv,
        Slot::Q | Slot::QNorm => q,
        Slot::K | Slot::V | Slot::KNorm => kv,
        Slot::Gate | Slot::Up => config.d_ff.into(),
    }
}

/// The input width of a module. `None` for norms.
fn in_width(config: &DecoderConfig, slot: Slot) -> Option<u64> {
    match slot {
        Slot::AttentionNorm | Slot::MlpNorm | Slot::FinalNorm | Slot::QNorm | Slot::KNorm => None,
        Slot::AttentionOut => Some(u64::from(config.n_heads) * u64::from(config.head_dim)),
        Slot::Down => Some(config.d_ff.into()),
        Slot::TokenEmbedding
        | Slot::PositionEmbedding
        | Slot::Qkv
        | Slot::Q
        | Slot::K
        | Slot::V
        | Slot::Gate
        | Slot::Up
        | Slot::Head => Some(config.d_model.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_stand_in_the_order_of_their_families() {
        for family in Family::ALL {
            let table = family.table();
            assert_eq!(table.family, family);
            assert!(table.blocks.starts_with(table.prefix) && table.token_embedding.starts_with(table.prefix));
            for (place, (slot, _)) in table.block.iter().enumerate() {
                assert!(slot.part().is_some(), "{family}: {slot:?} belongs to no block");
                assert!(table.block[..place].iter().all(|(other, _)| other != slot), "{family}: {slot:?} occurs twice");
            }
        }
    }
}
