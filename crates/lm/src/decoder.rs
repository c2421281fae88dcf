//! One decoder for every family: the same pre-norm residual stream with the family's own parts.
//!
//! Shapes: B batch, T time, N = B * T, D width of the residual stream, V vocabulary.
#![allow(non_snake_case)]

use std::collections::HashMap;
use std::path::Path;

use inheritune_domain::checkpoint::decoder_config::{ConfigError, DecoderConfig, Family};
use tch::{Device, Kind, Reduction, TchError, Tensor, no_grad};

use crate::attention::{Attention, Projections, Rope};
use crate::error::LmError;
use crate::files;
use crate::layers::{Linear, Mlp, Norm};
use crate::weights;

/// A learned tensor and its canonical name.
#[derive(Debug)]
pub struct Parameter {
    /// Hugging Face's name of it, as `save_pretrained` writes it.
    pub name: String,
    /// Its values, fp32, in the file's own layout; a leaf that requires a gradient.
    pub tensor: Tensor,
}

/// A decoder language model with its weights.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    parameters: Vec<Parameter>,
    token_embedding_VD: Tensor,
    /// None with rotary positions.
    position_embedding_TD: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: Norm,
    head_VD: Tensor,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Decoder {
    /// Reads a checkpoint folder: `config.json`, and `model.safetensors` or the shards of its index.
    ///
    /// # Errors
    /// A file that is missing, truncated or of an unknown family; a tensor that is missing, unknown, of
    /// another shape, or of a type other than F32, F16 and BF16. The error names the file and the tensor.
    pub fn load(dir: &Path, device: Device) -> Result<Self, LmError> {
        let path = dir.join("config.json");
        let json: serde_json::Value = files::read_json(&path)?;
        let config = DecoderConfig::from_hf(&json).map_err(|error| match error {
            ConfigError::UnknownFamily { found } => {
                LmError::file(&path, format!("model_type `{found}` is not supported"))
            }
            ConfigError::Key { key, problem } => LmError::file(&path, format!("`{key}` {problem}")),
        })?;
        Self::from_weights(config, dir, device)
    }

    /// Reads the weights in `dir`, which needs no `config.json`: how a saved training state is taken up.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn from_weights(config: DecoderConfig, dir: &Path, device: Device) -> Result<Self, LmError> {
        let parameters = weights::read(dir, &config, device)?;
        Ok(assemble(config, device, parameters)?)
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Every learned tensor, in the order of the forward pass; a tied head is not there a second time.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The scores of the next token at every position: fp32 [B, T, V].
    ///
    /// # Errors
    /// [`LmError::BadTokens`] unless `tokens_BT` is int64 [B, T], T is 1 to `max_positions`, and every id
    /// is below the vocabulary. Ids are looked at where that is cheap, on the CPU; pass tokens from there,
    /// they are moved to the model's device.
    pub fn logits(&self, tokens_BT: &Tensor) -> Result<Tensor, LmError> {
        let (batch, time) = self.check_tokens("input", tokens_BT)?;
        let logits_NV = self.logits_flat(tokens_BT, (batch, time))?;
        Ok(logits_NV.f_view([batch, time, -1])?)
    }

    /// Cross-entropy at every position, nats: fp32 [B, T].
    ///
    /// # Errors
    /// As [`Decoder::logits`], for inputs and targets; both must be of one shape.
    pub fn losses(&self, inputs_BT: &Tensor, targets_BT: &Tensor) -> Result<Tensor, LmError> {
        let losses_N = self.cross_entropy((inputs_BT, targets_BT), Reduction::None)?;
        Ok(losses_N.f_view_as(targets_BT)?)
    }

    /// Mean cross-entropy over all positions, nats: a differentiable scalar.
    ///
    /// # Errors
    /// As [`Decoder::losses`].
    pub fn loss(&self, inputs_BT: &Tensor, targets_BT: &Tensor) -> Result<Tensor, LmError> {
        self.cross_entropy((inputs_BT, targets_BT), Reduction::Mean)
    }

    /// Writes `model.safetensors` (fp32, tied tensors once) into `dir`, whole or not at all. The caller
    /// carries `config.json` and the tokenizer over.
    ///
    /// # Errors
    /// [`LmError::Io`] naming the file.
    pub fn save(&self, dir: &Path) -> Result<(), LmError> {
        let tensors = self.parameters.iter().map(|parameter| (parameter.name.clone(), &parameter.tensor));
        // transformers refuses a file that does not say which framework wrote it.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        weights::write_named(&dir.join(weights::SINGLE_FILE), tensors, metadata)
    }

    fn cross_entropy(
        &self,
        (inputs_BT, targets_BT): (&Tensor, &Tensor),
        reduction: Reduction,
    ) -> Result<Tensor, LmError> {
        let shape = self.check_tokens("input", inputs_BT)?;
        if self.check_tokens("target", targets_BT)? != shape {
            let problem = format!(
                "inputs are {:?} and targets {:?}; they must be of one shape",
                inputs_BT.size(),
                targets_BT.size()
            );
            return Err(LmError::BadTokens { problem });
        }
        let logits_NV = self.logits_flat(inputs_BT, shape)?;
        let targets_N = targets_BT.f_to_device(self.device)?.f_reshape([-1])?;
        Ok(logits_NV.f_cross_entropy_loss::<&Tensor>(&targets_N, None, reduction, IGNORED_TARGET, 0.0)?)
    }

    /// [B, T] of tokens that this model can take.
    fn check_tokens(&self, what: &str, tokens_BT: &Tensor) -> Result<(i64, i64), LmError> {
        let bad = |problem: String| Err(LmError::BadTokens { problem });
        let size = tokens_BT.size();
        let &[batch, time] = size.as_slice() else {
            return bad(format!("{what} tokens have shape {size:?}; [batch, time] is needed"));
        };
        if tokens_BT.f_kind()? != Kind::Int64 {
            return bad(format!("{what} tokens are {:?}; Int64 is needed", tokens_BT.f_kind()?));
        }
        if batch < 1 || time < 1 || time > i64::from(self.config.max_positions) {
            let max = self.config.max_positions;
            return bad(format!(
                "{what} tokens have shape {size:?}; a sequence holds 1 to {max} tokens (max_positions)"
            ));
        }
        if tokens_BT.device() == Device::Cpu {
            let (low, high) = no_grad(|| Ok::<_, TchError>((tokens_BT.f_min()?, tokens_BT.f_max()?)))?;
            let (low, high) = (low.f_int64_value(&[])?, high.f_int64_value(&[])?);
            if low < 0 || high >= i64::from(self.config.vocab_size) {
                let id = if low < 0 { low } else { high };
                return bad(format!(
                    "{what} token {id} is outside the model's vocabulary of {} tokens",
                    self.config.vocab_size
                ));
            }
        }
        Ok((batch, time))
    }

    fn logits_flat(&self, tokens_BT: &Tensor, (batch, time): (i64, i64)) -> Result<Tensor, TchError> {
        let x_ND = self.hidden(tokens_BT, (batch, time))?;
        x_ND.f_linear::<&Tensor>(&self.head_VD, None)
    }

    /// The residual stream after the final norm.
    fn hidden(&self, tokens_BT: &Tensor, (batch, time): (i64, i64)) -> Result<Tensor, TchError> {
        let tokens_BT = tokens_BT.f_to_device(self.device)?;
        let mut x_BTD = Tensor::f_embedding(&self.token_embedding_VD, &tokens_BT, NO_PADDING, false, false)?;
        if let Some(position_embedding_TD) = &self.position_embedding_TD {
            x_BTD = x_BTD.f_add(&position_embedding_TD.f_narrow(0, 0, time)?)?;
        }
        let rope = match self.config.rope_theta {
            Some(theta) => Some(no_grad(|| Rope::new(theta, self.config.head_dim.into(), time, self.device))?),
            None => None,
        };
        let mut x_ND = x_BTD.f_view([batch * time, -1])?;
        for block in &self.blocks {
            x_ND =
                x_ND.f_add(&block.attention.forward(&block.attention_norm.forward(&x_ND)?, batch, rope.as_ref())?)?;
            x_ND = x_ND.f_add(&block.mlp.forward(&block.mlp_norm.forward(&x_ND)?)?)?;
        }
        self.final_norm.forward(&x_ND)
    }
}

