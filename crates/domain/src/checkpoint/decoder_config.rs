//! One shape for every decoder family, and the tensors that a model of that shape has.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{gpt2, llama};
use crate::id::LayerCount;
use crate::violation::Violations;

#[cfg(test)]
mod tests;

/// Most transformer blocks of a model.
pub const MAX_LAYERS: u32 = 1024;
/// Largest width, vocabulary or length: sizes of such tensors, and their sums, fit in 64 bits.
pub const MAX_DIMENSION: u32 = 1 << 20;

/// A family of checkpoints: how its `config.json` and its tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Learned positions, LayerNorm, tanh-GELU, biases, tied head.
    Gpt2,
    /// RoPE, RMSNorm, SwiGLU, grouped-query attention, no biases.
    Llama,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 2] = [Self::Gpt2, Self::Llama];

    /// `model_type` in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
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
}

/// Why a `config.json` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Another family than the known ones.
    #[error("config.json: model_type `{found}` is not supported; supported are gpt2 and llama")]
    UnknownFamily {
        /// What it says.
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
    /// Either norm.
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
    /// A buffer that is computed, not learned: dropped.
    Buffer,
    /// Nothing that this family has.
    Unknown,
}

impl DecoderConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key; anything this project would compute wrongly is refused.
    pub fn from_hf(config: &Value) -> Result<Self, ConfigError> {
        let (config, layers_key) = match config.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => (gpt2::from_hf(config)?, "n_layer"),
            Some("llama") => (llama::from_hf(config)?, "num_hidden_layers"),
            Some(found) => return Err(ConfigError::UnknownFamily { found: found.to_owned() }),
            None => return Err(bad_key("model_type", "is missing")),
        };
        if config.n_layers.0 > MAX_LAYERS {
            return Err(bad_key(layers_key, &format!("is {}; at most {MAX_LAYERS} are supported", config.n_layers)));
        }
        if u64::from(config.n_heads) * u64::from(config.head_dim) > u64::from(MAX_DIMENSION) {
            return Err(bad_key("head_dim", &format!("times the heads is more than {MAX_DIMENSION}")));
        }
        Ok(config)
    }

    /// A `config.json` for a model that has none to start from.
    pub fn to_hf(&self) -> Value {
        match self.family {
            Family::Gpt2 => gpt2::to_hf(self),
            Family::Llama => llama::to_hf(self),
        }
    }

    /// A copy of the reference's `config.json` with another depth; every other key as it was.
    pub fn hf_with_layers(config: &Value, family: Family, layers: LayerCount) -> Value {
        let mut config = config.clone();
        let key = match family {
            Family::Gpt2 => "n_layer",
            Family::Llama => "num_hidden_layers",
        };
        if let Some(object) = config.as_object_mut() {
            object.insert(key.to_owned(), layers.0.into());
            // Code that is not shipped cannot be loaded.
            object.remove("auto_map");
        }
        config
    }

    /// Every tensor, tied ones included, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self.family {
            Family::Gpt2 => gpt2::tensors(self),
            Family::Llama => llama::tensors(self),
        }
    }

    /// What `name` in a file of this model means.
    pub fn name_in_file(&self, name: &str) -> NameInFile {
        match self.family {
            Family::Gpt2 => gpt2::name_in_file(self, name),
            Family::Llama => llama::name_in_file(self, name),
        }
    }

    /// The canonical name that the block tensor `spec` has in layer `layer`; other tensors keep theirs.
    pub fn name_in_layer(&self, spec: &TensorSpec, layer: u32) -> String {
        let TensorRole::Block { layer: own, .. } = spec.role else { return spec.name.clone() };
        let prefix = match self.family {
            Family::Gpt2 => "transformer.h.",
            Family::Llama => "model.layers.",
        };
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

/// The shape of a model to be made, as a recipe says it; the vocabulary comes from the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Its family.
    pub family: Family,
    /// Transformer blocks.
    pub n_layers: LayerCount,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; as many as query heads when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<u32>,
    /// Width of the MLP; 4 d_model when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<u32>,
    /// Longest sequence.
    pub max_positions: u32,
    /// RoPE's base (llama); 10000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Tie the head to the token embedding; true for gpt2, false for llama when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied_head: Option<bool>,
    /// GPT-2's `scale_attn_by_inverse_layer_idx`, which the paper's own runs set.
    #[serde(default)]
    pub inverse_layer_scale: bool,
}

