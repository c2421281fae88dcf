//! Conversions for model shapes and slices.

use inheritune_checkpoint::decoder_config::{Architecture, DecoderConfig, Family};
use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};
use inheritune_domain::artifact::Location;
use inheritune_domain::id::LayerCount;
use inheritune_domain::spec::{JobSpec, LayerMapRule, SliceSource, SliceSpec, Sliced, defaults, limits};
use inheritune_domain::violation::Violations;

use super::fields::{Field, Notes};
use crate::v1;

/// Returns the slice of a [`v1::PlanSliceRequest`]. Violations name fields relative to the request.
///
/// # Errors
/// All violations.
pub fn planned_slice(request: &v1::PlanSliceRequest) -> Result<SliceSpec, Violations> {
    let mut notes = Notes::default();
    let mut field = Field::root(&mut notes);
    let mut field = field.at("spec");
    let message = field.required(request.spec.clone());
    let spec = slice_spec(&mut field, message);
    notes.domain(JobSpec::Slice(spec.clone()).validate(), |path| format!("spec.{}", renamed(path)));
    notes.into_result(spec)
}

/// Returns the checkpoint of a [`v1::InspectRequest`].
///
/// # Errors
/// It is not a valid location.
pub fn inspected(request: &v1::InspectRequest) -> Result<Location, Violations> {
    let mut notes = Notes::default();
    let location = Field::root(&mut notes).at("checkpoint").location(&request.checkpoint);
    notes.into_result(location)
}

/// Returns the path in [`v1::SliceSpec`] of a path reported by the domain's validation of a slice.
pub(super) fn renamed(path: &str) -> String {
    match path.strip_prefix("source.") {
        Some(rest) if rest.starts_with("architecture") || rest == "vocab_size" => format!("fresh.{rest}"),
        Some(rest) => format!("reference.{}", rest.replace("layer_map[", "layer_map.list[")),
        None => path.to_owned(),
    }
}

pub(super) fn slice_spec(field: &mut Field<'_>, message: v1::SliceSpec) -> SliceSpec {
    let source = match message.source {
        Some(v1::slice_spec::Source::Fresh(fresh)) => {
            let (architecture, vocab_size) = fresh_source(&mut field.at("fresh"), fresh);
            SliceSource::Architecture { architecture, vocab_size }
        }
        Some(v1::slice_spec::Source::Reference(reference)) => checkpoint_source(&mut field.at("reference"), reference),
        None => {
            field.at("source").missing("give fresh or reference");
            checkpoint_source(&mut field.at("source"), v1::CheckpointSource::default())
        }
    };
    let tokenizer = field.at("tokenizer_artifact_id").optional_id(&message.tokenizer_artifact_id);
    let max_shard_size_bytes = message.max_shard_size_bytes.unwrap_or(defaults::max_shard_size_bytes());
    SliceSpec { source, tokenizer, seed: message.seed, max_shard_size_bytes }
}

/// Returns the shape and the vocabulary size of a fresh model, without validating them.
pub(super) fn fresh_source(field: &mut Field<'_>, message: v1::FreshSource) -> (Architecture, u32) {
    let mut at = field.at("architecture");
    let shape = at.required(message.architecture);
    (architecture(&mut at, shape), message.vocab_size)
}

fn checkpoint_source(field: &mut Field<'_>, message: v1::CheckpointSource) -> SliceSource {
    SliceSource::Checkpoint {
        checkpoint: field.at("checkpoint").location(&message.checkpoint),
        layers: LayerCount(message.layers),
        layer_map: layer_map(&mut field.at("layer_map"), message.layer_map),
        inherit: inherit(field, message.inherit, &message.inherit_parts),
        previous: field.at("previous_artifact_id").optional_id(&message.previous_artifact_id),
    }
}

pub(super) fn architecture(field: &mut Field<'_>, message: v1::Architecture) -> Architecture {
    Architecture {
        family: architecture_family(&mut field.at("family"), &message),
        n_layers: LayerCount(message.n_layers),
        d_model: message.d_model,
        n_heads: message.n_heads,
        n_kv_heads: message.n_kv_heads,
        d_ff: message.d_ff,
        max_positions: message.max_positions,
        rope_theta: message.rope_theta,
        tied_head: message.tied_head,
        inverse_layer_scale: message.inverse_layer_scale,
        no_bias: message.no_bias,
        pad_vocab_to_multiple_of: message.pad_vocab_to_multiple_of,
    }
}

fn architecture_family(field: &mut Field<'_>, message: &v1::Architecture) -> Family {
    // If the family is missing, use one with which the other fields cause no further violations.
    let gpt2 = message.inverse_layer_scale || message.no_bias;
    family(field, message.family).unwrap_or(if gpt2 { Family::Gpt2 } else { Family::Llama })
}

