//! Whether a recipe can be carried out: every bad field, named as in the recipe file, all at once.

use std::collections::HashSet;

use super::job::validate_benchmarks;
use super::limits::{
    MAX_ARMS, MAX_COLUMN_LEN, MAX_NAME_LEN, MAX_ROUNDS, MAX_SOURCES, MAX_VOCAB, MIN_VOCAB, fraction, is_column, validation_fraction,
};
use super::recipe::{
    CorpusSpec, EvaluationSpec, GrowthSource, LayerMapRule, Recipe, ReferenceSpec, RunSpec, TokenizerSpec,
};
use crate::artifact::Location;
use crate::id::LayerCount;
use crate::violation::Violations;

impl RunSpec {
    /// Every bad field of the recipe, without looking at the reference itself.
    ///
    /// # Errors
    /// The violations, fields named as in the recipe file.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        v.check(is_name(&self.name), "name", format!("must be 1 to {MAX_NAME_LEN} bytes without control characters"));
        v.check((-100..=100).contains(&self.priority), "priority", "must be -100 to 100");
        self.corpus.validate(&self.reference, &mut v);
        self.reference.validate(&mut v);
        self.validate_target(&mut v);
        self.validate_block_sizes(&mut v);
        if let Err(inner) = self.training.validate() {
            v.nest("training", inner);
        }
        self.validate_source_weights(&mut v);
        self.evaluation.validate(&mut v);
        self.validate_extras(&mut v);
        v.into_result()
    }

    /// A ready token set knows its sources itself.
    fn validate_source_weights(&self, v: &mut Violations) {
        if self.corpus.token_set().is_some() {
            return;
        }
        let trainings = [("training", Some(&self.training)), ("reference.training", self.reference.training.as_ref())];
        for (field, training) in trainings {
            let (weights, sources) = (training.map_or(0, |t| t.source_weights.len()), self.corpus.sources.len());
            v.check(
                weights == 0 || weights == sources,
                format!("{field}.source_weights"),
                format!("must be one for each of the {sources} corpus.sources"),
            );
        }
    }

    fn validate_target(&self, v: &mut Violations) {
        let target = &self.target;
        v.check(target.start_layers != Some(LayerCount(0)), "target.start_layers", "must be at least 1");
        v.check((1..=1024).contains(&target.grow_by), "target.grow_by", "must be 1 to 1024 layers");
        v.check(
            (1..=MAX_ROUNDS).contains(&target.max_rounds),
            "target.max_rounds",
            format!("must be 1 to {MAX_ROUNDS}"),
        );
        v.check(
            target.tolerance_nats.is_finite() && target.tolerance_nats >= 0.0,
            "target.tolerance_nats",
            "must be at least 0 nats",
        );
        v.check(fraction(target.data_fraction), "target.data_fraction", "must be above 0 and at most 1");
        if self.recipe == Recipe::LowData
            && self.reference.checkpoint.is_some()
            && !matches!(target.layer_map, LayerMapRule::List(_))
        {
            v.check(
                target.start_layers.is_some(),
                "target.start_layers",
                "is needed with recipe low-data and a given checkpoint",
            );
        }
        if let (Some(start), Some(reference)) = (target.start_layers, self.reference_layers()) {
            v.check(
                start <= reference,
                "target.start_layers",
                format!("{start} is more than the reference's {reference} layers"),
            );
        }
        if let LayerMapRule::List(list) = &target.layer_map {
            self.validate_layer_list(list, v);
        }
        if target.growth_source == GrowthSource::Carry {
            v.check(
                target.layer_map == LayerMapRule::First,
                "target.layer_map",
                "must be first when growth_source is carry",
            );
        }
    }

    fn validate_layer_list(&self, list: &[u32], v: &mut Violations) {
        v.check(!list.is_empty(), "target.layer_map", "must name at least one layer");
        v.check(
            self.target.start_layers.is_none_or(|n| n.0 as usize == list.len()),
            "target.start_layers",
            format!("must be absent or the length of the layer_map list ({})", list.len()),
        );
        v.check(self.target.max_rounds == 1, "target.max_rounds", "must be 1 with an explicit layer_map list");
        if let Some(reference) = self.reference_layers() {
            for (i, source) in list.iter().enumerate() {
                v.check(
                    *source < reference.0,
                    format!("target.layer_map[{i}]"),
                    format!(
                        "layer {source} does not exist: the reference has layers 0 to {}",
                        reference.0.saturating_sub(1)
                    ),
                );
            }
        }
    }

    /// No sequence may be longer than the positions that a model made here has.
    fn validate_block_sizes(&self, v: &mut Violations) {
        if let Some(architecture) = &self.reference.architecture {
            for (field, training) in
                [("training", Some(&self.training)), ("reference.training", self.reference.training.as_ref())]
            {
                let Some(training) = training else { continue };
                v.check(
                    training.block_size <= architecture.max_positions,
                    format!("{field}.block_size"),
                    format!("must not exceed reference.architecture.max_positions ({})", architecture.max_positions),
                );
            }
        }
    }

    fn validate_extras(&self, v: &mut Violations) {
        v.check(self.controls.len() <= MAX_ARMS, "controls", format!("at most {MAX_ARMS}"));
        v.check(self.arms.len() <= MAX_ARMS, "arms", format!("at most {MAX_ARMS}"));
        v.check(self.arms.is_empty() || self.recipe == Recipe::LowData, "arms", "belong to recipe low-data only");
        let mut names = HashSet::new();
        let mut check_name = |name: &'_ str, field: &str, v: &mut Violations| {
            v.check(
                is_name(name),
                format!("{field}.name"),
                format!("must be 1 to {MAX_NAME_LEN} bytes without control characters"),
            );
            v.check(names.insert(name.to_owned()), format!("{field}.name"), "is used twice");
        };
        for (i, control) in self.controls.iter().enumerate() {
            let field = format!("controls[{i}]");
            check_name(&control.name, &field, v);
            v.check((0.1..=10.0).contains(&control.steps_factor), format!("{field}.steps_factor"), "must be 0.1 to 10");
        }
        for (i, arm) in self.arms.iter().enumerate() {
            let field = format!("arms[{i}]");
            check_name(&arm.name, &field, v);
            v.check(fraction(arm.data_fraction), format!("{field}.data_fraction"), "must be above 0 and at most 1");
            v.check((1..=1000).contains(&arm.epochs), format!("{field}.epochs"), "must be 1 to 1000");
        }
    }
}

