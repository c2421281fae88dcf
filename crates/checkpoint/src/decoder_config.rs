//! One shape for all decoder families, and the tensors of a model of that shape.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::safetensors_header::shortened;
use super::tensor_names;
use inheritune_ids::id::LayerCount;
use inheritune_ids::named;

mod architecture;
pub(crate) mod keys;
#[cfg(test)]
mod tests;

pub use architecture::Architecture;
pub(crate) use keys::{bad_key, shown};

/// Maximum number of transformer blocks of a model.
pub const MAX_LAYERS: u32 = 1024;
/// Maximum width, vocabulary size or sequence length. The sizes of such tensors, and their sums,
/// fit in 64 bits.
pub const MAX_DIMENSION: u32 = 1 << 20;

named! {
    /// A family of checkpoints, which determines the names in its `config.json` and of its tensors.
    pub enum Family {
        /// Learned positions, LayerNorm, tanh-GELU, biases (or none, `no_bias`), tied head.
        Gpt2 = "gpt2",
        /// RoPE, RMSNorm, SwiGLU, grouped-query attention, no biases.
        Llama = "llama",
        /// Pythia: RoPE on part of each head, parallel attention and MLP, LayerNorm, GELU, biases.
        GptNeox = "gpt_neox",
        /// Learned positions starting at row 2, LayerNorm, ReLU, biases, tied head.
        Opt = "opt",
        /// Hugging Face's MPT: ALiBi, LayerNorm, GELU, no biases, tied head.
        Mpt = "mpt",
        /// MPT-1.3B's own code: like MPT with other names, and LayerNorm over queries and keys.
        MosaicGpt = "mosaic_gpt",
    }
}

impl Family {
    /// Returns all families as a phrase for messages: `gpt2, llama, ... and mosaic_gpt`.
    pub fn list() -> String {
        let [first @ .., last] = Self::ALL.map(Self::as_str);
        format!("{} and {last}", first.join(", "))
    }
}

/// The shape of a decoder of any family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// The family.
    pub family: Family,
    /// Number of transformer blocks.
    pub n_layers: LayerCount,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Number of query heads.
    pub n_heads: u32,
    /// Number of key and value heads. Divides `n_heads`.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of the MLP.
    pub d_ff: u32,
    /// Rows of the token embedding.
    pub vocab_size: u32,
    /// Maximum sequence length, which is also the number of rows of a learned position embedding.
    pub max_positions: u32,
    /// Epsilon of LayerNorm or RMSNorm.
    pub norm_eps: f64,
    /// RoPE's base. `None` with learned positions.
    pub rope_theta: Option<f64>,
    /// Whether the head is the token embedding.
    pub tied_head: bool,
    /// GPT-2's `scale_attn_by_inverse_layer_idx`: the attention scores of block i are also divided
    /// by i + 1.
    pub inverse_layer_scale: bool,
    /// Standard deviation of freshly initialised weights.
    pub init_std: f64,
    /// GPT-2 without biases, also in its LayerNorms (nanoGPT's `bias=False`, used in the paper's
    /// runs). The other families have no such choice: llama, mpt and mosaic_gpt never have biases,
    /// gpt_neox and opt always do.
    #[serde(default)]
    pub no_bias: bool,
    /// Number of leading dimensions of a head that RoPE rotates (gpt_neox). All of them if absent.
    #[serde(default)]
    pub rotary_dims: Option<u32>,
    /// Whether attention and MLP both read the block's input (gpt_neox's `use_parallel_residual`).
    #[serde(default)]
    pub parallel_residual: bool,
    /// Whether GELU has its tanh form, in the family whose files choose it (gpt_neox). gpt2 always
    /// has it.
    #[serde(default)]
    pub tanh_gelu: bool,
    /// ALiBi's maximum bias (mpt, mosaic_gpt). Absent without ALiBi.
    #[serde(default)]
    pub alibi_bias_max: Option<u32>,
    /// Whether there is a LayerNorm over the whole width of queries and of keys (mosaic_gpt's
    /// `attn_qk_ln`).
    #[serde(default)]
    pub qk_norm: bool,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The family is unknown.
    #[error("config.json: model_type `{found}` is not supported; supported are {}", Family::list())]
    UnknownFamily {
        /// The value of `model_type`.
        found: String,
    },
    /// The file is not a JSON object.
    #[error("config.json: is {found}, not a JSON object")]
    NotAnObject {
        /// The value found instead.
        found: String,
    },
    /// A required key is missing, or a key has an unsupported value.
    #[error("config.json: `{key}` {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The part of a model that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// The token embedding, one row per token.
    TokenEmbedding,
    /// The position embedding, one row per position.
    PositionEmbedding,
    /// A part of a transformer block.
    Block {
        /// The block's index, starting at 0.
        layer: u32,
        /// The part of the block.
        part: BlockPart,
    },
    /// The norm after the last block.
    FinalNorm,
    /// The prediction head.
    Head,
}