fn family(field: &mut Field<'_>, value: i32) -> Option<Family> {
    let family = field.named(value);
    if value == 0 {
        field.bad(format!("must be given: one of {}", Family::list()));
    }
    family
}

/// Reads the fields `inherit` and `inherit_parts` of the message at `field`.
pub(super) fn inherit(field: &mut Field<'_>, set: i32, parts: &[i32]) -> InheritSet {
    let preset = match field.at("inherit").known(set) {
        Some(v1::InheritSet::Unspecified | v1::InheritSet::Parts) if !parts.is_empty() => {
            return inherit_parts(&mut field.at("inherit_parts"), parts);
        }
        Some(v1::InheritSet::Parts) => {
            field.at("inherit_parts").bad("must name at least one part");
            InheritSet::NOTHING
        }
        None | Some(v1::InheritSet::Unspecified | v1::InheritSet::All) => InheritSet::ALL,
        Some(v1::InheritSet::OfficialCode) => InheritSet::OFFICIAL_CODE,
        Some(v1::InheritSet::Blocks) => InheritSet::BLOCKS,
        Some(v1::InheritSet::Nothing) => InheritSet::NOTHING,
    };
    if !parts.is_empty() {
        field.at("inherit_parts").bad("is only allowed with the parts set: give inherit or inherit_parts, not both");
    }
    preset
}

fn inherit_parts(field: &mut Field<'_>, parts: &[i32]) -> InheritSet {
    if !limits::INHERIT_PARTS.holds(parts.len()) {
        field.bad(limits::INHERIT_PARTS.description());
    }
    let mut known = Vec::new();
    for (i, value) in parts.iter().enumerate().take(limits::INHERIT_PARTS.max) {
        let mut field = field.index(i);
        if *value == 0 {
            field.bad(format!("must be one of {}", InheritPart::ALL.map(InheritPart::as_str).join(", ")));
        }
        known.extend(field.named::<InheritPart>(*value));
    }
    known.into_iter().collect()
}

/// Returns `set` as the fields `inherit` and `inherit_parts` of a message.
pub(super) fn inherit_fields(set: InheritSet) -> (i32, Vec<i32>) {
    let preset = match set {
        InheritSet::ALL => v1::InheritSet::All,
        InheritSet::OFFICIAL_CODE => v1::InheritSet::OfficialCode,
        InheritSet::BLOCKS => v1::InheritSet::Blocks,
        InheritSet::NOTHING => v1::InheritSet::Nothing,
        _ => {
            let parts = set.parts().map(|part| v1::InheritPart::from(part).into()).collect();
            return (v1::InheritSet::Parts.into(), parts);
        }
    };
    (preset.into(), Vec::new())
}

pub(super) fn layer_map(field: &mut Field<'_>, message: Option<v1::LayerMap>) -> LayerMapRule {
    let message = message.unwrap_or_default();
    let rule = match field.at("rule").known(message.rule) {
        Some(v1::LayerMapRule::Unspecified) if !message.list.is_empty() => v1::LayerMapRule::List,
        None | Some(v1::LayerMapRule::Unspecified) => v1::LayerMapRule::First,
        Some(rule) => rule,
    };
    match rule {
        v1::LayerMapRule::List => return LayerMapRule::List(message.list),
        v1::LayerMapRule::Unspecified | v1::LayerMapRule::First | v1::LayerMapRule::FirstAndLast => {}
    }
    if !message.list.is_empty() {
        field.at("list").bad("is only allowed with the list rule");
    }
    match rule {
        v1::LayerMapRule::FirstAndLast => LayerMapRule::FirstAndLast,
        v1::LayerMapRule::Unspecified | v1::LayerMapRule::First | v1::LayerMapRule::List => LayerMapRule::First,
    }
}

pub(super) fn sliced(field: &mut Field<'_>, message: v1::Sliced) -> Sliced {
    Sliced {
        checkpoint: field.at("checkpoint_artifact_id").id(&message.checkpoint_artifact_id),
        config: config(&mut field.at("config"), message.config),
        reference_layers: LayerCount(message.reference_layers),
        parameters: message.parameters,
        copied_tensors: message.copied_tensors,
        fresh_tensors: message.fresh_tensors,
        copied_bytes: message.copied_bytes,
    }
}

