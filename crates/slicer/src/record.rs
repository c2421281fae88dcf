//! What a target records about itself: `inheritance.json` for machines, `README.md` for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use inheritune_checkpoint::decoder_config::Init;
use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};
use inheritune_checkpoint::safetensors_header::Dtype;
use inheritune_checkpoint::slice_plan::{Origin, Placement, Reading, Source};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::model_card::{self, CardMetadata};
use serde::Serialize;

use crate::plan::PlannedSlice;

/// The file name of a model card.
pub const CARD_FILE: &str = "README.md";
/// The file name of the inheritance record in a checkpoint; the trainer copies it unchanged.
pub const RECORD_FILE: &str = "inheritance.json";

/// `inheritance.json`: the origin of every tensor of a target, before training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InheritanceRecord {
    version: u32,
    family: &'static str,
    layers: u32,
    reference: Option<RecordedSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<RecordedSource>,
    layer_map: Option<Vec<u32>>,
    seed: u64,
    tensors: Vec<RecordedTensor>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct RecordedSource {
    location: String,
    layers: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct RecordedTensor {
    name: String,
    origin: &'static str,
    from: String,
    /// `reference` or `previous`, for a copied tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// The source file of a copied tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// How a copied tensor was converted; absent if its bytes are the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<&'static str>,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: u64,
    /// Empty for a tied tensor, which has no bytes of its own.
    sha256: String,
}

impl InheritanceRecord {
    /// The record of a target whose tensors were written with these digests.
    pub fn new(planned: &PlannedSlice, seed: u64, digests: &BTreeMap<String, Sha256Digest>) -> Self {
        let config = planned.plan.config();
        let source = |source| {
            planned.checkpoint(source).map(|checkpoint| RecordedSource {
                location: checkpoint.location.to_string(),
                layers: checkpoint.config().n_layers.0,
            })
        };
        Self {
            version: 1,
            family: config.family.as_str(),
            layers: config.n_layers.0,
            reference: source(Source::Reference),
            previous: source(Source::Previous),
            layer_map: planned.plan.layer_map().map(|map| map.sources().to_vec()),
            seed,
            tensors: planned.plan.tensors().iter().map(|placement| recorded(placement, digests)).collect(),
        }
    }

    /// The content of the file.
    pub fn to_json(&self) -> String {
        // Numbers, strings and lists of them always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

fn recorded(placement: &Placement, digests: &BTreeMap<String, Sha256Digest>) -> RecordedTensor {
    let (origin, source, file) = match &placement.origin {
        Origin::Copied { source, tensor } => ("copied", Some(*source), Some(tensor.file.clone())),
        Origin::Tied { .. } => ("tied", None, None),
        Origin::Fresh { .. } => ("fresh", None, None),
    };
    let layout = match &placement.origin {
        Origin::Copied { tensor, .. } => match tensor.reading {
            Reading::Whole => None,
            Reading::Transposed => Some("transposed"),
            Reading::Parts { .. } => Some("rows of a fused tensor"),
        },
        Origin::Tied { .. } | Origin::Fresh { .. } => None,
    };
    let name = placement.target.name.clone();
    RecordedTensor {
        origin,
        from: described_origin(&placement.origin),
        source,
        file,
        layout,
        dtype: placement.dtype,
        shape: placement.target.shape.clone(),
        bytes: placement.size_bytes(),
        sha256: digests.get(&name).map(Sha256Digest::to_string).unwrap_or_default(),
        name,
    }
}

/// Describes an origin: the source's tensor name, the tensor it is tied to, or how it is
/// initialised.
pub fn described_origin(origin: &Origin) -> String {
    match origin {
        Origin::Copied { source: Source::Reference, tensor } => tensor.name.clone(),
        Origin::Copied { source: Source::Previous, tensor } => format!("previous candidate: {}", tensor.name),
        Origin::Tied { to } => to.clone(),
        Origin::Fresh { init: Init::Zeros } => "zeros".to_owned(),
        Origin::Fresh { init: Init::Ones } => "ones".to_owned(),
        Origin::Fresh { init: Init::Normal { std } } => format!("normal(0, {std})"),
    }
}

/// Longest model card or license of a reference that is read for its metadata.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// The model card metadata of a target: its reference, if anything is copied from it, and the
/// reference's license.
pub async fn metadata(planned: &PlannedSlice) -> CardMetadata {
    let copied = planned.plan.copied_parts() != InheritSet::NOTHING;
    let Some(reference) = planned.reference.as_ref().filter(|_| copied) else { return CardMetadata::default() };
    let folder = &reference.folder;
    // Unreadable files are ignored: a missing license must not fail the slice.
    let text = async |name: &str| -> Option<String> {
        let bytes = folder.read(name, MAX_TEXT_BYTES).await.ok()?;
        String::from_utf8(bytes.to_vec()).ok()
    };
    let card = if folder.has(CARD_FILE) { text(CARD_FILE).await } else { None };
    let mut license = card.as_deref().and_then(model_card::license_of_card);
    if license.is_none() {
        let names = folder.files().iter().map(|file| file.name.as_str());
        let is_license = |name: &&str| {
            let name = name.to_ascii_uppercase();
            !name.contains('/') && ["LICENSE", "LICENCE", "COPYING"].iter().any(|start| name.starts_with(start))
        };
        if let Some(name) = names.filter(is_license).min() {
            license = text(name).await.map(|text| model_card::license_of_file(name, &text));
        }
    }
    let base_model = model_card::base_model(&reference.location.to_string())
        .or_else(|| card.as_deref().and_then(model_card::base_model_of_card));
    CardMetadata { base_model, license }
}

/// The model card of the target.
pub fn readme(planned: &PlannedSlice, metadata: &CardMetadata, seed: u64) -> String {
    let (plan, config) = (&planned.plan, planned.plan.config());
    let (copied, fresh) = (plan.copied_parts(), plan.fresh_parts());
    // The parts are listed only if some are copied and others are fresh.
    let mixed = copied != InheritSet::NOTHING && fresh != InheritSet::NOTHING;
    let parts = |set: InheritSet| if mixed { format!(": {}", set.listed()) } else { String::new() };
    let mut text = metadata.to_yaml() + "\n# ";
    match &planned.reference {
        Some(reference) if copied != InheritSet::NOTHING => {
            let whole = !fresh.parts().any(InheritPart::is_of_blocks);
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} of {} layers, inherited{}\n\nMade by Inheritune from `{}`.",
                config.n_layers,
                reference.config().n_layers,
                if whole { "" } else { " in part" },
                reference.location
            );
        }
        Some(_) | None => {
            let _ = writeln!(text, "{} layers, randomly initialised\n\nMade by Inheritune.", config.n_layers);
        }
    }
    if let Some(previous) = &planned.previous {
        let _ = writeln!(
            text,
            "Its first {} layers, its embeddings, its final norm and its head are copied from `{}`.",
            previous.config().n_layers,
            previous.location
        );
    }
    let layer_map = match plan.layer_map() {
        Some(map) => format!("{:?}", map.sources()),
        None => "none".to_owned(),
    };
    let _ = write!(
        text,
        "\n| | |\n|---|---|\n| family | {} |\n| layers | {} |\n| source layers | {layer_map} |\n| width | {} |\n\
         | heads | {} |\n| vocabulary | {} |\n| context | {} tokens |\n| parameters | {} |\n| copied tensors | {}{} |\n\
         | fresh tensors | {}{} (seed {seed}) |\n\n\
         `{RECORD_FILE}` lists the origin of every tensor, and its SHA-256 before training.\n\
         Load it with `transformers.AutoModelForCausalLM.from_pretrained` on this folder.\n",
        config.family.as_str(),
        config.n_layers,
        config.d_model,
        config.n_heads,
        config.vocab_size,
        config.max_positions,
        config.parameters(),
        plan.copied().count(),
        parts(copied),
        plan.fresh_tensors().count(),
        parts(fresh),
    );
    text
}
