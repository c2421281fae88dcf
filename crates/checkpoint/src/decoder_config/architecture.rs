//! The shape of a new model, as described in a recipe.

use serde::{Deserialize, Serialize};

use super::{DecoderConfig, Family, MAX_DIMENSION};
use crate::families::{Bias, FamilyTable};
use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

/// The shape of a new model, as described in a recipe. The vocabulary size comes from the
/// tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The family.
    pub family: Family,
    /// Number of transformer blocks.
    pub n_layers: LayerCount,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Number of query heads.
    pub n_heads: u32,
    /// Number of key and value heads. Equals `n_heads` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<u32>,
    /// Width of the MLP. 4 `d_model` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<u32>,
    /// Maximum sequence length.
    pub max_positions: u32,
    /// RoPE's base (llama, gpt_neox). 10000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Whether the head is tied to the token embedding. If absent, false for llama and gpt_neox,
    /// and true for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied_head: Option<bool>,
    /// GPT-2's `scale_attn_by_inverse_layer_idx`, which the paper's runs set.
    #[serde(default)]
    pub inverse_layer_scale: bool,
    /// GPT-2 without biases, as in the paper's runs.
    #[serde(default)]
    pub no_bias: bool,
    /// Round the number of token embedding rows up to a multiple of this. The paper's runs round
    /// GPT-2's 50257 entries up to 50304, a multiple of 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_vocab_to_multiple_of: Option<u32>,
}

impl Architecture {
    /// Checks that the fields are consistent with each other and with the family. The caller checks
    /// the bounds of single numbers.
    ///
    /// # Errors
    /// The violations, with fields named relative to this spec.
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

    /// Returns the number of embedding rows for a tokenizer of `vocab_size` entries, or `None` if
    /// there are too many.
    pub fn padded_vocab_size(&self, vocab_size: u32) -> Option<u32> {
        let multiple = self.pad_vocab_to_multiple_of.unwrap_or(1).max(1);
        vocab_size.checked_next_multiple_of(multiple).filter(|rows| *rows <= MAX_DIMENSION)
    }

    /// Checks options that the family does not have.
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
            table.untied_head || self.tied_head != Some(false),
            "tied_head",
            format!("must be true in the {family} family"),
        );
        if !table.inverse_layer_scale {
            v.check(!self.inverse_layer_scale, "inverse_layer_scale", belongs_to(|table| table.inverse_layer_scale));
        }
        if table.bias != Bias::Chosen {
            v.check(!self.no_bias, "no_bias", belongs_to(|table| table.bias == Bias::Chosen));
        }
        if self.n_heads >= 1 {
            (table.check)(self, v);
        }
    }

    /// Returns the full shape for a tokenizer of `vocab_size` entries. Options that are left open
    /// follow the family's published models.
    pub fn config(&self, vocab_size: u32) -> DecoderConfig {
        let table = self.family.table();
        let plain = DecoderConfig {
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads.unwrap_or(self.n_heads),
            head_dim: self.d_model / self.n_heads.max(1),
            d_ff: self.d_ff.unwrap_or(self.d_model.saturating_mul(4)),
            // Validation rejects sizes that are too large to round up.
            vocab_size: self.padded_vocab_size(vocab_size).unwrap_or(vocab_size),
            max_positions: self.max_positions,
            rope_theta: table.rotary.then(|| self.rope_theta.unwrap_or(10_000.0)),
            tied_head: self.tied_head.unwrap_or(!table.untied_head),
            inverse_layer_scale: self.inverse_layer_scale,
            no_bias: self.no_bias,
            ..DecoderConfig::plain(self.family)
        };
        (table.fresh)(self, plain)
    }
}

/// Returns a phrase that lists the families for which `has` is true.
fn belongs_to(has: impl Fn(&FamilyTable) -> bool) -> String {
    let names: Vec<&str> = Family::ALL.into_iter().filter(|family| has(family.table())).map(Family::as_str).collect();
    match names.as_slice() {
        [one] => format!("belongs to the {one} family"),
        names => format!("belongs to the {} families", names.join(" and ")),
    }
}
