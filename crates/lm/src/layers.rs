//! The parts that a block is made of: projections, norms and the MLP.
//!
//! Shapes: N positions (batch times time), D width of the residual stream, I and O a projection's input
//! and output, F width of the MLP.
#![allow(non_snake_case)]

use tch::{Kind, TchError, Tensor};

/// A projection.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) b_O: Option<Tensor>,
    /// What its product is computed in, and given back in.
    pub(crate) compute: Kind,
}

/// A projection's matrix in its file's own layout, so that a checkpoint is never transposed.
#[derive(Debug)]
pub(crate) enum Weight {
    /// GPT-2's Conv1D.
    Conv1D { w_IO: Tensor },
    /// PyTorch's Linear.
    Linear { w_OI: Tensor },
}

impl Linear {
    pub(crate) fn forward(&self, x_NI: &Tensor) -> Result<Tensor, TchError> {
        // Where a tensor is of that kind already, this is the tensor itself.
        let cast = |tensor: &Tensor| tensor.f_to_kind(self.compute);
        let (x_NI, b_O) = (cast(x_NI)?, self.b_O.as_ref().map(cast).transpose()?);
        match (&self.weight, b_O) {
            (Weight::Conv1D { w_IO }, Some(b_O)) => b_O.f_addmm(&x_NI, &cast(w_IO)?),
            (Weight::Conv1D { w_IO }, None) => x_NI.f_mm(&cast(w_IO)?),
            (Weight::Linear { w_OI }, b_O) => x_NI.f_linear(&cast(w_OI)?, b_O.as_ref()),
        }
    }
}

/// A norm over the last dimension.
#[derive(Debug)]
pub(crate) enum Norm {
    /// Ba, Kiros and Hinton 2016.
    Layer { weight_D: Tensor, bias_D: Option<Tensor>, eps: f64 },
    /// Zhang and Sennrich 2019.
    Rms { weight_D: Tensor, eps: f64 },
}

impl Norm {
    /// In what its weight is kept in.
    pub(crate) fn forward(&self, x_ND: &Tensor) -> Result<Tensor, TchError> {
        let (Self::Layer { weight_D, .. } | Self::Rms { weight_D, .. }) = self;
        let x_ND = x_ND.f_to_kind(weight_D.f_kind()?)?;
        match self {
            Self::Layer { weight_D, bias_D, eps } => {
                let (y_ND, _mean, _rstd) =
                    x_ND.f_native_layer_norm(weight_D.size(), Some(weight_D), bias_D.as_ref(), *eps)?;
                Ok(y_ND)
            }
            Self::Rms { weight_D, eps } => x_ND.f_rms_norm(weight_D.size(), Some(weight_D), *eps),
        }
    }
}

/// The position-wise network.
#[derive(Debug)]
pub(crate) enum Mlp {
    /// Two projections with a nonlinearity between them.
    Plain { up: Linear, activation: Activation, down: Linear },
    /// SwiGLU (Shazeer 2020).
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

/// An MLP's nonlinearity.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Activation {
    /// GELU, x Phi(x) (Hendrycks and Gimpel 2016), by the error function.
    Gelu,
    /// GELU in its tanh form (the same paper, section 2; Hugging Face's `gelu_new` and `gelu_fast`).
    TanhGelu,
    /// max(0, x).
    Relu,
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
                })
            }
            Self::SwiGlu { gate, up, down } => {
                let gated_NF = gate.forward(x_ND)?.f_silu()?.f_mul(&up.forward(x_ND)?)?;
                down.forward(&gated_NF)
            }
        }
    }
}
