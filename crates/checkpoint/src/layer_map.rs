//! The mapping from target layers to source layers.

use serde::{Deserialize, Serialize};

use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

#[cfg(test)]
mod tests;

/// The source layer of each target layer: target layer i is source layer `sources()[i]`. A source
/// layer may occur several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerMap(Vec<u32>);

impl LayerMap {
    /// Creates a map for a source with `reference_layers` layers.
    ///
    /// # Errors
    /// The list is empty, or contains a layer that the source does not have.
    pub fn new(sources: Vec<u32>, reference_layers: LayerCount) -> Result<Self, Violations> {
        let mut v = Violations::default();
        v.check(!sources.is_empty(), "layer_map", "must name at least one layer");
        for (i, source) in sources.iter().enumerate() {
            v.check(
                *source < reference_layers.0,
                format!("layer_map[{i}]"),
                format!("layer {source} does not exist: the reference has {reference_layers} layers"),
            );
        }
        v.into_result().map(|()| Self(sources))
    }

    /// Returns the map that keeps all `layers` layers in place.
    pub fn identity(layers: LayerCount) -> Self {
        Self((0..layers.0).collect())
    }

    /// Returns the source layers, in target order.
    pub fn sources(&self) -> &[u32] {
        &self.0
    }

    /// Returns the number of layers of the target.
    pub fn layers(&self) -> LayerCount {
        LayerCount(self.0.len() as u32)
    }
}

/// The rule that turns a number of layers into a list of source layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum LayerMapRule {
    /// The first n layers (the paper's recipe).
    #[default]
    First,
    /// The first n-1 layers and the last one.
    FirstAndLast,
    /// This list, regardless of n. Only for a single round.
    List(Vec<u32>),
}

impl LayerMapRule {
    /// Returns the source layers of a target with `layers` blocks. A list determines its own number
    /// of blocks.
    ///
    /// # Errors
    /// There are no layers, more layers than the reference has, or a list contains a layer that the
    /// reference does not have.
    pub fn layer_map(&self, layers: LayerCount, reference_layers: LayerCount) -> Result<LayerMap, Violations> {
        let sources = match self {
            Self::First | Self::FirstAndLast if layers > reference_layers => {
                let mut v = Violations::default();
                v.add("layers", format!("{layers} is more than the reference's {reference_layers} layers"));
                return Err(v);
            }
            Self::First => (0..layers.0).collect(),
            Self::FirstAndLast => match layers.0.checked_sub(1) {
                Some(all_but_one) => (0..all_but_one).chain([reference_layers.0 - 1]).collect(),
                None => Vec::new(),
            },
            Self::List(list) => list.clone(),
        };
        LayerMap::new(sources, reference_layers)
    }
}
