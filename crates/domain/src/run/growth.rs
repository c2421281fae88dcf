//! Which model comes next: the reference, whose loss is the benchmark, then candidates that grow
//! until one matches it, then the models that the winner is compared with. Paper: Algorithm 1.

use super::jobs::parse_location;
use super::note::Settled;
use super::{Model, ModelDecision, ModelRecord, Note, Run, RunState, Transition};
use crate::artifact::Location;
use crate::id::LayerCount;
use crate::spec::{GrowthSource, LayerMapRule, MatchBy, Recipe, SliceSource};
use inheritune_checkpoint::inherit_set::InheritSet;

impl Run {
    /// Returns the last candidate that was measured.
    pub fn winner(&self) -> Option<&ModelRecord> {
        self.last_candidate().filter(|record| record.validation.is_some())
    }

    pub(super) fn after_tokens(mut self, notes: Vec<Note>) -> Transition {
        if let Some(uri) = &self.spec.reference.checkpoint {
            let location = parse_location(uri);
            self.record_mut(Model::Reference).checkpoint = Some(location);
            return match self.spec.recipe {
                Recipe::FullData => self.evaluate(Model::Reference, notes),
                // Its loss decides nothing, but the report compares its scores with the target's.
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
            _ => self.fail_after(notes, "a ready-made token set requires a given reference checkpoint".to_owned()),
        }
    }

    pub(super) fn after_measured(mut self, model: Model) -> Transition {
        let record = self.record(model).cloned();
        let Some((record, score)) = record.and_then(|record| Some((record.clone(), record.validation?))) else {
            let problem = format!("{}: the evaluation returned no validation loss", self.model_name(model));
            return self.go_on_without(model, &problem);
        };
        // No comparison with NaN is true: without this check, a diverged model would grow to the
        // depth of the reference for nothing.
        if !score.value.is_finite() {
            let problem = format!("{}: the validation loss is {}", self.model_name(model), score.value);
            return self.go_on_without(model, &problem);
        }
        let mut notes = vec![Note::Measured { model: self.model_name(model), loss: score }];
        match model {
            Model::Reference => self.first_candidate(notes),
            Model::Candidate { round, layers } => match self.decide(round, layers, &record) {
                Decision::Grow { layers } => {
                    self.record_mut(model).decision = Some(ModelDecision::Grow);
                    notes.push(Note::Grown { difference: record.difference, layers });
                    self.slice_candidate(round + 1, layers, notes)
                }
                Decision::Match { note } => {
                    self.record_mut(model).decision = Some(ModelDecision::Match);
                    notes.push(note);
                    self.next_extra(None, notes)
                }
                Decision::Settle { why } => {
                    self.record_mut(model).decision = Some(ModelDecision::Settle);
                    notes.push(Note::Settled { why });
                    self.next_extra(None, notes)
                }
            },
            Model::Control { .. } | Model::Arm { .. } => self.next_extra(Some(model), notes),
        }
    }

    /// Continues without a model that the target is only compared with, or fails the run for any
    /// other model.
    pub(super) fn go_on_without(mut self, model: Model, problem: &str) -> Transition {
        let is_extra = match model {
            Model::Control { .. } | Model::Arm { .. } => true,
            // A low-data run measures the reference only for the report.
            Model::Reference => self.spec.recipe == Recipe::LowData && self.state == RunState::Evaluating(model),
            Model::Candidate { .. } => false,
        };
        if !is_extra {
            return self.fail(problem.to_owned());
        }
        self.record_mut(model).given_up = Some(problem.to_owned());
        let notes = vec![Note::GivenUp { model: self.model_name(model), problem: problem.to_owned() }];
        match model {
            Model::Reference => self.first_candidate(notes),
            Model::Control { .. } | Model::Arm { .. } | Model::Candidate { .. } => self.next_extra(Some(model), notes),
        }
    }

    fn first_candidate(self, notes: Vec<Note>) -> Transition {
        let start = match &self.spec.target.layer_map {
            LayerMapRule::List(list) => Some(LayerCount(list.len() as u32)),
            LayerMapRule::First | LayerMapRule::FirstAndLast => {
                self.spec.target.start_layers.or(self.reference_layers.map(|n| LayerCount((n.0 / 2).max(1))))
            }
        };
        match start {
            Some(layers) => self.slice_candidate(1, layers, notes),
            None => self.fail_after(
                notes,
                "target.start_layers is required: the reference's depth is not known yet".to_owned(),
            ),
        }
    }

    pub(super) fn slice_candidate(self, round: u32, layers: LayerCount, mut notes: Vec<Note>) -> Transition {
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
        notes.push(Note::Inherited { round, layers, inherit: self.spec.target.inherit });
        self.slice(Model::Candidate { round, layers }, source, notes)
    }

    fn decide(&self, round: u32, layers: LayerCount, record: &ModelRecord) -> Decision {
        let benchmark = self.record(Model::Reference).and_then(|r| r.validation.as_ref()).map(|s| s.value);
        let target = &self.spec.target;
        match (self.spec.recipe, benchmark) {
            (Recipe::LowData, _) => Decision::Settle { why: Settled::OneRound },
            (Recipe::FullData, None) => Decision::Settle { why: Settled::NoReferenceLoss },
            (Recipe::FullData, Some(benchmark)) => {
                if self.is_matched(record) == Some(true) {
                    let note = Note::Matched {
                        loss_nats: record.validation.as_ref().map_or(f64::NAN, |score| score.value),
                        reference_nats: benchmark,
                        tolerance_nats: target.tolerance_nats,
                        difference: record.difference,
                    };
                    return Decision::Match { note };
                }
                let limit = self.reference_layers.unwrap_or(layers);
                if layers >= limit {
                    return Decision::Settle { why: Settled::ReferenceDepth { layers: limit } };
                }
                if round >= target.max_rounds {
                    return Decision::Settle { why: Settled::MaxRounds { rounds: target.max_rounds } };
                }
                Decision::Grow { layers: LayerCount((layers.0 + target.grow_by).min(limit.0)) }
            }
        }
    }

    /// Starts the next control, then the next arm, or finishes the run.
    fn next_extra(self, done: Option<Model>, notes: Vec<Note>) -> Transition {
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
            let mut transition = self.end(RunState::Finished { winner: winner.model, matched }, Note::Finished);
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

    /// Returns whether the loss of a model exceeds the reference's loss by at most the tolerance,
    /// or `None` without a benchmark. Uses the difference per sequence if it was measured.
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
    Match { note: Note },
    Settle { why: Settled },
}
