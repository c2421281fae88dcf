//! The jobs of a run: what each step of each model submits, based on the recipe and on what is
//! known so far.

use super::{Model, Note, Run, RunState, Transition};
use crate::artifact::Location;
use crate::spec::{
    EvaluateSpec, EvaluationTask, JobSpec, SliceSource, SliceSpec, TokenizeSpec, TokenizerSource, TokenizerSpec,
    TrainSpec, TrainingSpec, defaults,
};
use inheritune_checkpoint::inherit_set::InheritSet;

impl Run {
    pub(super) fn tokenize(self) -> Transition {
        let tokenizer = match &self.spec.corpus.tokenizer {
            TokenizerSpec::Train { vocab_size } => TokenizerSource::Train { vocab_size: *vocab_size },
            TokenizerSpec::Uri(uri) => TokenizerSource::From(parse_location(uri)),
            TokenizerSpec::Reference => {
                TokenizerSource::From(parse_location(self.spec.reference.checkpoint.as_deref().unwrap_or_default()))
            }
        };
        let spec = JobSpec::Tokenize(TokenizeSpec {
            sources: self.spec.corpus.sources.iter().map(|source| parse_location(source)).collect(),
            tokenizer,
            validation_fraction: self.spec.corpus.validation_fraction,
            text_column: self.spec.corpus.text_column.clone(),
            max_bad_rows: self.spec.corpus.max_bad_rows,
        });
        self.submit(RunState::Tokenizing, "tokenize the corpus".to_owned(), spec, Vec::new())
    }

    pub(super) fn slice(mut self, model: Model, source: SliceSource, notes: Vec<Note>) -> Transition {
        self.record_mut(model);
        let label = format!("{}: slice", self.model_name(model));
        let spec = JobSpec::Slice(SliceSpec {
            source,
            tokenizer: self.tokens.map(|tokens| tokens.artifact),
            seed: self.model_seed(model),
            max_shard_size_bytes: defaults::max_shard_size_bytes(),
        });
        self.submit(RunState::Slicing(model), label, spec, notes)
    }

    pub(super) fn train(self, model: Model) -> Transition {
        let (Some(tokens), Some(initial)) = (self.tokens, self.record(model).and_then(|r| r.initial)) else {
            return self.fail("nothing to train".to_owned());
        };
        let (training, data_fraction) = self.training_of(model);
        let label = format!("{}: train", self.model_name(model));
        let spec = JobSpec::Train(TrainSpec {
            checkpoint: Location::Artifact(initial),
            tokens: tokens.artifact,
            training,
            data_fraction,
            seed: self.spec.seed,
            expect_inherited: self.inherits_everything(model),
        });
        self.submit(RunState::Training(model), label, spec, Vec::new())
    }

    pub(super) fn evaluate(mut self, model: Model, notes: Vec<Note>) -> Transition {
        let (Some(tokens), Some(checkpoint)) = (self.tokens, self.record_mut(model).checkpoint.clone()) else {
            return self.fail("nothing to evaluate".to_owned());
        };
        let label = match model {
            Model::Reference => "benchmark the reference".to_owned(),
            _ => format!("{}: evaluate", self.model_name(model)),
        };
        let evaluation = &self.spec.evaluation;
        let mut tasks = vec![EvaluationTask::ValidationLoss {
            tokens: tokens.artifact,
            block_size: self.spec.training.block_size,
            max_sequences: evaluation.max_sequences,
        }];
        let benchmarks = if self.measures_benchmarks(model) { &evaluation.benchmarks[..] } else { &[] };
        tasks.extend(benchmarks.iter().map(|name| EvaluationTask::Benchmark {
            name: name.clone(),
            data: parse_location(evaluation.benchmark_data.as_deref().unwrap_or_default()),
            limit: evaluation.benchmark_limit,
        }));
        let spec = JobSpec::Evaluate(EvaluateSpec {
            batch_size: evaluation.batch_size,
            baseline: self.record(Model::Reference).filter(|_| model != Model::Reference).and_then(|r| r.scores),
            ..EvaluateSpec::new(checkpoint, tasks)
        });
        self.submit(RunState::Evaluating(model), label, spec, notes)
    }

    /// Returns whether the evaluation of a model includes the recipe's benchmarks: until they have
    /// failed once.
    pub(super) fn measures_benchmarks(&self, model: Model) -> bool {
        let failed = self.record(model).is_some_and(|record| record.benchmarks_problem.is_some());
        !self.spec.evaluation.benchmarks.is_empty() && !failed
    }

    fn training_of(&self, model: Model) -> (TrainingSpec, f64) {
        let training = &self.spec.training;
        match model {
            Model::Reference => (self.spec.reference.training.as_ref().unwrap_or(training).clone(), 1.0),
            Model::Candidate { .. } => (training.clone(), self.spec.target.data_fraction),
            Model::Control { index } => {
                let mut training = training.clone();
                if let Some(winner_steps) = self.winner().and_then(|winner| winner.steps) {
                    let control = self.spec.controls.get(index as usize);
                    training.epochs = None;
                    training.steps = Some(control.map_or(winner_steps, |control| control.steps(winner_steps)));
                }
                (training, self.spec.target.data_fraction)
            }
            Model::Arm { index } => match self.spec.arms.get(index as usize) {
                Some(arm) => (arm.training(training), arm.data_fraction),
                None => (training.clone(), 1.0),
            },
        }
    }

    /// Returns whether the model inherits everything. Only then is the loss before the first step
    /// known to be far below that of a random model: the paper's code does not inherit positions
    /// and the final norm, and its runs start as little as 0.1 nats below a random model.
    fn inherits_everything(&self, model: Model) -> bool {
        match model {
            Model::Reference | Model::Control { .. } => false,
            Model::Candidate { .. } | Model::Arm { .. } => self.spec.target.inherit == InheritSet::ALL,
        }
    }

    /// Returns the seed of a model. Fresh tensors of different models must differ.
    fn model_seed(&self, model: Model) -> u64 {
        let offset = match model {
            Model::Reference => 0,
            Model::Candidate { round, .. } => 1 + u64::from(round),
            Model::Control { index } => 1_000 + u64::from(index),
            Model::Arm { index } => 2_000 + u64::from(index),
        };
        self.spec.seed.wrapping_add(offset)
    }
}

/// Parses a validated location. An invalid location that slipped through fails in the job that
/// reads it.
pub(super) fn parse_location(text: &str) -> Location {
    text.parse().unwrap_or_else(|_| Location::Uri(text.to_owned()))
}
