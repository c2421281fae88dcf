//! A family's block as a table: its tensors, and which names in a file are among them, from one list.

use super::decoder_config::{BlockPart, Init, TensorRole, TensorSpec};

/// One tensor of every block.
#[derive(Debug, Clone)]
pub(super) struct Part {
    name: String,
    shape: Vec<u64>,
    part: BlockPart,
    init: Init,
}

/// A projection [out, in], with its bias where the family has biases.
pub(super) fn linear(name: &str, (out, input): (u64, u64), part: BlockPart, (std, bias): (f64, bool)) -> Vec<Part> {
    let weight = Part { name: format!("{name}.weight"), shape: vec![out, input], part, init: Init::Normal { std } };
    let bias = bias.then(|| Part { name: format!("{name}.bias"), shape: vec![out], part, init: Init::Zeros });
    std::iter::once(weight).chain(bias).collect()
}

/// A LayerNorm over `width`, with its bias where the family has biases.
pub(super) fn norm(name: &str, width: u64, bias: bool) -> Vec<Part> {
    let part =
        |suffix: &str, init| Part { name: format!("{name}.{suffix}"), shape: vec![width], part: BlockPart::Norm, init };
    let bias = bias.then(|| part("bias", Init::Zeros));
    std::iter::once(part("weight", Init::Ones)).chain(bias).collect()
}

/// The tensors of `layers` blocks of `parts`, whose names begin with `prefix` and the layer's index.
pub(super) fn tensors(prefix: &str, layers: u32, parts: &[Part]) -> Vec<TensorSpec> {
    let block = |layer: u32| {
        parts.iter().map(move |part| TensorSpec {
            name: format!("{prefix}{layer}.{}", part.name),
            shape: part.shape.clone(),
            role: TensorRole::Block { layer, part: part.part },
            init: part.init,
            tied_to: None,
        })
    };
    (0..layers).flat_map(block).collect()
}

/// Layer and rest of a block tensor's name: `h.3.ln_1.bias` after the prefix `h.` is (3, `ln_1.bias`).
pub(super) fn split<'a>(name: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Whether `rest` of layer `layer` is one of `parts`, in a model of `layers` blocks.
pub(super) fn has((layer, rest): (u32, &str), layers: u32, parts: &[Part]) -> bool {
    layer < layers && parts.iter().any(|part| part.name == rest)
}
