//! Each family's tensors in the places of the one decoder.
//!
//! Shapes: D width of the residual stream, R rows of learned positions, V vocabulary.
#![allow(non_snake_case)]

use std::collections::HashMap;

use inheritune_checkpoint::decoder_config::{DecoderConfig, Family};
use inheritune_checkpoint::opt::POSITION_OFFSET;
use tch::{Kind, TchError, Tensor};

use crate::attention::{Attention, Projections};
use crate::decoder::{Block, Parameter, Parts, PositionEmbedding, Residual};
use crate::layers::{Activation, Linear, Mlp, Norm, NormKind, Weight};

/// Puts a model together from the parameters that `weights::read` has found complete; its products are computed in
/// `compute`.
pub(crate) fn assemble(config: &DecoderConfig, parameters: &[Parameter], compute: Kind) -> Result<Parts, TchError> {
    let by_name = parameters.iter().map(|p| (p.name.as_str(), &p.tensor)).collect();
    let named = Named { by_name, config, compute };
    let blocks = (0..config.n_layers.0).map(|layer| named.block(layer)).collect::<Result<_, _>>()?;
    let token_embedding_VD = named.get(match config.family {
        Family::Gpt2 | Family::Mpt | Family::MosaicGpt => "transformer.wte.weight",
        Family::Llama => "model.embed_tokens.weight",
        Family::GptNeox => "gpt_neox.embed_in.weight",
        Family::Opt => "model.decoder.embed_tokens.weight",
    })?;
    let position_embedding = match config.family {
        Family::Gpt2 => Some(("transformer.wpe.weight", 0)),
        Family::Opt => Some(("model.decoder.embed_positions.weight", POSITION_OFFSET.into())),
        Family::Llama | Family::GptNeox | Family::Mpt | Family::MosaicGpt => None,
    };
    let position_embedding = position_embedding
        .map(|(name, first_row)| Ok::<_, TchError>(PositionEmbedding { table_RD: named.get(name)?, first_row }))
        .transpose()?;
    let final_norm = match config.family {
        Family::Gpt2 | Family::MosaicGpt => named.layer_norm("transformer.ln_f")?,
        Family::Llama => named.rms_norm("model.norm")?,
        Family::GptNeox => named.layer_norm("gpt_neox.final_layer_norm")?,
        Family::Opt => named.layer_norm("model.decoder.final_layer_norm")?,
        Family::Mpt => named.layer_norm("transformer.norm_f")?,
    };
    let head_VD = match config.family {
        Family::Llama if !config.tied_head => named.get("lm_head.weight")?,
        Family::GptNeox if !config.tied_head => named.get("embed_out.weight")?,
        Family::Gpt2 | Family::Llama | Family::GptNeox | Family::Opt | Family::Mpt | Family::MosaicGpt => {
            token_embedding_VD.shallow_clone()
        }
    };
    Ok(Parts { token_embedding_VD, position_embedding, blocks, final_norm, head_VD, compute })
}

/// Parameters by name, with the shape they belong to.
struct Named<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
    config: &'a DecoderConfig,
    compute: Kind,
}

