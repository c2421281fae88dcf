//! What attention needs to know about a batch besides the residual stream: how positions are
//! encoded (not at all, by rotation, or by a bias on the scores), and which keys a query sees.
//!
//! Shapes: B batch, T time, N = B * T, S keys, H query heads, G key and value heads, K width of a
//! head, R its rotated dimensions, P = R / 2 rotated pairs.
#![allow(non_snake_case)]

use inheritune_checkpoint::decoder_config::DecoderConfig;
use tch::{Device, Kind, TchError, Tensor};

use crate::attention::{Heads, attend};
use crate::shim;

/// How the rows of one forward pass relate to each other. It is the same for every block's
/// attention.
pub(crate) trait Sequences {
    /// B of the pass, which has N = B * T rows.
    fn batch(&self) -> i64;
    /// The rotation of queries and keys by their positions, if the model uses one.
    fn rope(&self) -> Option<&Rope>;
    /// The attention of every query over the keys that it sees, [N, H * K]. Called once per block,
    /// in order.
    fn attend(&mut self, heads: &Heads) -> Result<Tensor, TchError>;
}

/// Sequences of equal length that all start at position 0, with causal attention.
#[derive(Debug)]
pub(crate) struct Batch {
    batch: i64,
    rope: Option<Rope>,
    /// Added to the scores, broadcast to [B, H, T, T]: ALiBi's distances, and minus infinity for
    /// unseen keys. Without it, a query sees all previous keys.
    bias: Option<Tensor>,
}

impl Batch {
    /// The batch of `tokens_BT`. If `end_of_text_id` is given, a token does not see previous
    /// documents. The end-of-text token belongs to the document that it ends.
    pub(crate) fn new(
        config: &DecoderConfig,
        tokens_BT: &Tensor,
        end_of_text_id: Option<u32>,
    ) -> Result<Self, TchError> {
        let ((batch, time), device) = (tokens_BT.size2()?, tokens_BT.device());
        let position_T = Tensor::f_arange(time, (Kind::Float, device))?;
        let alibi = alibi(config, &position_T, &position_T)?
            .map(|bias_HTT| bias_HTT.f_add(&future(time, device)?))
            .transpose()?;
        let documents = end_of_text_id.map(|id| documents(tokens_BT, id)).transpose()?;
        let bias = match (alibi, documents) {
            (Some(bias_HTT), Some(bias_B1TT)) => Some(bias_HTT.f_add(&bias_B1TT)?),
            (alibi, documents) => alibi.or(documents),
        };
        Ok(Self { batch, rope: Rope::of(config, &position_T)?, bias })
    }
}

impl Sequences for Batch {
    fn batch(&self) -> i64 {
        self.batch
    }

    fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    fn attend(&mut self, heads: &Heads) -> Result<Tensor, TchError> {
        let Heads { q_BTHK, k_BTGK, v_BTGK, scale } = heads;
        if self.bias.is_none()
            && let Some(y_BTHK) = shim::attend(q_BTHK, k_BTGK, v_BTGK, *scale)?
        {
            return y_BTHK.f_flatten(0, 1)?.f_flatten(1, 2);
        }
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(v_BTGK.f_kind()?)).transpose()?;
        let (q_BHTK, k_BGTK) = (q_BTHK.f_transpose(1, 2)?, k_BTGK.f_transpose(1, 2)?);
        let y_BTD = attend(&q_BHTK, (&k_BGTK, &v_BTGK.f_transpose(1, 2)?), bias.as_ref(), *scale)?;
        y_BTD.f_flatten(0, 1)
    }
}

/// [B, 1, T, T]: 0 if key and query are in the same document and the key is not in the future, else
/// minus infinity.
fn documents(tokens_BT: &Tensor, end_of_text_id: u32) -> Result<Tensor, TchError> {
    let time = tokens_BT.size2()?.1;
    let ends_BT = tokens_BT.f_eq(i64::from(end_of_text_id))?.f_to_kind(Kind::Int64)?;
    let document_BT = ends_BT.f_cumsum(1, Kind::Int64)?.f_sub(&ends_BT)?;
    let other_BTT = document_BT.f_unsqueeze(2)?.f_ne_tensor(&document_BT.f_unsqueeze(1)?)?;
    let hidden_BTT = other_BTT.f_logical_or(&future(time, tokens_BT.device())?.f_isinf()?)?;
    let options = (Kind::Float, tokens_BT.device());
    Tensor::f_zeros(hidden_BTT.size(), options)?.f_masked_fill(&hidden_BTT, f64::NEG_INFINITY)?.f_unsqueeze(1)
}

/// [T, T]: minus infinity above the diagonal.
fn future(time: i64, device: Device) -> Result<Tensor, TchError> {
    Tensor::f_full([time, time], f64::NEG_INFINITY, (Kind::Float, device))?.f_triu(1)
}

