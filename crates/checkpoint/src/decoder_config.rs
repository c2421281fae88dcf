//! One shape for every decoder family, and the tensors that a model of that shape has.

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

/// Most transformer blocks of a model.
pub const MAX_LAYERS: u32 = 1024;
/// Largest width, vocabulary or length: sizes of such tensors, and their sums, fit in 64 bits.
pub const MAX_DIMENSION: u32 = 1 << 20;

named! {
    /// A family of checkpoints: how its `config.json` and its tensors are named.
    pub enum Family {
        /// Learned positions, LayerNorm, tanh-GELU, biases (or none, `no_bias`), tied head.
        Gpt2 = "gpt2",
        /// RoPE, RMSNorm, SwiGLU, grouped-query attention, no biases.
        Llama = "llama",
        /// Pythia: RoPE on a part of each head, attention and MLP side by side, LayerNorm, GELU, biases.
        GptNeox = "gpt_neox",
        /// Learned positions from row 2 on, LayerNorm, ReLU, biases, tied head.
        Opt = "opt",
        /// Hugging Face's MPT: ALiBi, LayerNorm, GELU, no biases, tied head.
        Mpt = "mpt",
        /// MPT-1.3B's own code: as MPT under other names, and LayerNorm over queries and keys.
        MosaicGpt = "mosaic_gpt",
    }
}

impl Family {
    /// Every family as users are told: `gpt2, llama, ... and mosaic_gpt`.
    pub fn list() -> String {
        let [first @ .., last] = Self::ALL.map(Self::as_str);
        format!("{} and {last}", first.join(", "))
    }
}

/// The shape of a decoder, whatever its family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Its family.
    pub family: Family,
    /// Transformer blocks.
    pub n_layers: LayerCount,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of the MLP.
    pub d_ff: u32,
    /// Rows of the token embedding.
    pub vocab_size: u32,
    /// Longest sequence; rows of a learned position embedding.
    pub max_positions: u32,
    /// Epsilon of LayerNorm or RMSNorm.
    pub norm_eps: f64,
    /// RoPE's base; none with learned positions.
    pub rope_theta: Option<f64>,
    /// The head is the token embedding.
    pub tied_head: bool,
    /// GPT-2's `scale_attn_by_inverse_layer_idx`: scores of block i are divided by i + 1 as well.
    pub inverse_layer_scale: bool,
    /// Standard deviation of fresh weights.
    pub init_std: f64,
    /// GPT-2 without biases, in LayerNorms too (nanoGPT's `bias=False`, the paper's own runs). The other families
    /// have no choice: llama, mpt and mosaic_gpt never have biases, gpt_neox and opt always.
    #[serde(default)]
    pub no_bias: bool,
    /// Leading dimensions of a head that RoPE turns (gpt_neox); all of them when absent.
    #[serde(default)]
    pub rotary_dims: Option<u32>,
    /// Attention and MLP both read the block's input (gpt_neox's `use_parallel_residual`).
    #[serde(default)]
    pub parallel_residual: bool,
    /// GELU in its tanh form where the family's files choose (gpt_neox); gpt2 always has it.
    #[serde(default)]
    pub tanh_gelu: bool,
    /// Steepness of ALiBi (mpt, mosaic_gpt); absent without it.
    #[serde(default)]
    pub alibi_bias_max: Option<u32>,
    /// LayerNorm over the whole width of queries and of keys (mosaic_gpt's `attn_qk_ln`).
    #[serde(default)]
    pub qk_norm: bool,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Another family than the known ones.
    #[error("config.json: model_type `{found}` is not supported; supported are {}", Family::list())]
    UnknownFamily {
        /// What it says.
        found: String,
    },
    /// Not even an object.
    #[error("config.json: is {found}, not a JSON object")]
    NotAnObject {
        /// What it is.
        found: String,
    },
    /// A key that must be there is not, or is of the wrong type.
    #[error("config.json: `{key}` {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Which part of a model a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// Rows are tokens.
    TokenEmbedding,
    /// Rows are positions.
    PositionEmbedding,
    /// Part of a transformer block.
    Block {
        /// Its index, from 0.
        layer: u32,
        /// Which part.
        part: BlockPart,
    },
    /// The norm after the last block.
    FinalNorm,
    /// The prediction head.
    Head,
}

/// Part of a transformer block.
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

/// How a fresh tensor is filled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// A normal distribution of mean 0.
    Normal {
        /// Its standard deviation.
        std: f64,
    },
}

/// One tensor that a model of a given shape has.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Its canonical name: what `save_pretrained` writes.
    pub name: String,
    /// Its shape, in the file's own layout (GPT-2's Conv1D weights are [in, out]).
    pub shape: Vec<u64>,
    /// Which part of the model it is.
    pub role: TensorRole,
    /// How it is filled when it is fresh.
    pub init: Init,
    /// Name of the tensor it is tied to; such a tensor is not in the file.
    pub tied_to: Option<String>,
}

/// What a tensor name in a file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameInFile {
    /// This canonical tensor.
    Tensor(String),
    /// Nothing that a language model needs, and why: a buffer that is computed, a head for another task.
    NotNeeded(&'static str),
    /// Nothing that this family has.
    Unknown,
}

impl DecoderConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key; anything this project would compute wrongly is refused.
    pub fn from_hf(config: &Value) -> Result<Self, ConfigError> {
        if !config.is_object() {
            return Err(ConfigError::NotAnObject { found: shown(config) });
        }
        let config = &*keys::unaliased(config);
        keys::refuse_unless(config, "is_causal", &true.into())?;
        let per_layer = config.get("per_layer_config").filter(|layers| !layers.is_null());
        if per_layer.is_some_and(|layers| layers.as_object().is_none_or(|layers| !layers.is_empty())) {
            return Err(bad_key("per_layer_config", "gives layers settings of their own, which is not supported"));
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
            return Err(bad_key("head_dim", &format!("times the heads is more than {MAX_DIMENSION}")));
        }
        Ok(config)
    }

    /// A model of `family` with nothing special, and no size yet.
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

    /// A `config.json` for a model that has none to start from.
    pub fn to_hf(&self) -> Value {
        (self.family.table().to_hf)(self)
    }

    /// Every tensor, tied ones included, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.family.table().tensors(self)
    }

    /// What `name` in a file of this model means.
    pub fn name_in_file(&self, name: &str) -> NameInFile {
        match tensor_names::not_needed(name) {
            Some(why) => NameInFile::NotNeeded(why),
            None => self.family.table().name_in_file(self, name),
        }
    }

    /// The canonical name that the block tensor `spec` has in layer `layer`; other tensors keep theirs.
    pub fn name_in_layer(&self, spec: &TensorSpec, layer: u32) -> String {
        let TensorRole::Block { layer: own, .. } = spec.role else { return spec.name.clone() };
        let prefix = self.family.table().blocks;
        match spec.name.strip_prefix(&format!("{prefix}{own}.")) {
            Some(rest) => format!("{prefix}{layer}.{rest}"),
            None => spec.name.clone(),
        }
    }

    /// Learned numbers, tied ones counted once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().filter(|t| t.tied_to.is_none()).map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Learned numbers of the blocks alone.
    pub fn block_parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .filter(|t| matches!(t.role, TensorRole::Block { .. }))
            .map(|t| t.shape.iter().product::<u64>())
            .sum()
    }

    /// The same shape at another depth.
    pub fn with_layers(&self, layers: LayerCount) -> Self {
        Self { n_layers: layers, ..self.clone() }
    }
}
