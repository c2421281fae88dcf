//! Causal self-attention with grouped key and value heads.
//!
//! Shapes: B batch, T time, N = B * T, D width of the residual stream, H query heads, G key and
//! value heads, K width of a head.
#![allow(non_snake_case)]

use tch::{Device, Kind, TchError, Tensor};

use crate::layers::{Linear, Norm};
use crate::positions::Sequences;
use crate::shim;

/// One block's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    /// Norms of queries and keys, each over the whole width before it is split into heads.
    pub(crate) qk_norm: Option<(Norm, Norm)>,
    pub(crate) output: Linear,
    pub(crate) n_heads: i64,
    pub(crate) n_kv_heads: i64,
    pub(crate) head_dim: i64,
    /// Factor of the scores: 1/sqrt(K), and also 1/(layer + 1) in GPT-2 files that request it.
    pub(crate) scale: f64,
}

/// How queries, keys and values are computed.
#[derive(Debug)]
pub(crate) enum Projections {
    /// One product, in the order: all queries, all keys, all values (GPT-2's `c_attn`, MPT's
    /// `Wqkv`).
    Fused { qkv: Linear },
    /// One product, in the order: query, key and value of the first head, then of the next one
    /// (GPT-NeoX's `query_key_value`).
    FusedByHead { qkv: Linear },
    /// One product each.
    Separate { q: Linear, k: Linear, v: Linear },
}

/// The inputs of one block's attention.
#[derive(Debug)]
pub(crate) struct Heads {
    pub(crate) q_BTHK: Tensor,
    pub(crate) k_BTGK: Tensor,
    pub(crate) v_BTGK: Tensor,
    pub(crate) scale: f64,
}

/// Attention of `q_BHTK` over `k_BGSK` and `v_BGSK`, [B, T, H * K]; S keys. Without a `bias`, query
/// i sees keys 0 to i.
pub(crate) fn attend(
    q_BHTK: &Tensor,
    (k_BGSK, v_BGSK): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor, TchError> {
    let shape = q_BHTK.size();
    let &[batch, n_heads, time, _] = shape.as_slice() else {
        return Err(TchError::Shape(format!("queries have shape {shape:?}; expected [B, H, T, K]")));
    };
    let shares_keys = k_BGSK.size().get(1) != Some(&n_heads);
    let kind = q_BHTK.f_kind()?;
    let is_widened = kind == Kind::BFloat16 && q_BHTK.device() == Device::Cpu && !shim::has_bf16();
    let operand = |x: &Tensor| x.f_to_kind(if is_widened { Kind::Float } else { kind });
    let (q, k, v, bias) = (operand(q_BHTK)?, operand(k_BGSK)?, operand(v_BGSK)?, bias.map(operand).transpose()?);
    Tensor::f_scaled_dot_product_attention(&q, &k, &v, bias.as_ref(), 0.0, bias.is_none(), scale, shares_keys)?
        .f_to_kind(kind)?
        .f_transpose(1, 2)?
        .f_reshape([batch, time, -1])
}

impl Attention {
    /// Attends between the rows of `x_ND` as `sequences` defines.
    pub(crate) fn forward(&self, x_ND: &Tensor, sequences: &mut impl Sequences) -> Result<Tensor, TchError> {
        let (mut q_BTHK, mut k_BTGK, v_BTGK) = self.project(x_ND, sequences.batch())?;
        if let Some(rope) = sequences.rope() {
            q_BTHK = rope.rotate(&q_BTHK)?;
            k_BTGK = rope.rotate(&k_BTGK)?;
        }
        self.output.forward(&sequences.attend(&Heads { q_BTHK, k_BTGK, v_BTGK, scale: self.scale })?)
    }

    /// Computes queries [B, T, H, K], and keys and values [B, T, G, K].
    fn project(&self, x_ND: &Tensor, batch: i64) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let heads = |x: &Tensor, n: i64| x.f_view([batch, -1, n, self.head_dim]);
        let (q, k, v) = match &self.projections {
            Projections::Fused { qkv } => three(qkv.forward(x_ND)?.f_split(self.n_heads * self.head_dim, -1)?)?,
            Projections::FusedByHead { qkv } => {
                let qkv = qkv.forward(x_ND)?.f_view([batch, -1, self.n_heads, 3 * self.head_dim])?;
                return three(qkv.f_split(self.head_dim, -1)?);
            }
            Projections::Separate { q, k, v } => (q.forward(x_ND)?, k.forward(x_ND)?, v.forward(x_ND)?),
        };
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) => (q_norm.forward(&q)?, k_norm.forward(&k)?),
            None => (q, k),
        };
        Ok((heads(&q, self.n_heads)?, heads(&k, self.n_kv_heads)?, heads(&v, self.n_kv_heads)?))
    }
}

fn three(parts: Vec<Tensor>) -> Result<(Tensor, Tensor, Tensor), TchError> {
    <[Tensor; 3]>::try_from(parts)
        .map(|[q, k, v]| (q, k, v))
        .map_err(|_| TchError::Shape("a fused projection is not three projections wide".to_owned()))
}