/// The kind of a block's module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockPart {
    /// Attention projections.
    Attention,
    /// MLP projections.
    Mlp,
    /// Any norm.
    Norm,
}

/// How a fresh tensor is initialised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// A normal distribution with mean 0.
    Normal {
        /// Its standard deviation.
        std: f64,
    },
}

/// A tensor of a model with a given shape.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The canonical name: the one that `save_pretrained` writes.
    pub name: String,
    /// The shape, in the file's own layout (GPT-2's Conv1D weights are [in, out]).
    pub shape: Vec<u64>,
    /// The part of the model it belongs to.
    pub role: TensorRole,
    /// How it is initialised if it is fresh.
    pub init: Init,
    /// The name of the tensor it is tied to. A tied tensor is not in the file.
    pub tied_to: Option<String>,
}

/// The meaning of a tensor name in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameInFile {
    /// The tensor with this canonical name.
    Tensor(String),
    /// A tensor that a language model does not need, and why: a computed buffer, or a head for
    /// another task.
    NotNeeded(&'static str),
    /// A name that this family does not have.
    Unknown,
}

impl DecoderConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key. Configurations that this project would compute incorrectly
    /// are rejected.
    pub fn from_hf(config: &Value) -> Result<Self, ConfigError> {
        if !config.is_object() {
            return Err(ConfigError::NotAnObject { found: shown(config) });
        }
        let config = &*keys::unaliased(config);
        keys::refuse_unless(config, "is_causal", &true.into())?;
        let per_layer = config.get("per_layer_config").filter(|layers| !layers.is_null());
        if per_layer.is_some_and(|layers| layers.as_object().is_none_or(|layers| !layers.is_empty())) {
            return Err(bad_key("per_layer_config", "has settings for single layers, which is not supported"));
        }
        let family = match config.get("model_type").and_then(Value::as_str) {
            Some(name) => Family::parse(name).ok_or_else(|| ConfigError::UnknownFamily { found: shortened(name) })?,
            None => return Err(bad_key("model_type", "is missing")),
        };
        let table = family.table();
        let config = (table.from_hf)(config)?;
        if config.n_layers.0 > MAX_LAYERS {
            let problem = format!("is {}; at most {MAX_LAYERS} are supported", config.n_layers);
            return Err(bad_key(table.layers_key, &problem));
        }
        if u64::from(config.n_heads) * u64::from(config.head_dim) > u64::from(MAX_DIMENSION) {
            return Err(bad_key("head_dim", &format!("times the number of heads is more than {MAX_DIMENSION}")));
        }
        Ok(config)
    }

    /// Returns a shape of `family` without options and without sizes.
    pub(crate) fn plain(family: Family) -> Self {
        Self {
            family,
            n_layers: LayerCount(0),
            d_model: 0,
            n_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            d_ff: 0,
            vocab_size: 0,
            max_positions: 0,
            norm_eps: 1e-5,
            rope_theta: None,
            tied_head: true,
            inverse_layer_scale: false,
            init_std: 0.02,
            no_bias: false,
            rotary_dims: None,
            parallel_residual: false,
            tanh_gelu: false,
            alibi_bias_max: None,
            qk_norm: false,
        }
    }

    /// Returns a `config.json` for a model without an existing one.
    pub fn to_hf(&self) -> Value {
        (self.family.table().to_hf)(self)
    }

    /// Returns all tensors, including tied ones, in forward order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.family.table().tensors(self)
    }

    /// Returns the meaning of `name` in a file of this model.
    pub fn name_in_file(&self, name: &str) -> NameInFile {
        match tensor_names::not_needed(name) {
            Some(why) => NameInFile::NotNeeded(why),
            None => self.family.table().name_in_file(self, name),
        }
    }

    /// Returns the canonical name of the block tensor `spec` in layer `layer`. Other tensors keep
    /// their name.
    pub fn name_in_layer(&self, spec: &TensorSpec, layer: u32) -> String {
        let TensorRole::Block { layer: own, .. } = spec.role else { return spec.name.clone() };
        let prefix = self.family.table().blocks;
        match spec.name.strip_prefix(&format!("{prefix}{own}.")) {
            Some(rest) => format!("{prefix}{layer}.{rest}"),
            None => spec.name.clone(),
        }
    }

    /// Returns the number of parameters. Tied ones are counted once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().filter(|t| t.tied_to.is_none()).map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Returns the number of parameters of the blocks.
    pub fn block_parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .filter(|t| matches!(t.role, TensorRole::Block { .. }))
            .map(|t| t.shape.iter().product::<u64>())
            .sum()
    }

    /// Returns the same shape with another number of layers.
    pub fn with_layers(&self, layers: LayerCount) -> Self {
        Self { n_layers: layers, ..self.clone() }
    }
}
