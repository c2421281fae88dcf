//! Which source layer each target layer is.

use serde::{Deserialize, Serialize};

use inheritune_ids::id::LayerCount;
use inheritune_ids::violation::Violations;

#[cfg(test)]
mod tests;

/// Target layer i is source layer `sources()[i]`; repeats are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerMap(Vec<u32>);

impl LayerMap {
    /// A map from a source of `reference_layers` layers.
    ///
    /// # Errors
    /// An empty list, or a layer that the source does not have.
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

    /// Every layer of a source of `layers`, in its place.
    pub fn identity(layers: LayerCount) -> Self {
        Self((0..layers.0).collect())
    }

    /// The source layers, in target order.
    pub fn sources(&self) -> &[u32] {
        &self.0
    }

    /// Layers of the target.
    pub fn layers(&self) -> LayerCount {
        LayerCount(self.0.len() as u32)
    }
}

/// How a number of layers becomes a list of source layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum LayerMapRule {
    /// The first n (the paper's recipe).
    #[default]
    First,
    /// The first n-1 and the last.
    FirstAndLast,
    /// This list, whatever n; one round only.
    List(Vec<u32>),
}

impl LayerMapRule {
    /// The source layers of a target of `layers` blocks; a list has its own number of them.
    ///
    /// # Errors
    /// No layers, more than the reference has, or an entry of a list that it does not have.
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