/// libtorch skips targets of this value; `check_tokens` lets none through.
const IGNORED_TARGET: i64 = -100;
/// No token of an embedding is padding.
const NO_PADDING: i64 = -1;

/// Puts a model together from the parameters that `weights::read` has found complete.
fn assemble(config: DecoderConfig, device: Device, parameters: Vec<Parameter>) -> Result<Decoder, TchError> {
    let by_name: HashMap<&str, &Tensor> = parameters.iter().map(|p| (p.name.as_str(), &p.tensor)).collect();
    let named = Named { by_name, config: &config };
    let (token_embedding_VD, position_embedding_TD, final_norm, head_VD) = match config.family {
        Family::Gpt2 => {
            let wte_VD = named.get("transformer.wte.weight")?;
            let head_VD = wte_VD.shallow_clone();
            (wte_VD, Some(named.get("transformer.wpe.weight")?), named.layer_norm("transformer.ln_f")?, head_VD)
        }
        Family::Llama => {
            let embed_VD = named.get("model.embed_tokens.weight")?;
            let head_VD = if config.tied_head { embed_VD.shallow_clone() } else { named.get("lm_head.weight")? };
            (embed_VD, None, named.rms_norm("model.norm")?, head_VD)
        }
    };
    let blocks = (0..config.n_layers.0)
        .map(|layer| match config.family {
            Family::Gpt2 => named.gpt2_block(layer),
            Family::Llama => named.llama_block(layer),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Decoder { config, device, parameters, token_embedding_VD, position_embedding_TD, blocks, final_norm, head_VD })
}

/// Parameters by name, with the shape they belong to.
struct Named<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
    config: &'a DecoderConfig,
}

