//! Causal self-attention with grouped key and value heads, and rotary positions.
//!
//! Shapes: B batch, T time, N = B * T, D width of the residual stream, H query heads, G key and value
//! heads, K width of a head, P = K / 2 rotated pairs.
#![allow(non_snake_case)]

use tch::{Device, Kind, TchError, Tensor};

use crate::layers::Linear;

/// One block's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    pub(crate) output: Linear,
    pub(crate) n_heads: i64,
    pub(crate) n_kv_heads: i64,
    pub(crate) head_dim: i64,
    /// What scores are multiplied by: 1/sqrt(K), and in GPT-2 files that ask for it 1/(layer + 1) as well.
    pub(crate) scale: f64,
}

/// How queries, keys and values are made.
#[derive(Debug)]
pub(crate) enum Projections {
    /// One product for all three (GPT-2's `c_attn`).
    Fused { qkv: Linear },
    /// One each.
    Separate { q: Linear, k: Linear, v: Linear },
}

impl Attention {
    /// Attends within each of `batch` sequences of `x_ND`.
    pub(crate) fn forward(&self, x_ND: &Tensor, batch: i64, rope: Option<&Rope>) -> Result<Tensor, TchError> {
        let (q, k, v) = match &self.projections {
            Projections::Fused { qkv } => {
                let mut parts = qkv.forward(x_ND)?.f_split(self.n_heads * self.head_dim, -1)?.into_iter();
                match (parts.next(), parts.next(), parts.next()) {
                    (Some(q), Some(k), Some(v)) => (q, k, v),
                    _ => return Err(TchError::Shape("c_attn is not three projections wide".to_owned())),
                }
            }
            Projections::Separate { q, k, v } => (q.forward(x_ND)?, k.forward(x_ND)?, v.forward(x_ND)?),
        };
        let heads = |x: Tensor, n: i64| x.f_view([batch, -1, n, self.head_dim]);
        let (mut q_BTHK, mut k_BTGK) = (heads(q, self.n_heads)?, heads(k, self.n_kv_heads)?);
        let v_BTGK = heads(v, self.n_kv_heads)?;
        if let Some(rope) = rope {
            q_BTHK = rope.rotate(&q_BTHK)?;
            k_BTGK = rope.rotate(&k_BTGK)?;
        }
        let y_BHTK = Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &q_BTHK.f_transpose(1, 2)?,
            &k_BTGK.f_transpose(1, 2)?,
            &v_BTGK.f_transpose(1, 2)?,
            None,
            0.0,
            true,
            self.scale,
            self.n_heads != self.n_kv_heads,
        )?;
        self.output.forward(&y_BHTK.f_transpose(1, 2)?.f_reshape([-1, self.n_heads * self.head_dim])?)
    }
}

/// Rotary positions (Su et al. 2021) in Hugging Face's convention: dimension i turns with dimension
/// i + K/2 by position * base^(-2i/K).
#[derive(Debug)]
pub(crate) struct Rope {
    cos_T1P: Tensor,
    sin_T1P: Tensor,
}

impl Rope {
    /// The angles of positions 0 to `time`, in fp32 as transformers computes them.
    pub(crate) fn new(theta: f64, head_dim: i64, time: i64, device: Device) -> Result<Self, TchError> {
        let options = (Kind::Float, device);
        let exponent_P = Tensor::f_arange_start_step(0, head_dim, 2, options)?.f_divide_scalar(head_dim as f64)?;
        let frequency_P = Tensor::f_pow_scalar(theta, &exponent_P)?.f_reciprocal()?;
        let angle_T1P = Tensor::f_arange(time, options)?.f_outer(&frequency_P)?.f_unsqueeze(1)?;
        Ok(Self { cos_T1P: angle_T1P.f_cos()?, sin_T1P: angle_T1P.f_sin()? })
    }

    fn rotate(&self, x_BTHK: &Tensor) -> Result<Tensor, TchError> {
        let half = x_BTHK.size().last().copied().unwrap_or(0) / 2;
        let (a_BTHP, b_BTHP) = (x_BTHK.f_narrow(-1, 0, half)?, x_BTHK.f_narrow(-1, half, half)?);
        let first_BTHP = a_BTHP.f_mul(&self.cos_T1P)?.f_sub(&b_BTHP.f_mul(&self.sin_T1P)?)?;
        let second_BTHP = b_BTHP.f_mul(&self.cos_T1P)?.f_add(&a_BTHP.f_mul(&self.sin_T1P)?)?;
        Tensor::f_cat(&[first_BTHP, second_BTHP], -1)
    }
}