/// A name that a label, a table and a log line can hold.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.chars().any(char::is_control)
}

impl EvaluationSpec {
    fn validate(&self, v: &mut Violations) {
        v.check(self.batch_size >= 1, "evaluation.batch_size", "must be at least 1");
        v.check(self.max_sequences != Some(0), "evaluation.max_sequences", "must be at least 1");
        let field = |number: usize| format!("evaluation.benchmarks[{number}]");
        let named = self.benchmarks.iter().enumerate().map(|(number, name)| (field(number), name.as_str()));
        validate_benchmarks(named, v);
        match &self.benchmark_data {
            None => v.check(
                self.benchmarks.is_empty(),
                "evaluation.benchmark_data",
                "must be given: the folder with the benchmarks' data sets",
            ),
            Some(data) => {
                if let Err(problem) = data.parse::<Location>() {
                    v.add("evaluation.benchmark_data", problem);
                }
            }
        }
        v.check(
            self.benchmark_limit != Some(0),
            "evaluation.benchmark_limit",
            "must be at least 1, or absent for all rows",
        );
    }
}

impl CorpusSpec {
    fn validate(&self, reference: &ReferenceSpec, v: &mut Violations) {
        v.check(
            (1..=MAX_SOURCES).contains(&self.sources.len()),
            "corpus.sources",
            format!("must name 1 to {MAX_SOURCES} sources"),
        );
        for (i, source) in self.sources.iter().enumerate() {
            match source.parse::<Location>() {
                Err(e) => v.add(format!("corpus.sources[{i}]"), e),
                Ok(Location::Artifact(_)) => v.check(
                    self.sources.len() == 1,
                    format!("corpus.sources[{i}]"),
                    "a token set artifact must be the only source",
                ),
                Ok(Location::Uri(_)) => {}
            }
        }
        v.check(
            self.text_column.as_deref().is_none_or(is_column),
            "corpus.text_column",
            format!("must be 1 to {MAX_COLUMN_LEN} bytes without control characters"),
        );
        // Only a tokenize job of the run tells how many rows the embedding of a new model needs.
        v.check(
            self.token_set().is_none() || reference.checkpoint.is_some(),
            "corpus.sources",
            "a ready token set needs a given reference: name text, or give reference.checkpoint",
        );
        v.check(
            validation_fraction(self.validation_fraction),
            "corpus.validation_fraction",
            "must be above 0 and at most 0.5",
        );
        match &self.tokenizer {
            TokenizerSpec::Reference => v.check(
                reference.checkpoint.is_some() || self.token_set().is_some(),
                "corpus.tokenizer",
                "a reference trained from scratch brings no tokenizer: use train = { vocab_size = N } or uri",
            ),
            TokenizerSpec::Train { vocab_size } => v.check(
                (MIN_VOCAB..=MAX_VOCAB).contains(vocab_size),
                "corpus.tokenizer.train.vocab_size",
                "must be 257 (256 bytes and the end-of-text token) to 65536",
            ),
            TokenizerSpec::Uri(uri) => {
                if let Err(e) = uri.parse::<Location>() {
                    v.add("corpus.tokenizer.uri", e);
                }
            }
        }
    }
}

impl ReferenceSpec {
    fn validate(&self, v: &mut Violations) {
        match (&self.checkpoint, &self.architecture) {
            (Some(_), Some(_)) => v.add("reference", "give either checkpoint or architecture, not both"),
            (None, None) => v.add("reference", "give checkpoint or architecture"),
            (Some(uri), None) => {
                if let Err(e) = uri.parse::<Location>() {
                    v.add("reference.checkpoint", e);
                }
                v.check(
                    self.training.is_none(),
                    "reference.training",
                    "only a reference with an architecture is trained",
                );
            }
            (None, Some(architecture)) => {
                if let Err(inner) = architecture.validate() {
                    v.nest("reference.architecture", inner);
                }
                if let Some(training) = &self.training
                    && let Err(inner) = training.validate()
                {
                    v.nest("reference.training", inner);
                }
            }
        }
    }
}