/// ALiBi's slope of each head: 2^(-max * i / n) for i from 1 to n, where n is the number of heads
/// rounded up to a power of two. If n is larger than the number of heads, every second slope is
/// taken first (llm-foundry's `gen_slopes`, transformers' `build_mpt_alibi_tensor`).
fn alibi_slopes(n_heads: u32, bias_max: u32) -> Vec<f32> {
    let n = n_heads.next_power_of_two();
    let slope = |i: u32| f64::exp2(-f64::from(bias_max) * f64::from(i) / f64::from(n)) as f32;
    if n == n_heads {
        return (1..=n).map(slope).collect();
    }
    let (even, odd) = ((2..=n).step_by(2), (1..=n).step_by(2));
    even.chain(odd).take(n_heads as usize).map(slope).collect()
}

/// ALiBi (Press, Smith and Lewis 2021), [H, T, S], if the model uses it: minus the distance from
/// each of T queries to each of S keys, times the head's slope.
pub(crate) fn alibi(config: &DecoderConfig, query_T: &Tensor, key_S: &Tensor) -> Result<Option<Tensor>, TchError> {
    let Some(bias_max) = config.alibi_bias_max else { return Ok(None) };
    // The key's position minus the query's: 0 on the diagonal, negative before it.
    let distance_TS = key_S.f_unsqueeze(0)?.f_sub(&query_T.f_unsqueeze(1)?)?;
    let slope_H = Tensor::f_from_slice(&alibi_slopes(config.n_heads, bias_max))?;
    let slope_H11 = slope_H.f_to_device(query_T.device())?.f_view([-1, 1, 1])?;
    Ok(Some(slope_H11.f_mul(&distance_TS)?))
}

/// Rotary positions (Su et al. 2021) in Hugging Face's convention: dimensions i and i + R/2 are
/// rotated together by position * base^(-2i/R). Dimensions from R on are unchanged.
#[derive(Debug)]
pub(crate) struct Rope {
    cos_T1P: Tensor,
    sin_T1P: Tensor,
}

impl Rope {
    /// The angles at the positions `position_T` (fp32), if the model uses them; in fp32 as
    /// transformers computes them.
    pub(crate) fn of(config: &DecoderConfig, position_T: &Tensor) -> Result<Option<Self>, TchError> {
        let Some(theta) = config.rope_theta else { return Ok(None) };
        let rotary_dims = i64::from(config.rotary_dims.unwrap_or(config.head_dim));
        let options = (Kind::Float, position_T.device());
        let exponent_P =
            Tensor::f_arange_start_step(0, rotary_dims, 2, options)?.f_divide_scalar(rotary_dims as f64)?;
        let frequency_P = Tensor::f_pow_scalar(theta, &exponent_P)?.f_reciprocal()?;
        let angle_T1P = position_T.f_outer(&frequency_P)?.f_unsqueeze(1)?;
        Ok(Some(Self { cos_T1P: angle_T1P.f_cos()?, sin_T1P: angle_T1P.f_sin()? }))
    }

    /// Rotates `x_BTHK` in fp32; the result has the type of `x_BTHK`.
    pub(crate) fn rotate(&self, x_BTHK: &Tensor) -> Result<Tensor, TchError> {
        if x_BTHK.device() == Device::Cpu {
            return shim::rotate(x_BTHK, &self.cos_T1P, &self.sin_T1P);
        }
        let last = |x: &Tensor| x.size().last().copied().unwrap_or(0);
        let (width, half) = (last(x_BTHK), last(&self.cos_T1P));
        let (a_BTHP, b_BTHP) = (x_BTHK.f_narrow(-1, 0, half)?, x_BTHK.f_narrow(-1, half, half)?);
        let first_BTHP = a_BTHP.f_mul(&self.cos_T1P)?.f_sub(&b_BTHP.f_mul(&self.sin_T1P)?)?;
        let second_BTHP = b_BTHP.f_mul(&self.cos_T1P)?.f_add(&a_BTHP.f_mul(&self.sin_T1P)?)?;
        let still_BTHR = x_BTHK.f_narrow(-1, 2 * half, width - 2 * half)?;
        Tensor::f_cat(&[first_BTHP, second_BTHP, still_BTHR], -1)?.f_to_kind(x_BTHK.f_kind()?)
    }
}

#[cfg(test)]
mod tests {
    use super::alibi_slopes;

    #[test]
    fn slopes_are_the_published_ones() {
        // Press, Smith and Lewis 2021, section 3: 1/2, 1/4, ... 1/256 for 8 heads.
        assert_eq!(alibi_slopes(8, 8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // MPT takes every second slope of the next power of two first.
        assert_eq!(alibi_slopes(3, 8), [0.0625, 0.00390625, 0.25]);
        assert_eq!(alibi_slopes(1, 8), [0.00390625]);
    }
}