impl Named<'_> {
    fn find(&self, name: &str) -> Option<Tensor> {
        self.by_name.get(name).map(|tensor| tensor.shallow_clone())
    }

    fn get(&self, name: &str) -> Result<Tensor, TchError> {
        self.find(name).ok_or_else(|| TchError::TensorNameNotFound(name.to_owned(), "the model".to_owned()))
    }

    // A bias that a model of this shape should have cannot be absent here: `weights::read` would have said so.

    fn conv1d(&self, prefix: &str) -> Result<Linear, TchError> {
        self.projection(prefix, |w_IO| Weight::Conv1D { w_IO })
    }

    fn linear(&self, prefix: &str) -> Result<Linear, TchError> {
        self.projection(prefix, |w_OI| Weight::Linear { w_OI })
    }

    fn projection(&self, prefix: &str, layout: impl Fn(Tensor) -> Weight) -> Result<Linear, TchError> {
        let (weight, b_O) = (layout(self.get(&format!("{prefix}.weight"))?), self.find(&format!("{prefix}.bias")));
        Ok(Linear { weight, b_O, compute: self.compute })
    }

    fn layer_norm(&self, prefix: &str) -> Result<Norm, TchError> {
        let (weight_D, bias_D) = (self.get(&format!("{prefix}.weight"))?, self.find(&format!("{prefix}.bias")));
        Ok(self.norm(NormKind::Layer { bias_D }, weight_D))
    }

    fn rms_norm(&self, prefix: &str) -> Result<Norm, TchError> {
        Ok(self.norm(NormKind::Rms, self.get(&format!("{prefix}.weight"))?))
    }

    fn norm(&self, kind: NormKind, weight_D: Tensor) -> Norm {
        Norm { kind, weight_D, eps: self.config.norm_eps, compute: self.compute }
    }

    fn block(&self, layer: u32) -> Result<Block, TchError> {
        match self.config.family {
            Family::Gpt2 => self.gpt2_block(layer),
            Family::Llama => self.llama_block(layer),
            Family::GptNeox => self.gpt_neox_block(layer),
            Family::Opt => self.opt_block(layer),
            Family::Mpt => self.mpt_block(layer, ["norm_1", "norm_2", "ffn.up_proj", "ffn.down_proj"]),
            Family::MosaicGpt => self.mpt_block(layer, ["ln_1", "ln_2", "mlp.mlp_up", "mlp.mlp_down"]),
        }
    }

    fn gpt2_block(&self, layer: u32) -> Result<Block, TchError> {
        let at = |name: &str| format!("transformer.h.{layer}.{name}");
        let projections = Projections::Fused { qkv: self.conv1d(&at("attn.c_attn"))? };
        Ok(Block {
            attention_norm: self.layer_norm(&at("ln_1"))?,
            attention: self.attention(layer, projections, self.conv1d(&at("attn.c_proj"))?),
            mlp_norm: self.layer_norm(&at("ln_2"))?,
            mlp: Mlp::Plain {
                up: self.conv1d(&at("mlp.c_fc"))?,
                activation: Activation::TanhGelu,
                down: self.conv1d(&at("mlp.c_proj"))?,
            },
            residual: Residual::Sequential,
        })
    }

    fn llama_block(&self, layer: u32) -> Result<Block, TchError> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let part = |name: &str| self.linear(&at(name));
        let projections = self.separate(&at("self_attn"))?;
        Ok(Block {
            attention_norm: self.rms_norm(&at("input_layernorm"))?,
            attention: self.attention(layer, projections, part("self_attn.o_proj")?),
            mlp_norm: self.rms_norm(&at("post_attention_layernorm"))?,
            mlp: Mlp::SwiGlu { gate: part("mlp.gate_proj")?, up: part("mlp.up_proj")?, down: part("mlp.down_proj")? },
            residual: Residual::Sequential,
        })
    }

    fn gpt_neox_block(&self, layer: u32) -> Result<Block, TchError> {
        let at = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
        let projections = Projections::FusedByHead { qkv: self.linear(&at("attention.query_key_value"))? };
        Ok(Block {
            attention_norm: self.layer_norm(&at("input_layernorm"))?,
            attention: self.attention(layer, projections, self.linear(&at("attention.dense"))?),
            mlp_norm: self.layer_norm(&at("post_attention_layernorm"))?,
            mlp: Mlp::Plain {
                up: self.linear(&at("mlp.dense_h_to_4h"))?,
                activation: if self.config.tanh_gelu { Activation::TanhGelu } else { Activation::Gelu },
                down: self.linear(&at("mlp.dense_4h_to_h"))?,
            },
            residual: if self.config.parallel_residual { Residual::Parallel } else { Residual::Sequential },
        })
    }

    fn opt_block(&self, layer: u32) -> Result<Block, TchError> {
        let at = |name: &str| format!("model.decoder.layers.{layer}.{name}");
        let part = |name: &str| self.linear(&at(name));
        let projections = self.separate(&at("self_attn"))?;
        Ok(Block {
            attention_norm: self.layer_norm(&at("self_attn_layer_norm"))?,
            attention: self.attention(layer, projections, part("self_attn.out_proj")?),
            mlp_norm: self.layer_norm(&at("final_layer_norm"))?,
            mlp: Mlp::Plain { up: part("fc1")?, activation: Activation::Relu, down: part("fc2")? },
            residual: Residual::Sequential,
        })
    }

    /// MPT as transformers has it, and `mosaic_gpt`: the same block under other names, the latter's with norms of
    /// queries and keys.
    fn mpt_block(&self, layer: u32, [attention_norm, mlp_norm, up, down]: [&str; 4]) -> Result<Block, TchError> {
        let at = |name: &str| format!("transformer.blocks.{layer}.{name}");
        let projections = Projections::Fused { qkv: self.linear(&at("attn.Wqkv"))? };
        let mut attention = self.attention(layer, projections, self.linear(&at("attn.out_proj"))?);
        if self.config.qk_norm {
            attention.qk_norm = Some((self.layer_norm(&at("attn.q_ln"))?, self.layer_norm(&at("attn.k_ln"))?));
        }
        Ok(Block {
            attention_norm: self.layer_norm(&at(attention_norm))?,
            attention,
            mlp_norm: self.layer_norm(&at(mlp_norm))?,
            mlp: Mlp::Plain { up: self.linear(&at(up))?, activation: Activation::Gelu, down: self.linear(&at(down))? },
            residual: Residual::Sequential,
        })
    }

    /// `q_proj`, `k_proj` and `v_proj` of the module `attention`.
    fn separate(&self, attention: &str) -> Result<Projections, TchError> {
        let part = |name: &str| self.linear(&format!("{attention}.{name}"));
        Ok(Projections::Separate { q: part("q_proj")?, k: part("k_proj")?, v: part("v_proj")? })
    }

    fn attention(&self, layer: u32, projections: Projections, output: Linear) -> Attention {
        let config = self.config;
        let by_layer = if config.inverse_layer_scale { f64::from(layer + 1) } else { 1.0 };
        Attention {
            projections,
            qk_norm: None,
            output,
            n_heads: config.n_heads.into(),
            n_kv_heads: config.n_kv_heads.into(),
            head_dim: config.head_dim.into(),
            scale: 1.0 / (f64::from(config.head_dim).sqrt() * by_layer),
        }
    }
}
