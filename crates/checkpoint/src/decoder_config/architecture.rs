//! The shape of a model to be made anew, as a recipe says it.

use serde::{Deserialize, Serialize};

use super::{DecoderConfig, Family, MAX_DIMENSION};
use crate::families::{Bias, FamilyTable};
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

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
    /// RoPE's base (llama, gpt_neox); 10000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Tie the head to the token embedding; when absent false for llama and gpt_neox, true for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied_head: Option<bool>,
    /// GPT-2's `scale_attn_by_inverse_layer_idx`, which the paper's own runs set.
    #[serde(default)]
    pub inverse_layer_scale: bool,
    /// GPT-2 without biases, which the paper's own runs set.
    #[serde(default)]
    pub no_bias: bool,
    /// Round the rows of the token embedding up to a multiple of this; the paper's own runs make GPT-2's 50257 entries
    /// 50304, a multiple of 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_vocab_to_multiple_of: Option<u32>,
}

impl Architecture {
    /// Every field that does not go with another or with the family. Bounds of single numbers are the caller's to check.
    ///
    /// # Errors
    /// The violations, fields named relative to this spec.
    pub fn validate_shape(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        if self.n_heads >= 1 {
            v.check(
                self.d_model.is_multiple_of(self.n_heads),
                "d_model",
                format!("must be a multiple of n_heads ({})", self.n_heads),
            );
            let kv = self.n_kv_heads.unwrap_or(self.n_heads);
            v.check(
                kv == 0 || self.n_heads.is_multiple_of(kv),
                "n_kv_heads",
                format!("must divide n_heads ({})", self.n_heads),
            );
        }
        self.validate_family(&mut v);
        v.into_result()
    }

    /// Rows of the embedding for a tokenizer of `vocab_size` entries; none where there are too many.
    pub fn padded_vocab_size(&self, vocab_size: u32) -> Option<u32> {
        let multiple = self.pad_vocab_to_multiple_of.unwrap_or(1).max(1);
        vocab_size.checked_next_multiple_of(multiple).filter(|rows| *rows <= MAX_DIMENSION)
    }

    /// What the family does not have.
    fn validate_family(&self, v: &mut Violations) {
        let (family, table) = (self.family.as_str(), self.family.table());
        if !table.grouped_query {
            v.check(
                self.n_kv_heads.is_none_or(|n| n == self.n_heads),
                "n_kv_heads",
                format!("must equal n_heads in the {family} family"),
            );
        }
        v.check(table.rotary || self.rope_theta.is_none(), "rope_theta", belongs_to(|table| table.rotary));
        v.check(
            table.rotary || self.tied_head != Some(false),
            "tied_head",
            format!("must be true in the {family} family"),
        );
        if self.family != Family::Gpt2 {
            v.check(!self.inverse_layer_scale, "inverse_layer_scale", "belongs to the gpt2 family");
        }
        if table.bias != Bias::Chosen {
            v.check(!self.no_bias, "no_bias", belongs_to(|table| table.bias == Bias::Chosen));
        }
        if self.n_heads >= 1 {
            (table.check)(self, v);
        }
    }

    /// The full shape, for a tokenizer of `vocab_size` entries: what the family's published models choose where
    /// this leaves it open.
    pub fn config(&self, vocab_size: u32) -> DecoderConfig {
        let table = self.family.table();
        let plain = DecoderConfig {
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads.unwrap_or(self.n_heads),
            head_dim: self.d_model / self.n_heads.max(1),
            d_ff: self.d_ff.unwrap_or(self.d_model.saturating_mul(4)),
            // Validation refuses what is too large to be rounded up.
            vocab_size: self.padded_vocab_size(vocab_size).unwrap_or(vocab_size),
            max_positions: self.max_positions,
            rope_theta: table.rotary.then(|| self.rope_theta.unwrap_or(10_000.0)),
            tied_head: self.tied_head.unwrap_or(!table.rotary),
            inverse_layer_scale: self.inverse_layer_scale,
            no_bias: self.no_bias,
            ..DecoderConfig::plain(self.family)
        };
        (table.fresh)(self, plain)
    }
}

/// The families that have something, in words.
fn belongs_to(has: impl Fn(&FamilyTable) -> bool) -> String {
    let names: Vec<&str> = Family::ALL.into_iter().filter(|family| has(family.table())).map(Family::as_str).collect();
    match names.as_slice() {
        [one] => format!("belongs to the {one} family"),
        names => format!("belongs to the {} families", names.join(" and ")),
    }
}
