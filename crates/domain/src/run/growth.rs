//! Which model comes next: the benchmark, then candidates that grow until one matches it, then what the winner is
//! compared with. Paper: Algorithm 1.

use super::jobs::parse_location;
use super::{Model, ModelRecord, Run, RunState, Transition};
use crate::artifact::Location;
use crate::comparison::Difference;
use crate::id::LayerCount;
use crate::spec::{GrowthSource, LayerMapRule, MatchBy, Recipe, Score, SliceSource};
use inheritune_checkpoint::inherit_set::InheritSet;

impl Run {
    /// The last candidate that was measured.
    pub fn winner(&self) -> Option<&ModelRecord> {
        self.last_candidate().filter(|record| record.validation.is_some())
    }

    pub(super) fn after_tokens(mut self, notes: Vec<String>) -> Transition {
        if let Some(uri) = &self.spec.reference.checkpoint {
            let location = parse_location(uri);
            self.record_mut(Model::Reference).checkpoint = Some(location);
            return match self.spec.recipe {
                Recipe::FullData => self.evaluate(Model::Reference, notes),
                // Nothing is held against its loss, but its scores stand beside the target's.
                Recipe::LowData if !self.spec.evaluation.benchmarks.is_empty() => {
                    self.evaluate(Model::Reference, notes)
                }
                Recipe::LowData => self.first_candidate(notes),
            };
        }
        match (self.spec.reference.architecture.clone(), self.tokens.and_then(|tokens| tokens.vocab_size)) {
            (Some(architecture), Some(vocab_size)) => {
                let source = SliceSource::Architecture { architecture, vocab_size };
                self.slice(Model::Reference, source, notes)
            }
            _ => self.fail_after(notes, "a ready token set needs a given reference checkpoint".to_owned()),
        }
    }

    pub(super) fn after_measured(self, model: Model) -> Transition {
        let record = self.record(model).cloned();
        let Some((record, score)) = record.and_then(|record| Some((record.clone(), record.validation?))) else {
            let problem = format!("{}: the evaluation brought no validation loss", self.model_name(model));
            return self.go_on_without(model, &problem);
        };
        // Nothing is at most NaN: without this a diverged model would grow to the reference's depth for nothing.
        if !score.value.is_finite() {
            let problem = format!("{}: the validation loss is {}", self.model_name(model), score.value);
            return self.go_on_without(model, &problem);
        }
        let mut notes = vec![format!("{}: validation loss {} nats", self.model_name(model), with_error(&score))];
        match model {
            Model::Reference => self.first_candidate(notes),
            Model::Candidate { round, layers } => match self.decide(round, layers, &record) {
                Decision::Grow { layers } => {
                    let from = record.difference.map(|difference| format!(" ({} nats)", with_interval(&difference)));
                    notes.push(format!("not matched yet{}: grow to {layers} layers", from.unwrap_or_default()));
                    self.slice_candidate(round + 1, layers, notes)
                }
                Decision::Settle { note } => {
                    notes.push(note);
                    self.next_extra(None, notes)
                }
            },
            Model::Control { .. } | Model::Arm { .. } => self.next_extra(Some(model), notes),
        }
    }

    /// What the target is compared with can be done without; the run fails for lack of anything else.
    pub(super) fn go_on_without(mut self, model: Model, problem: &str) -> Transition {
        let is_extra = match model {
            Model::Control { .. } | Model::Arm { .. } => true,
            // A low-data run measures the reference for the report alone.
            Model::Reference => self.spec.recipe == Recipe::LowData && self.state == RunState::Evaluating(model),
            Model::Candidate { .. } => false,
        };
        if !is_extra {
            return self.fail(problem.to_owned());
        }
        self.record_mut(model).given_up = Some(problem.to_owned());
        let notes = vec![format!("{}: given up, the run goes on without it: {problem}", self.model_name(model))];
        match model {
            Model::Reference => self.first_candidate(notes),
            Model::Control { .. } | Model::Arm { .. } | Model::Candidate { .. } => self.next_extra(Some(model), notes),
        }
    }

    fn first_candidate(self, notes: Vec<String>) -> Transition {
        let start = match &self.spec.target.layer_map {
            LayerMapRule::List(list) => Some(LayerCount(list.len() as u32)),
            LayerMapRule::First | LayerMapRule::FirstAndLast => {
                self.spec.target.start_layers.or(self.reference_layers.map(|n| LayerCount((n.0 / 2).max(1))))
            }
        };
        match start {
            Some(layers) => self.slice_candidate(1, layers, notes),
            None => self
                .fail_after(notes, "target.start_layers is needed: the reference's depth is not known yet".to_owned()),
        }
    }

