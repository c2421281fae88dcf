//! The tensors of a reference that a target inherits: any set of parts. Some sets have a name.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decoder_config::{BlockPart, TensorRole};
use inheritune_ids::named;

#[cfg(test)]
mod tests;

named! {
    /// A part of a model. Either all of its tensors are inherited, or none. The paper's ablation
    /// (v4) splits the blocks in this way.
    pub enum InheritPart {
        /// The token embedding. If the head is tied to it, either name means the same tensor.
        TokenEmbedding = "token_embedding",
        /// Learned positions. Has no effect in families without them.
        PositionEmbedding = "position_embedding",
        /// The attention projections of the blocks.
        Attention = "attention",
        /// The MLP projections of the blocks.
        Mlp = "mlp",
        /// All norms of the blocks, including mosaic_gpt's norms over queries and keys.
        Norms = "norms",
        /// The norm after the last block.
        FinalNorm = "final_norm",
        /// The prediction head.
        Head = "head",
    }
}

impl InheritPart {
    /// Returns the part that tensors of this role belong to.
    pub fn of(role: TensorRole) -> Self {
        match role {
            TensorRole::TokenEmbedding => Self::TokenEmbedding,
            TensorRole::PositionEmbedding => Self::PositionEmbedding,
            TensorRole::Block { part: BlockPart::Attention, .. } => Self::Attention,
            TensorRole::Block { part: BlockPart::Mlp, .. } => Self::Mlp,
            TensorRole::Block { part: BlockPart::Norm, .. } => Self::Norms,
            TensorRole::FinalNorm => Self::FinalNorm,
            TensorRole::Head => Self::Head,
        }
    }

    /// Returns whether the part belongs to the transformer blocks.
    pub fn is_of_blocks(self) -> bool {
        match self {
            Self::Attention | Self::Mlp | Self::Norms => true,
            Self::TokenEmbedding | Self::PositionEmbedding | Self::FinalNorm | Self::Head => false,
        }
    }
}

/// The parts that a target inherits. Written as the name of a preset or as a list of parts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InheritSet {
    /// Bit i stands for the part i of [`InheritPart::ALL`].
    bits: u8,
}

impl InheritSet {
    /// Blocks, token and position embeddings, final norm and head (poster §2; the default).
    pub const ALL: Self = Self::of(&InheritPart::ALL);
    /// What the released code copies: blocks and head, which is the token embedding if it is tied.
    pub const OFFICIAL_CODE: Self =
        Self::of(&[InheritPart::Attention, InheritPart::Mlp, InheritPart::Norms, InheritPart::Head]);
    /// Only the blocks.
    pub const BLOCKS: Self = Self::of(&[InheritPart::Attention, InheritPart::Mlp, InheritPart::Norms]);
    /// Nothing: the random-initialisation control.
    pub const NOTHING: Self = Self::of(&[]);
    /// The sets with a name.
    pub const PRESETS: [(&'static str, Self); 4] = [
        ("all", Self::ALL),
        ("official-code", Self::OFFICIAL_CODE),
        ("blocks", Self::BLOCKS),
        ("nothing", Self::NOTHING),
    ];

    /// Returns the set of these parts.
    pub const fn of(parts: &[InheritPart]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < parts.len() {
            bits |= 1 << parts[i] as u8;
            i += 1;
        }
        Self { bits }
    }

    /// Returns whether the set contains `part`.
    pub fn has(self, part: InheritPart) -> bool {
        self.bits & Self::of(&[part]).bits != 0
    }

    /// Returns the parts, in forward order.
    pub fn parts(self) -> impl Iterator<Item = InheritPart> {
        InheritPart::ALL.into_iter().filter(move |part| self.has(*part))
    }

    /// Returns the names of its parts, even if they are a preset: `attention, norms`.
    pub fn listed(self) -> String {
        self.parts().map(InheritPart::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Returns the name of the preset, if it is one.
    pub fn preset(self) -> Option<&'static str> {
        Self::PRESETS.into_iter().find(|(_, set)| *set == self).map(|(name, _)| name)
    }
}

impl Default for InheritSet {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<InheritPart> for InheritSet {
    fn from_iter<I: IntoIterator<Item = InheritPart>>(parts: I) -> Self {
        Self::of(&parts.into_iter().collect::<Vec<_>>())
    }
}

/// Writes the name of the preset, or the parts: `attention, norms`.
impl fmt::Display for InheritSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.preset() {
            Some(name) => f.write_str(name),
            None => f.write_str(&self.listed()),
        }
    }
}

impl fmt::Debug for InheritSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InheritSet({self})")
    }
}

/// Parses the name of a preset, or parts separated by commas.
impl FromStr for InheritSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some((_, set)) = Self::PRESETS.into_iter().find(|(name, _)| *name == text) {
            return Ok(set);
        }
        text.split(',').map(|name| InheritPart::parse(name.trim()).ok_or_else(|| unknown(name.trim()))).collect()
    }
}

fn unknown(name: &str) -> String {
    let presets = InheritSet::PRESETS.map(|(name, _)| name);
    if presets.contains(&name) {
        return format!("`{name}` is a preset, which cannot be combined with parts");
    }
    format!(
        "`{name}` is unknown: give one of {}, or a list of the parts {}",
        presets.join(", "),
        InheritPart::ALL.map(InheritPart::as_str).join(", ")
    )
}

impl Serialize for InheritSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.preset() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.collect_seq(self.parts()),
        }
    }
}

impl<'de> Deserialize<'de> for InheritSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrParts)
    }
}

struct NameOrParts;

impl<'de> Visitor<'de> for NameOrParts {
    type Value = InheritSet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`all` or another preset, or a list of parts")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<InheritSet, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<InheritSet, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = items.next_element::<InheritPart>()? {
            parts.push(part);
        }
        // An empty list is more likely a mistake than a request for a random model.
        if parts.is_empty() {
            return Err(A::Error::custom("lists no parts: write \"nothing\" to inherit nothing"));
        }
        Ok(parts.into_iter().collect())
    }
}
