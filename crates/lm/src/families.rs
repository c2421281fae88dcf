//! Assembles the decoder from a family's tensors, as the family's table describes.
//!
//! Shapes: D width of the residual stream, R rows of learned positions, V vocabulary.
#![allow(non_snake_case)]

use std::collections::HashMap;

use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::families::{FamilyTable, MatrixLayout, NormKind as Kinds, QkvLayout, Slot};
use tch::{Kind, TchError, Tensor};

use crate::attention::{Attention, Projections};
use crate::decoder::{Block, Parameter, Parts, PositionEmbedding, Residual};
use crate::layers::{Linear, Mlp, Norm, NormKind, Weight};

/// Assembles a model from parameters that `weights::read` has found to be complete. Products are
/// computed in `compute`.
pub(crate) fn assemble(config: &DecoderConfig, parameters: &[Parameter], compute: Kind) -> Result<Parts, TchError> {
    let by_name = parameters.iter().map(|p| (p.name.as_str(), &p.tensor)).collect();
    let named = Named { by_name, config, table: config.family.table(), compute };
    let blocks = (0..config.n_layers.0).map(|layer| named.block(layer)).collect::<Result<_, _>>()?;
    let token_embedding_VD = named.weight(&named.module(Slot::TokenEmbedding, 0)?)?;
    let position_embedding = named.table.module(Slot::PositionEmbedding, 0).map(|name| {
        let first_row = named.table.first_position().into();
        Ok::<_, TchError>(PositionEmbedding { table_RD: named.weight(&name)?, first_row })
    });
    let head_VD = match config.tied_head {
        true => token_embedding_VD.shallow_clone(),
        false => named.weight(&named.module(Slot::Head, 0)?)?,
    };
    let final_norm = named.norm(Slot::FinalNorm, 0)?;
    Ok(Parts {
        token_embedding_VD,
        position_embedding: position_embedding.transpose()?,
        blocks,
        final_norm,
        head_VD,
        compute,
    })
}

/// Parameters by name, and the shape that they belong to.
struct Named<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
    config: &'a DecoderConfig,
    table: &'static FamilyTable,
    compute: Kind,
}

impl Named<'_> {
    fn find(&self, name: &str) -> Option<Tensor> {
        self.by_name.get(name).map(|tensor| tensor.shallow_clone())
    }

    fn module(&self, slot: Slot, layer: u32) -> Result<String, TchError> {
        let none = || TchError::TensorNameNotFound(format!("{slot:?}"), "the family".to_owned());
        self.table.module(slot, layer).ok_or_else(none)
    }

    fn weight(&self, module: &str) -> Result<Tensor, TchError> {
        let name = format!("{module}.weight");
        self.find(&name).ok_or_else(|| TchError::TensorNameNotFound(name, "the model".to_owned()))
    }

    // A missing bias means that the shape has none: `weights::read` rejects missing tensors.

    fn linear(&self, slot: Slot, layer: u32) -> Result<Linear, TchError> {
        let module = self.module(slot, layer)?;
        let weight = self.weight(&module)?;
        let weight = match self.table.layout() {
            MatrixLayout::OutIn => Weight::Linear { w_OI: weight },
            MatrixLayout::InOut => Weight::Conv1D { w_IO: weight },
        };
        Ok(Linear { weight, b_O: self.find(&format!("{module}.bias")), compute: self.compute })
    }

    fn norm(&self, slot: Slot, layer: u32) -> Result<Norm, TchError> {
        let module = self.module(slot, layer)?;
        let kind = match self.table.norm() {
            Kinds::Layer => NormKind::Layer { bias_D: self.find(&format!("{module}.bias")) },
            Kinds::Rms => NormKind::Rms,
        };
        Ok(Norm { kind, weight_D: self.weight(&module)?, eps: self.config.norm_eps, compute: self.compute })
    }

    fn block(&self, layer: u32) -> Result<Block, TchError> {
        let linear = |slot| self.linear(slot, layer);
        let (up, down) = (linear(Slot::Up)?, linear(Slot::Down)?);
        let mlp = match self.table.module(Slot::Gate, layer) {
            Some(_) => Mlp::SwiGlu { gate: linear(Slot::Gate)?, up, down },
            None => Mlp::Plain { up, activation: self.table.activation(self.config), down },
        };
        Ok(Block {
            attention_norm: self.norm(Slot::AttentionNorm, layer)?,
            attention: self.attention(layer)?,
            mlp_norm: self.norm(Slot::MlpNorm, layer)?,
            mlp,
            residual: if self.config.parallel_residual { Residual::Parallel } else { Residual::Sequential },
        })
    }

    fn attention(&self, layer: u32) -> Result<Attention, TchError> {
        let config = self.config;
        let linear = |slot| self.linear(slot, layer);
        let projections = match (self.table.module(Slot::Qkv, layer), self.table.qkv()) {
            (Some(_), QkvLayout::ByKind) => Projections::Fused { qkv: linear(Slot::Qkv)? },
            (Some(_), QkvLayout::ByHead) => Projections::FusedByHead { qkv: linear(Slot::Qkv)? },
            (None, _) => Projections::Separate { q: linear(Slot::Q)?, k: linear(Slot::K)?, v: linear(Slot::V)? },
        };
        let qk_norm = match config.qk_norm {
            true => Some((self.norm(Slot::QNorm, layer)?, self.norm(Slot::KNorm, layer)?)),
            false => None,
        };
        let by_layer = if config.inverse_layer_scale { f64::from(layer + 1) } else { 1.0 };
        Ok(Attention {
            projections,
            qk_norm,
            output: linear(Slot::AttentionOut)?,
            n_heads: config.n_heads.into(),
            n_kv_heads: config.n_kv_heads.into(),
            head_dim: config.head_dim.into(),
            scale: 1.0 / (f64::from(config.head_dim).sqrt() * by_layer),
        })
    }
}
