//! Interprets the tensor names in weight files: a prefix that all of them share, tensors that no
//! language model needs, and explanations of unknown names.

use super::decoder_config::{DecoderConfig, NameInFile};
use super::safetensors_header::Dtype;

#[cfg(test)]
mod tests;

/// Maximum number of parts of a prefix that is removed. `module.base_model.model.` has three.
const MAX_PREFIX_PARTS: usize = 4;

pub(super) const CAUSAL_MASK: &str = "a causal mask: computed, not learned";
const POSITIONS: &str = "rotary positions: computed from config.json";
const POSITION_IDS: &str = "position ids: computed, not learned";
const EXTRA_STATE: &str = "settings of the program that wrote the file, not a weight";
const OTHER_HEAD: &str = "a head for a task other than predicting tokens";
const COMPUTED_PARTS: [&str; 4] = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];
const OTHER_HEADS: [&str; 9] = [
    "v_head.",
    "value_head.",
    "score.",
    "classifier.",
    "reward_head.",
    "critic_head.",
    "regression_head.",
    "multiple_choice_head.",
    "qa_outputs.",
];
/// Last parts of names that only occur in quantised weights: GPTQ and AWQ, fp8, compressed-tensors,
/// bitsandbytes, HQQ, AQLM.
const QUANTISED_PARTS: [&str; 23] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "input_scale",
    "output_scale",
    "weight_zero_point",
    "weight_packed",
    "weight_shape",
    "weight_format",
    "SCB",
    "absmax",
    "nested_absmax",
    "quant_map",
    "nested_quant_map",
    "W_q",
    "codes",
    "codebooks",
    "act_scale",
    "scale_weight",
];
/// Advice for quantised weights.
pub(super) const DEQUANTISE: &str = "use the original model, or dequantise this one first (transformers: \
     `model = AutoModelForCausalLM.from_pretrained(FOLDER).dequantize()`, then `model.save_pretrained(NEW)`)";

/// Returns the reason why a language model of any family does not need the tensor `name`, if that
/// is the case.
pub(super) fn not_needed(name: &str) -> Option<&'static str> {
    let (above, last) = name.rsplit_once('.').unwrap_or(("", name));
    if last == "_extra_state" {
        return Some(EXTRA_STATE);
    }
    if COMPUTED_PARTS.contains(&last) && above.rsplit('.').next().is_some_and(|part| part.starts_with("rotary")) {
        return Some(POSITIONS);
    }
    if last == "position_ids" {
        return Some(POSITION_IDS);
    }
    if matches!(name.rsplit_once(".attn."), Some((_, "masked_bias")))
        || matches!(name.rsplit_once(".attention."), Some((_, "masked_bias")))
    {
        return Some(CAUSAL_MASK);
    }
    OTHER_HEADS.iter().any(|head| name.starts_with(head)).then_some(OTHER_HEAD)
}

/// Returns whether a tensor of this name belongs to quantised weights.
fn is_quantised(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    QUANTISED_PARTS.contains(&last) || name.contains(".quant_state.")
}

/// Returns a message for weights with the unsupported dtype `dtype`.
pub(super) fn wrong_dtype(dtype: Dtype) -> String {
    let only = format!("has dtype {dtype}; weights must be F32, F16 or BF16");
    match dtype {
        Dtype::F64 => format!(
            "{only}: convert it (transformers: `from_pretrained(FOLDER, dtype=\"float32\").save_pretrained(NEW)`) and specify NEW"
        ),
        _ => format!("{only}. If they are quantised, {DEQUANTISE}"),
    }
}

/// The meaning of the tensor names in the files of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorNames<'a> {
    config: &'a DecoderConfig,
    prefix: String,
}

impl<'a> TensorNames<'a> {
    /// Detects the prefix that wrappers (DataParallel's `module.`, torch.compile's `_orig_mod.`, a
    /// trainer's `model.`) add to all of `names`. Tensors that are not needed may lack it.
    pub fn new<'n>(config: &'a DecoderConfig, names: impl Iterator<Item = &'n str> + Clone) -> Self {
        let none = Self { config, prefix: String::new() };
        let needed = names.filter(|name| not_needed(name).is_none());
        if needed.clone().all(|name| none.meaning(name) != NameInFile::Unknown) {
            return none;
        }
        let shared = shared_prefix(needed.clone());
        let ends = shared.match_indices('.').map(|(at, _)| at + 1).take(MAX_PREFIX_PARTS);
        let known = |names: &Self| needed.clone().filter(|name| names.meaning(name) != NameInFile::Unknown).count();
        let mut best = (known(&none), none);
        for end in ends {
            let names = Self { config, prefix: shared[..end].to_owned() };
            let count = known(&names);
            if count > best.0 {
                best = (count, names);
            }
        }
        best.1
    }

    /// Returns the prefix of all names, which is usually empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the meaning of `name`.
    pub fn meaning(&self, name: &str) -> NameInFile {
        match name.strip_prefix(&self.prefix) {
            Some(bare) => self.config.name_in_file(bare),
            None => not_needed(name).map_or(NameInFile::Unknown, NameInFile::NotNeeded),
        }
    }

    /// Returns a message for the tensor `name`, which has no meaning.
    pub fn unknown(&self, name: &str) -> String {
        let (layers, family) = (self.config.n_layers, self.config.family);
        if is_quantised(name) {
            return format!("belongs to quantised weights, which are not supported: {DEQUANTISE}");
        }
        if name.contains("lora_") || name.contains(".base_layer.") {
            return "belongs to a LoRA adapter: merge it into its base model first (peft: `merge_and_unload`)"
                .to_owned();
        }
        let bare = name.strip_prefix(&self.prefix).unwrap_or(name);
        let layer = bare.split('.').find_map(|part| part.parse::<u32>().ok());
        if let Some(layer) = layer.filter(|layer| *layer >= layers.0) {
            return format!(
                "belongs to layer {layer}, but config.json says that there are {layers} layers, 0 to {}: if the file is \
                 right, correct the number of layers in config.json",
                layers.0.saturating_sub(1)
            );
        }
        if name.ends_with("attention.wq.weight") || name == "tok_embeddings.weight" {
            return "has a name of Meta's format: convert the checkpoint with transformers' convert_llama_weights_to_hf.py, or \
                    specify the Hugging Face version of the model"
                .to_owned();
        }
        format!("is unknown in the {} family with {layers} layers", family.as_str())
    }
}

/// Returns the longest common prefix of all names that ends with a dot.
fn shared_prefix<'n>(mut names: impl Iterator<Item = &'n str>) -> &'n str {
    let Some(first) = names.next() else { return "" };
    let mut shared = first.rfind('.').map_or("", |dot| &first[..=dot]);
    for name in names {
        while !name.starts_with(shared) {
            let shorter = shared.trim_end_matches('.').rfind('.');
            shared = shorter.map_or("", |dot| &shared[..=dot]);
        }
    }
    shared
}