    pub(super) fn slice_candidate(self, round: u32, layers: LayerCount, mut notes: Vec<String>) -> Transition {
        if let Some(reference) = self.reference_layers
            && layers > reference
        {
            return self.fail_after(
                notes,
                format!("target.start_layers: {layers} is more than the reference's {reference} layers"),
            );
        }
        let Some(checkpoint) = self.record(Model::Reference).and_then(|r| r.checkpoint.clone()) else {
            return self.fail_after(notes, "the reference has no checkpoint".to_owned());
        };
        let previous = match self.spec.target.growth_source {
            GrowthSource::Reference => None,
            GrowthSource::Carry => self.last_candidate().and_then(|r| match r.checkpoint {
                Some(Location::Artifact(id)) => Some(id),
                _ => None,
            }),
        };
        let source = SliceSource::Checkpoint {
            checkpoint,
            layers,
            layer_map: self.spec.target.layer_map.clone(),
            inherit: self.spec.target.inherit,
            previous,
        };
        let inherit = self.spec.target.inherit;
        let set = if inherit == InheritSet::ALL { String::new() } else { format!(" ({inherit})") };
        notes.push(format!("round {round}: inherit {layers} layers{set}"));
        self.slice(Model::Candidate { round, layers }, source, notes)
    }

    fn decide(&self, round: u32, layers: LayerCount, record: &ModelRecord) -> Decision {
        let benchmark = self.record(Model::Reference).and_then(|r| r.validation.as_ref()).map(|s| s.value);
        let target = &self.spec.target;
        match (self.spec.recipe, benchmark) {
            (Recipe::LowData, _) => Decision::Settle { note: "one round: done growing".to_owned() },
            (Recipe::FullData, None) => Decision::Settle { note: "no benchmark: done growing".to_owned() },
            (Recipe::FullData, Some(benchmark)) => {
                if self.is_matched(record) == Some(true) {
                    let tolerance = target.tolerance_nats;
                    let note = match record.difference {
                        Some(difference) => {
                            format!(
                                "matched: {} nats from the reference, at most {tolerance}",
                                with_interval(&difference)
                            )
                        }
                        None => {
                            let loss = record.validation.as_ref().map_or(f64::NAN, |score| score.value);
                            format!("matched: {loss:.4} is at most the reference's {benchmark:.4} + {tolerance}")
                        }
                    };
                    return Decision::Settle { note };
                }
                let limit = self.reference_layers.unwrap_or(layers);
                if layers >= limit {
                    return Decision::Settle { note: format!("not matched at the reference's own depth of {limit}") };
                }
                if round >= target.max_rounds {
                    return Decision::Settle { note: format!("not matched after max_rounds = {}", target.max_rounds) };
                }
                Decision::Grow { layers: LayerCount((layers.0 + target.grow_by).min(limit.0)) }
            }
        }
    }

    /// The controls, then the arms, then the end.
    fn next_extra(self, done: Option<Model>, notes: Vec<String>) -> Transition {
        let controls = (0..self.spec.controls.len() as u32).map(|index| Model::Control { index });
        let arms = (0..self.spec.arms.len() as u32).map(|index| Model::Arm { index });
        let mut extras = controls.chain(arms);
        let next = match done {
            None => extras.next(),
            Some(done) => extras.skip_while(|model| *model != done).nth(1),
        };
        let Some(winner) = self.winner().cloned() else {
            return self.fail_after(notes, "no candidate was measured".to_owned());
        };
        let Some(model) = next else {
            let matched = self.is_matched(&winner);
            let mut transition = self.end(RunState::Finished { winner: winner.model, matched }, "finished");
            transition.notes.splice(0..0, notes);
            return transition;
        };
        let (Some(layers), Some(checkpoint)) =
            (winner.layers, self.record(Model::Reference).and_then(|r| r.checkpoint.clone()))
        else {
            return self.fail_after(notes, "the reference has no checkpoint".to_owned());
        };
        let inherit = match model {
            Model::Control { .. } => InheritSet::NOTHING,
            Model::Arm { .. } | Model::Reference | Model::Candidate { .. } => self.spec.target.inherit,
        };
        let layer_map = self.spec.target.layer_map.clone();
        let source = SliceSource::Checkpoint { checkpoint, layers, layer_map, inherit, previous: None };
        self.slice(model, source, notes)
    }

    fn last_candidate(&self) -> Option<&ModelRecord> {
        self.models
            .iter()
            .rev()
            .find(|record| matches!(record.model, Model::Candidate { .. }) && record.checkpoint.is_some())
    }

    /// Whether a model's loss is at most the reference's and the tolerance: by their difference sequence by sequence, where
    /// it was measured. None without a benchmark.
    fn is_matched(&self, record: &ModelRecord) -> Option<bool> {
        let benchmark = self.record(Model::Reference)?.validation.as_ref()?.value;
        let by_means = record.validation.as_ref()?.value - benchmark;
        let target = &self.spec.target;
        let difference = match (target.match_by, record.difference) {
            (_, None) => by_means,
            (MatchBy::Mean, Some(difference)) => difference.value,
            (MatchBy::Interval, Some(difference)) => {
                difference.confidence_interval().map_or(difference.value, |(_, high)| high)
            }
        };
        Some(difference <= target.tolerance_nats)
    }
}

enum Decision {
    Grow { layers: LayerCount },
    Settle { note: String },
}

/// `+0.0123 (95 %: +0.0101 to +0.0145)`
fn with_interval(difference: &Difference) -> String {
    match difference.confidence_interval() {
        Some((low, high)) => format!("{:+.4} (95 %: {low:+.4} to {high:+.4})", difference.value),
        None => format!("{:+.4}", difference.value),
    }
}

fn with_error(score: &Score) -> String {
    match score.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", score.value),
        None => format!("{:.4}", score.value),
    }
}
