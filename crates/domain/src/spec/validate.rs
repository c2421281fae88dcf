//! Validation of a recipe: reports every bad field at once, named as in the recipe file.

use std::collections::{HashMap, HashSet};

use super::job::{validate_benchmarks, validate_layer_list, validate_once};
use super::recipe::{CorpusSpec, EvaluationSpec, GrowthSource, Recipe, ReferenceSpec, RunSpec, TokenizerSpec};
use super::training::{TrainingSpec, used_tokens};
use super::{architecture, limits};
use crate::artifact::Location;
use crate::violation::Violations;
use inheritune_checkpoint::layer_map::LayerMapRule;

impl RunSpec {
    /// Checks every field of the recipe, without reading the reference itself.
    ///
    /// # Errors
    /// All violations, with fields named as in the recipe file.
    pub fn validate(&self) -> Result<(), Violations> {
        let mut v = Violations::default();
        limits::NAME.check(&mut v, "name", &self.name);
        limits::PRIORITY.check(&mut v, "priority", self.priority);
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
        if let Some(steps) = self.training.steps {
            self.check_controls(steps, &mut v);
        }
        v.into_result()
    }

    /// Checks the trainings of the recipe against the number of training tokens. Called once the
    /// tokens are counted, before the first training.
    ///
    /// # Errors
    /// All violations, with fields named as in the recipe file.
    pub fn check_tokens(&self, train_tokens: u64) -> Result<(), Violations> {
        let mut v = Violations::default();
        let mut check = |field: &str, training: &TrainingSpec, fraction: f64| {
            if let Err(inner) = training.check_tokens(used_tokens(train_tokens, fraction)) {
                v.nest(field, inner);
            }
        };
        match (&self.reference.architecture, &self.reference.training) {
            (Some(_), Some(training)) => check("reference.training", training, 1.0),
            (Some(_), None) => check("training", &self.training, 1.0),
            (None, _) => {}
        }
        let fraction = self.target.data_fraction;
        check("training", &self.training, fraction);
        for (i, arm) in self.arms.iter().enumerate() {
            check(&format!("arms[{i}] with training"), &arm.training(&self.training), arm.data_fraction);
        }
        if self.training.epochs.is_some() {
            self.check_controls(self.training.total_steps(used_tokens(train_tokens, fraction)), &mut v);
        }
        // The reference and the target may violate the same limit with the same numbers.
        v.0.dedup();
        v.into_result()
    }

    /// Checks the controls, whose steps are a multiple of the target's steps.
    fn check_controls(&self, target_steps: u64, v: &mut Violations) {
        if self.training.warmup_steps > target_steps {
            // Already reported for the target.
            return;
        }
        for (i, control) in self.controls.iter().enumerate() {
            let (steps, warmup_steps) = (control.steps(target_steps), self.training.warmup_steps);
            v.check(
                warmup_steps <= steps,
                format!("controls[{i}].steps_factor"),
                format!("leaves {steps} of the target's {target_steps} steps, fewer than training.warmup_steps ({warmup_steps})"),
            );
        }
    }