pub(super) fn config(field: &mut Field<'_>, message: Option<v1::DecoderConfig>) -> DecoderConfig {
    let message = field.required(message);
    let family = family(&mut field.at("family"), message.family).unwrap_or(Family::Gpt2);
    DecoderConfig {
        family,
        n_layers: LayerCount(message.n_layers),
        d_model: message.d_model,
        n_heads: message.n_heads,
        n_kv_heads: message.n_kv_heads,
        head_dim: message.head_dim,
        d_ff: message.d_ff,
        vocab_size: message.vocab_size,
        max_positions: message.max_positions,
        norm_eps: message.norm_eps,
        rope_theta: message.rope_theta,
        tied_head: message.tied_head,
        inverse_layer_scale: message.inverse_layer_scale,
        init_std: message.init_std,
        no_bias: message.no_bias,
        rotary_dims: message.rotary_dims,
        parallel_residual: message.parallel_residual,
        tanh_gelu: message.tanh_gelu,
        alibi_bias_max: message.alibi_bias_max,
        qk_norm: message.qk_norm,
    }
}

impl From<&LayerMapRule> for v1::LayerMap {
    fn from(rule: &LayerMapRule) -> Self {
        let (rule, list) = match rule {
            LayerMapRule::First => (v1::LayerMapRule::First, Vec::new()),
            LayerMapRule::FirstAndLast => (v1::LayerMapRule::FirstAndLast, Vec::new()),
            LayerMapRule::List(list) => (v1::LayerMapRule::List, list.clone()),
        };
        Self { rule: rule.into(), list }
    }
}

impl From<&Architecture> for v1::Architecture {
    fn from(architecture: &Architecture) -> Self {
        Self {
            family: v1::Family::from(architecture.family).into(),
            n_layers: architecture.n_layers.0,
            d_model: architecture.d_model,
            n_heads: architecture.n_heads,
            n_kv_heads: architecture.n_kv_heads,
            d_ff: architecture.d_ff,
            max_positions: architecture.max_positions,
            rope_theta: architecture.rope_theta,
            tied_head: architecture.tied_head,
            inverse_layer_scale: architecture.inverse_layer_scale,
            no_bias: architecture.no_bias,
            pad_vocab_to_multiple_of: architecture.pad_vocab_to_multiple_of,
        }
    }
}

impl From<&DecoderConfig> for v1::DecoderConfig {
    fn from(config: &DecoderConfig) -> Self {
        Self {
            family: v1::Family::from(config.family).into(),
            n_layers: config.n_layers.0,
            d_model: config.d_model,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            d_ff: config.d_ff,
            vocab_size: config.vocab_size,
            max_positions: config.max_positions,
            norm_eps: config.norm_eps,
            rope_theta: config.rope_theta,
            tied_head: config.tied_head,
            inverse_layer_scale: config.inverse_layer_scale,
            init_std: config.init_std,
            no_bias: config.no_bias,
            rotary_dims: config.rotary_dims,
            parallel_residual: config.parallel_residual,
            tanh_gelu: config.tanh_gelu,
            alibi_bias_max: config.alibi_bias_max,
            qk_norm: config.qk_norm,
        }
    }
}

impl From<&SliceSpec> for v1::SliceSpec {
    fn from(spec: &SliceSpec) -> Self {
        let source = match &spec.source {
            SliceSource::Architecture { architecture, vocab_size } => v1::slice_spec::Source::Fresh(v1::FreshSource {
                architecture: Some(architecture.into()),
                vocab_size: *vocab_size,
            }),
            SliceSource::Checkpoint { checkpoint, layers, layer_map, inherit, previous } => {
                let (inherit, inherit_parts) = inherit_fields(*inherit);
                v1::slice_spec::Source::Reference(v1::CheckpointSource {
                    checkpoint: checkpoint.to_string(),
                    layers: layers.0,
                    layer_map: Some(layer_map.into()),
                    inherit,
                    previous_artifact_id: previous.map(|id| id.to_string()).unwrap_or_default(),
                    inherit_parts,
                })
            }
        };
        Self {
            source: Some(source),
            tokenizer_artifact_id: spec.tokenizer.map(|id| id.to_string()).unwrap_or_default(),
            seed: spec.seed,
            max_shard_size_bytes: Some(spec.max_shard_size_bytes),
        }
    }
}

impl From<&Sliced> for v1::Sliced {
    fn from(sliced: &Sliced) -> Self {
        Self {
            checkpoint_artifact_id: sliced.checkpoint.to_string(),
            config: Some((&sliced.config).into()),
            reference_layers: sliced.reference_layers.0,
            parameters: sliced.parameters,
            copied_tensors: sliced.copied_tensors,
            fresh_tensors: sliced.fresh_tensors,
            copied_bytes: sliced.copied_bytes,
        }
    }
}
