//! The parts of a block: projections, norms and the MLP.
//!
//! Shapes: N positions (batch times time), D width of the residual stream, I and O a projection's
//! input and output, F width of the MLP.
#![allow(non_snake_case)]

use inheritune_checkpoint::families::Activation;
use tch::{Device, Kind, TchError, Tensor};

use crate::shim;

/// A projection.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) b_O: Option<Tensor>,
    /// The type of the product and of its result.
    pub(crate) compute: Kind,
}

/// A projection's matrix in the file's own layout, so that a checkpoint is never transposed.
#[derive(Debug)]
pub(crate) enum Weight {
    /// GPT-2's Conv1D.
    Conv1D { w_IO: Tensor },
    /// PyTorch's Linear.
    Linear { w_OI: Tensor },
}

impl Linear {
    pub(crate) fn forward(&self, x_NI: &Tensor) -> Result<Tensor, TchError> {
        let (w, is_conv1d) = match &self.weight {
            Weight::Conv1D { w_IO } => (w_IO, true),
            Weight::Linear { w_OI } => (w_OI, false),
        };
        shim::project(&self.cast(x_NI)?, &self.cast(w)?, self.cast_bias()?.as_ref(), is_conv1d)
    }

    /// Projects silu(gate) * up (Shazeer 2020, section 2), which is not kept for the backward pass.
    /// Both inputs have the type [`Self::compute`].
    fn forward_gated(&self, gate_NI: &Tensor, up_NI: &Tensor) -> Result<Tensor, TchError> {
        let w_OI = match &self.weight {
            Weight::Conv1D { w_IO } => self.cast(w_IO)?.f_tr()?,
            Weight::Linear { w_OI } => self.cast(w_OI)?,
        };
        shim::swiglu_down(gate_NI, up_NI, &w_OI, self.cast_bias()?.as_ref())
    }

    /// Returns the tensor itself if it already has the type.
    fn cast(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        tensor.f_to_kind(self.compute)
    }

    fn cast_bias(&self) -> Result<Option<Tensor>, TchError> {
        self.b_O.as_ref().map(|b_O| self.cast(b_O)).transpose()
    }
}

/// A norm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) weight_D: Tensor,
    pub(crate) eps: f64,
    /// The type of the result, which products are computed in. The norm itself is computed in fp32,
    /// and rounded to the type of its weight.
    pub(crate) compute: Kind,
}

/// Which norm.
#[derive(Debug)]
pub(crate) enum NormKind {
    /// Ba, Kiros and Hinton 2016.
    Layer { bias_D: Option<Tensor> },
    /// Zhang and Sennrich 2019.
    Rms,
}

impl Norm {
    pub(crate) fn forward(&self, x_ND: &Tensor) -> Result<Tensor, TchError> {
        let Self { kind, weight_D, eps, compute } = self;
        let x_ND = x_ND.f_to_kind(weight_D.f_kind()?)?;
        let y_ND = match kind {
            NormKind::Layer { bias_D } => {
                x_ND.f_native_layer_norm(weight_D.size(), Some(weight_D), bias_D.as_ref(), *eps)?.0
            }
            NormKind::Rms if x_ND.device() == Device::Cpu => return shim::rms_norm(&x_ND, weight_D, *eps, *compute),
            NormKind::Rms => x_ND.f_rms_norm(weight_D.size(), Some(weight_D), *eps)?,
        };
        y_ND.f_to_kind(*compute)
    }
}

/// The position-wise feed-forward network.
#[derive(Debug)]
pub(crate) enum Mlp {
    /// Two projections with a nonlinearity between them.
    Plain { up: Linear, activation: Activation, down: Linear },
    /// SwiGLU (Shazeer 2020).
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Mlp {
    pub(crate) fn forward(&self, x_ND: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Plain { up, activation, down } => {
                let x_NF = up.forward(x_ND)?;
                down.forward(&match activation {
                    Activation::Gelu => x_NF.f_gelu("none")?,
                    Activation::TanhGelu => x_NF.f_gelu("tanh")?,
                    Activation::Relu => x_NF.f_relu()?,
                    Activation::Silu => x_NF.f_silu()?,
                })
            }
            Self::SwiGlu { gate, up, down } => down.forward_gated(&gate.forward(x_ND)?, &up.forward(x_ND)?),
        }
    }
}
