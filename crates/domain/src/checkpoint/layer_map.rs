//! Which source layer each target layer is.

use serde::{Deserialize, Serialize};

use crate::id::LayerCount;
use crate::violation::Violations;

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