impl Architecture {
    /// Every bad field.
    ///
    /// # Errors
    /// The violations, fields named relative to this spec.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        v.check((1..=1024).contains(&self.n_layers.0), "n_layers", "must be 1 to 1024");
        v.check((1..=65_536).contains(&self.d_model), "d_model", "must be 1 to 65536");
        v.check((1..=1024).contains(&self.n_heads), "n_heads", "must be 1 to 1024");
        if self.n_heads >= 1 {
            v.check(
                self.d_model.is_multiple_of(self.n_heads),
                "d_model",
                format!("must be a multiple of n_heads ({})", self.n_heads),
            );
            let kv = self.n_kv_heads.unwrap_or(self.n_heads);
            v.check(
                kv >= 1 && self.n_heads.is_multiple_of(kv),
                "n_kv_heads",
                format!("must divide n_heads ({})", self.n_heads),
            );
        }
        v.check(self.d_ff.is_none_or(|d| (1..=1 << 20).contains(&d)), "d_ff", "must be 1 to 1048576");
        v.check((1..=1 << 20).contains(&self.max_positions), "max_positions", "must be 1 to 1048576");
        v.check(self.rope_theta.is_none_or(|t| t.is_finite() && t > 0.0), "rope_theta", "must be above 0");
        match self.family {
            Family::Gpt2 => {
                v.check(
                    self.n_kv_heads.is_none_or(|n| n == self.n_heads),
                    "n_kv_heads",
                    "must equal n_heads in the gpt2 family",
                );
                v.check(self.rope_theta.is_none(), "rope_theta", "belongs to the llama family");
                v.check(self.tied_head != Some(false), "tied_head", "must be true in the gpt2 family");
            }
            Family::Llama => {
                v.check(!self.inverse_layer_scale, "inverse_layer_scale", "belongs to the gpt2 family");
                v.check(
                    self.n_heads == 0 || (self.d_model / self.n_heads).is_multiple_of(2),
                    "d_model",
                    "d_model / n_heads must be even for rotary positions",
                );
            }
        }
        v.into_result()
    }

    /// The full shape, for a tokenizer of `vocab_size` entries.
    pub fn config(&self, vocab_size: u32) -> DecoderConfig {
        let llama = self.family == Family::Llama;
        DecoderConfig {
            family: self.family,
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads.unwrap_or(self.n_heads),
            head_dim: self.d_model / self.n_heads.max(1),
            d_ff: self.d_ff.unwrap_or(4 * self.d_model),
            vocab_size,
            max_positions: self.max_positions,
            norm_eps: if llama { 1e-6 } else { 1e-5 },
            rope_theta: llama.then(|| self.rope_theta.unwrap_or(10_000.0)),
            tied_head: self.tied_head.unwrap_or(!llama),
            inverse_layer_scale: self.inverse_layer_scale,
            init_std: 0.02,
        }
    }
}

/// Reads a key that must be a positive whole number.
pub(super) fn required_u32(config: &Value, key: &str) -> Result<u32, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Err(bad_key(key, "is missing")),
        Some(_) => optional_u32(config, key)?.ok_or_else(|| bad_key(key, "is missing")),
    }
}

/// Reads a key that is absent, null, or a positive whole number.
pub(super) fn optional_u32(config: &Value, key: &str) -> Result<Option<u32>, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=u64::from(MAX_DIMENSION)).contains(&n) => Ok(Some(n as u32)),
            _ => Err(bad_key(key, &format!("is {value}, not a whole number from 1 to {MAX_DIMENSION}"))),
        },
    }
}

/// Reads a number, or takes `default` where it is absent or null.
pub(super) fn float_or(config: &Value, key: &str, default: f64) -> Result<f64, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(bad_key(key, &format!("is {value}, not a positive number"))),
        },
    }
}

/// Reads a truth value, or takes `default` where it is absent or null.
pub(super) fn bool_or(config: &Value, key: &str, default: bool) -> Result<bool, ConfigError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| bad_key(key, &format!("is {value}, not true or false"))),
    }
}

pub(super) fn bad_key(key: &str, problem: &str) -> ConfigError {
    ConfigError::Key { key: key.to_owned(), problem: problem.to_owned() }
}