    /// Checks the number of source weights. For a ready-made token set, the sources are not known
    /// here.
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
                format!("must contain one weight for each of the {sources} corpus.sources"),
            );
        }
    }

    fn validate_target(&self, v: &mut Violations) {
        let target = &self.target;
        limits::LAYERS.check_optional(v, "target.start_layers", target.start_layers.map(|layers| layers.0));
        limits::LAYERS.check(v, "target.grow_by", target.grow_by);
        limits::ROUNDS.check(v, "target.max_rounds", target.max_rounds);
        limits::TOLERANCE_NATS.check(v, "target.tolerance_nats", target.tolerance_nats);
        limits::DATA_FRACTION.check(v, "target.data_fraction", target.data_fraction);
        if self.recipe == Recipe::LowData
            && self.reference.checkpoint.is_some()
            && !matches!(target.layer_map, LayerMapRule::List(_))
        {
            v.check(
                target.start_layers.is_some(),
                "target.start_layers",
                "is required with recipe low-data and a given checkpoint",
            );
        }
        if let (Some(start), Some(reference)) = (target.start_layers, self.reference_layers()) {
            v.check(
                start <= reference || !limits::LAYERS.holds(start.0),
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
        validate_layer_list(list, "target.layer_map", v);
        if !limits::LAYER_LIST.holds(list.len()) {
            return;
        }
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
                    *source < reference.0 || !limits::SOURCE_LAYER.holds(*source),
                    format!("target.layer_map[{i}]"),
                    format!(
                        "layer {source} does not exist: the reference has layers 0 to {}",
                        reference.0.saturating_sub(1)
                    ),
                );
            }
        }
    }

    /// Checks that no sequence is longer than the maximum positions of a model created by the
    /// recipe.
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
        limits::ARMS.check(v, "controls", self.controls.len());
        limits::ARMS.check(v, "arms", self.arms.len());
        v.check(
            self.arms.is_empty() || self.recipe == Recipe::LowData,
            "arms",
            "are only allowed with recipe low-data",
        );
        let mut names = HashSet::new();
        let mut check_name = |name: &'_ str, field: &str, v: &mut Violations| {
            limits::NAME.check(v, format!("{field}.name"), name);
            v.check(names.insert(name.to_owned()), format!("{field}.name"), "is used twice");
        };
        for (i, control) in self.controls.iter().enumerate().take(limits::ARMS.max) {
            let field = format!("controls[{i}]");
            check_name(&control.name, &field, v);
            limits::STEPS_FACTOR.check(v, format!("{field}.steps_factor"), control.steps_factor);
        }
        for (i, arm) in self.arms.iter().enumerate().take(limits::ARMS.max) {
            let field = format!("arms[{i}]");
            check_name(&arm.name, &field, v);
            limits::DATA_FRACTION.check(v, format!("{field}.data_fraction"), arm.data_fraction);
            limits::ARM_EPOCHS.check(v, format!("{field}.epochs"), arm.epochs);
        }
    }
}

impl EvaluationSpec {
    fn validate(&self, v: &mut Violations) {
        limits::BATCH_SIZE.check(v, "evaluation.batch_size", self.batch_size);
        limits::MAX_SEQUENCES.check_optional(v, "evaluation.max_sequences", self.max_sequences);
        limits::BENCHMARKS.check(v, "evaluation.benchmarks", self.benchmarks.len());
        let field = |number: usize| format!("evaluation.benchmarks[{number}]");
        let named = self.benchmarks.iter().take(limits::BENCHMARKS.max).enumerate();
        let named = named.map(|(number, name)| (field(number), name.as_str()));
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
        limits::BENCHMARK_LIMIT.check_optional(v, "evaluation.benchmark_limit", self.benchmark_limit);
    }
}

impl CorpusSpec {
    fn validate(&self, reference: &ReferenceSpec, v: &mut Violations) {
        limits::SOURCES.check(v, "corpus.sources", self.sources.len());
        let bytes: usize = self.sources.iter().map(String::len).sum();
        limits::SOURCES_BYTES.check(v, "corpus.sources", bytes as u64);
        let mut first = HashMap::new();
        for (i, source) in self.sources.iter().enumerate().take(limits::SOURCES.max) {
            validate_once(source, (i, &mut first), &format!("corpus.sources[{i}]"), v);
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
        limits::COLUMN.check_optional(v, "corpus.text_column", self.text_column.as_deref());
        limits::BAD_ROWS.check(v, "corpus.max_bad_rows", self.max_bad_rows);
        // Only a tokenize job of the run reports how many rows the embedding of a new model needs.
        v.check(
            self.token_set().is_none() || reference.checkpoint.is_some(),
            "corpus.sources",
            "a ready-made token set requires a given reference: use text sources, or give reference.checkpoint",
        );
        limits::VALIDATION_FRACTION.check(v, "corpus.validation_fraction", self.validation_fraction);
        match &self.tokenizer {
            TokenizerSpec::Reference => v.check(
                reference.checkpoint.is_some() || self.token_set().is_some(),
                "corpus.tokenizer",
                "a reference trained from scratch has no tokenizer: use train = { vocab_size = N } or uri",
            ),
            TokenizerSpec::Train { vocab_size } => {
                limits::TRAINED_VOCAB.check(v, "corpus.tokenizer.train.vocab_size", *vocab_size);
            }
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
                if let Err(inner) = architecture::validate(architecture) {
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
