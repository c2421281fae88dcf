//! Turns a job's spec into a plan. Every problem is found here, before any weight is read.

use std::sync::Arc;

use inheritune_checkpoint::config_json::{self, WeightsDtype};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::left_out::LeftOut;
use inheritune_checkpoint::slice_plan::{Inheritance, SlicePlan, Source, layer_map};
use inheritune_domain::artifact::Location;
use inheritune_domain::id::LayerCount;
use inheritune_domain::spec::{SliceSource, SliceSpec};
use inheritune_objects::Folder;
use inheritune_store::Store;
use serde_json::Value;

use crate::error::SlicerError;
use crate::layout;
use crate::source::Checkpoint;
use crate::tokenizer::{CarriedFiles, TokenSet, check_own};

/// Everything a slice needs, read and checked; only the weights remain to be copied.
#[derive(Debug)]
pub struct PlannedSlice {
    /// The origin of every tensor.
    pub plan: SlicePlan,
    /// The target's `config.json`.
    pub config_json: Value,
    /// The reference; `None` for a model without one.
    pub reference: Option<Checkpoint>,
    /// The previous candidate, if its layers are carried over.
    pub previous: Option<Checkpoint>,
    /// Files that are copied into the target unchanged.
    pub carried: Vec<CarriedFiles>,
    /// What the target does not take over from the reference, or states differently.
    pub left_out: Vec<LeftOut>,
    /// Carried files whose content is rewritten.
    pub rewritten: Vec<(&'static str, Value)>,
}

impl PlannedSlice {
    /// Reads the sources' headers and makes the plan.
    ///
    /// # Errors
    /// A source is unusable, or the request does not fit it.
    pub async fn new(store: &Store, spec: &SliceSpec) -> Result<Self, SlicerError> {
        let tokens = match spec.tokenizer.map(Location::Artifact) {
            Some(location) => Some((TokenSet::open(store, &location).await?, location)),
            None => None,
        };
        let planned = match &spec.source {
            SliceSource::Architecture { architecture, vocab_size } => {
                let config = architecture.config(*vocab_size);
                let end_of_text = tokens.as_ref().and_then(|(tokens, _)| tokens.end_of_text_id);
                let (carried, left_out) = CarriedFiles::choose(None, tokens.as_ref().map(|(tokens, _)| tokens));
                Self {
                    config_json: fresh_config(&config, end_of_text),
                    plan: SlicePlan::fresh(config),
                    reference: None,
                    previous: None,
                    rewritten: Vec::new(),
                    carried,
                    left_out,
                }
            }
            SliceSource::Checkpoint { checkpoint, layers, layer_map: rule, inherit, previous } => {
                let reference = Checkpoint::open(store, checkpoint).await?;
                let previous = match previous.map(Location::Artifact) {
                    Some(location) => Some(Checkpoint::open(store, &location).await?),
                    None => None,
                };
                check_own(checkpoint, &reference.folder, reference.config()).await?;
                let layer_map = layer_map(rule, *layers, reference.config().n_layers)?;
                let plan = SlicePlan::new(Inheritance {
                    reference: &reference.inventory,
                    layer_map: &layer_map,
                    inherit: *inherit,
                    previous: previous.as_ref().map(|previous| &previous.inventory),
                })?;
                let target = config_json::target(
                    &reference.config_json,
                    reference.config(),
                    &layer_map,
                    WeightsDtype::Copied(reference.dtype()),
                );
                let (config_json, changed) = target.map_err(|error| SlicerError::checkpoint(checkpoint, error))?;
                let of_tensors = reference.inventory.left_out().iter().cloned();
                let (carried, files) =
                    CarriedFiles::choose(Some(&reference), tokens.as_ref().map(|(tokens, _)| tokens));
                let left_out =
                    of_tensors.chain(reference.unwritable.iter().cloned()).chain(changed).chain(files).collect();
                let rewritten = Vec::new();
                Self { config_json, left_out, rewritten, plan, carried, reference: Some(reference), previous }
            }
        };
        let mut planned = planned;
        for source in &planned.carried {
            for (file, json, changed) in source.rewritten(planned.plan.config()).await? {
                planned.rewritten.push((file, json));
                planned.left_out.extend(changed);
            }
        }
        if let Some((tokens, location)) = &tokens {
            tokens.check(location, planned.plan.config())?;
        }
        layout::count(&planned.plan, spec.max_shard_size_bytes)?;
        Ok(planned)
    }

    /// The number of layers of the reference; the target's own number if there is no reference.
    pub fn reference_layers(&self) -> LayerCount {
        self.reference.as_ref().map_or(self.plan.config().n_layers, |reference| reference.config().n_layers)
    }

    /// The folder of a source; `None` if the plan does not use that source.
    pub fn folder(&self, source: Source) -> Option<&Arc<Folder>> {
        self.checkpoint(source).map(|checkpoint| &checkpoint.folder)
    }

    /// The checkpoint of a source; `None` if the plan does not use that source.
    pub fn checkpoint(&self, source: Source) -> Option<&Checkpoint> {
        match source {
            Source::Reference => self.reference.as_ref(),
            Source::Previous => self.previous.as_ref(),
        }
    }
}

/// The `config.json` of a model without a reference. The ids are written even if they are null:
/// otherwise transformers uses the ids of the published models, which may be out of range here.
fn fresh_config(config: &DecoderConfig, end_of_text_id: Option<u32>) -> Value {
    let mut json = config.to_hf();
    if let Some(object) = json.as_object_mut() {
        object.insert("bos_token_id".to_owned(), end_of_text_id.into());
        object.insert("eos_token_id".to_owned(), end_of_text_id.into());
    }
    json
}