impl Named<'_> {
    fn get(&self, name: &str) -> Result<Tensor, TchError> {
        let tensor = self.by_name.get(name);
        tensor
            .map(|tensor| tensor.shallow_clone())
            .ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "the model".to_owned()))
    }

    fn conv1d(&self, prefix: &str) -> Result<Linear, TchError> {
        Ok(Linear::Conv1D { w_IO: self.get(&format!("{prefix}.weight"))?, b_O: self.get(&format!("{prefix}.bias"))? })
    }

    fn linear(&self, prefix: &str) -> Result<Linear, TchError> {
        Ok(Linear::Linear { w_OI: self.get(&format!("{prefix}.weight"))? })
    }

    fn layer_norm(&self, prefix: &str) -> Result<Norm, TchError> {
        let (weight_D, bias_D) = (self.get(&format!("{prefix}.weight"))?, self.get(&format!("{prefix}.bias"))?);
        Ok(Norm::Layer { weight_D, bias_D, eps: self.config.norm_eps })
    }

    fn rms_norm(&self, prefix: &str) -> Result<Norm, TchError> {
        Ok(Norm::Rms { weight_D: self.get(&format!("{prefix}.weight"))?, eps: self.config.norm_eps })
    }

    fn gpt2_block(&self, layer: u32) -> Result<Block, TchError> {
        let prefix = format!("transformer.h.{layer}");
        let projections = Projections::Fused { qkv: self.conv1d(&format!("{prefix}.attn.c_attn"))? };
        Ok(Block {
            attention_norm: self.layer_norm(&format!("{prefix}.ln_1"))?,
            attention: self.attention(layer, projections, self.conv1d(&format!("{prefix}.attn.c_proj"))?),
            mlp_norm: self.layer_norm(&format!("{prefix}.ln_2"))?,
            mlp: Mlp::Gelu {
                up: self.conv1d(&format!("{prefix}.mlp.c_fc"))?,
                down: self.conv1d(&format!("{prefix}.mlp.c_proj"))?,
            },
        })
    }

    fn llama_block(&self, layer: u32) -> Result<Block, TchError> {
        let prefix = format!("model.layers.{layer}");
        let part = |name: &str| self.linear(&format!("{prefix}.{name}"));
        let projections = Projections::Separate {
            q: part("self_attn.q_proj")?,
            k: part("self_attn.k_proj")?,
            v: part("self_attn.v_proj")?,
        };
        Ok(Block {
            attention_norm: self.rms_norm(&format!("{prefix}.input_layernorm"))?,
            attention: self.attention(layer, projections, part("self_attn.o_proj")?),
            mlp_norm: self.rms_norm(&format!("{prefix}.post_attention_layernorm"))?,
            mlp: Mlp::SwiGlu { gate: part("mlp.gate_proj")?, up: part("mlp.up_proj")?, down: part("mlp.down_proj")? },
        })
    }

    fn attention(&self, layer: u32, projections: Projections, output: Linear) -> Attention {
        let config = self.config;
        let by_layer = if config.inverse_layer_scale { f64::from(layer + 1) } else { 1.0 };
        Attention {
            projections,
            output,
            n_heads: config.n_heads.into(),
            n_kv_heads: config.n_kv_heads.into(),
            head_dim: config.head_dim.into(),
            scale: 1.0 / (f64::from(config.head_dim).sqrt() * by_layer),
        }
    }
}
