//! The run: which job comes next, as a pure function of the recipe and what has happened.
//!
//! ```text
//!  Tokenizing ─► Slicing(Reference) ─► Training(Reference) ─► Evaluating(Reference)     the last is the benchmark
//!                                                                    │
//!        ┌───────────────────────────────────────────────────────────┘
//!        ▼
//!  Slicing(Candidate) ─► Training(Candidate) ─► Evaluating(Candidate) ─┬─ not matched ─► Slicing(Candidate + grow_by)
//!                                                                      └─ matched, or no deeper one
//!                                                                                │
//!  Slicing(Control | Arm) ─► Training(…) ─► Evaluating(…)  ◄──── for each ───────┘
//!        └─► Finished                             (any) ─► Failed | Cancelled
//! ```
//! A reference that is given skips its first two states; a low-data run skips the reference altogether
//! when it is given, and has one round. Pausing keeps the state: see [`Intent`].

use serde::{Deserialize, Serialize};

use crate::artifact::Location;
use crate::id::{ArtifactId, LayerCount};
use crate::job::JobStatus;
use crate::spec::{
    EvaluateSpec, EvaluationTask, GrowthSource, JobOutcome, JobSpec, LayerMapRule, Recipe, RunSpec, Score, SliceSource, SliceSpec,
    TokenizeSpec, TokenizerSource, TokenizerSpec, TrainSpec, TrainingSpec,
};
use crate::checkpoint::layer_map::InheritSet;

/// Which of a run's models something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Model {
    /// The model inherited from.
    Reference,
    /// The target of one round, counted from 1.
    Candidate {
        /// The round.
        round: u32,
        /// Its depth.
        layers: LayerCount,
    },
    /// `spec.controls[index]`.
    Control {
        /// Position in the recipe.
        index: u32,
    },
    /// `spec.arms[index]`.
    Arm {
        /// Position in the recipe.
        index: u32,
    },
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Created; nothing submitted yet.
    Created,
    /// Text becomes tokens.
    Tokenizing,
    /// A model is cut or made.
    Slicing(Model),
    /// A model is trained.
    Training(Model),
    /// A model is measured; of the reference, the benchmark.
    Evaluating(Model),
    /// Over, with a target.
    Finished {
        /// The target.
        winner: Model,
        /// Whether it matches the reference; none without a benchmark.
        matched: Option<bool>,
    },
    /// Over, without.
    Failed {
        /// Why.
        message: String,
    },
    /// Over: no longer wanted.
    Cancelled,
}

impl RunState {
    /// Nothing happens any more.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Created | Self::Tokenizing | Self::Slicing(_) | Self::Training(_) | Self::Evaluating(_) => false,
            Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled => true,
        }
    }
}

/// What the run's owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Go on.
    #[default]
    Run,
    /// Wait where it is.
    Pause,
    /// Stop for good.
    Cancel,
}

/// The token set of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSetRef {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Training tokens, where a tokenize job of this run counted them.
    pub train_tokens: Option<u64>,
    /// Entries of the tokenizer, likewise.
    pub vocab_size: Option<u32>,
}

/// What is known of one model of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Which. Not flattened: a candidate's own `layers` would clash with the field below.
    pub model: Model,
    /// Its depth.
    pub layers: Option<LayerCount>,
    /// Before training.
    pub initial: Option<ArtifactId>,
    /// What it is now: after training, or the given reference.
    pub checkpoint: Option<Location>,
    /// Optimizer steps of its training.
    pub steps: Option<u64>,
    /// Tokens of its training.
    pub tokens_seen: Option<u64>,
    /// Passes over the data.
    pub epochs: Option<f64>,
    /// Wall time of its training.
    pub wall_s: Option<f64>,
    /// Loss before the first update.
    pub first_loss_nats: Option<f64>,
    /// Parameters, tied ones counted once.
    pub parameters: Option<u64>,
    /// Its validation loss in nats.
    pub validation: Option<Score>,
}

impl ModelRecord {
    fn new(model: Model) -> Self {
        Self {
            model,
            layers: None,
            initial: None,
            checkpoint: None,
            steps: None,
            tokens_seen: None,
            epochs: None,
            wall_s: None,
            first_loss_nats: None,
            parameters: None,
            validation: None,
        }
    }
}

/// A run: its recipe, where it stands and all it has learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The recipe.
    pub spec: RunSpec,
    /// Where it stands.
    pub state: RunState,
    /// What its owner wants.
    pub intent: Intent,
    /// Its tokens, once there.
    pub tokens: Option<TokenSetRef>,
    /// The reference's depth, once known.
    pub reference_layers: Option<LayerCount>,
    /// In the order they were started.
    pub models: Vec<ModelRecord>,
}

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// It was created.
    Created,
    /// Its current job is done.
    JobSucceeded {
        /// With this.
        outcome: JobOutcome,
    },
    /// Its current job failed for good.
    JobFailed {
        /// Which, and why.
        message: String,
    },
    /// Its current job was cancelled, by the run's owner or on its own.
    JobCancelled,
    /// Its owner wants it paused.
    PauseRequested,
    /// Its owner wants it to go on.
    ResumeRequested,
    /// Its owner no longer wants it.
    CancelRequested,
}

/// What to do about the run's unfinished jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobsRequest {
    /// Pause them.
    Pause,
    /// Let them go on.
    Resume,
    /// Cancel them.
    Cancel,
}

/// A job to submit.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// For people: `round 2: train 6 layers`.
    pub label: String,
    /// The job.
    pub spec: JobSpec,
}

/// What an event makes of a run. Written in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run from now on.
    pub run: Run,
    /// A job to submit.
    pub submit: Option<Submission>,
    /// What its unfinished jobs are told.
    pub request: Option<JobsRequest>,
    /// What was decided, for people; in order.
    pub notes: Vec<String>,
}

/// An event that cannot happen to a run in its state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event} is not possible while {state}")]
pub struct InvalidRunEvent {
    /// The event.
    pub event: String,
    /// The state.
    pub state: String,
}

impl Run {
    /// A run that has just been asked for.
    pub fn new(spec: RunSpec) -> Self {
        let reference_layers = spec.reference_layers();
        Self { spec, state: RunState::Created, intent: Intent::Run, tokens: None, reference_layers, models: Vec::new() }
    }

    /// The public status.
    pub fn status(&self) -> JobStatus {
        match (&self.state, self.intent) {
            (RunState::Finished { .. }, _) => JobStatus::Succeeded,
            (RunState::Failed { .. }, _) => JobStatus::Failed,
            (RunState::Cancelled, _) => JobStatus::Cancelled,
            (_, Intent::Cancel) => JobStatus::Cancelling,
            (_, Intent::Pause) => JobStatus::Paused,
            (RunState::Created, Intent::Run) => JobStatus::Queued,
            (_, Intent::Run) => JobStatus::Running,
        }
    }

    /// What is known of `model`.
    pub fn record(&self, model: Model) -> Option<&ModelRecord> {
        self.models.iter().find(|record| record.model == model)
    }

    /// A model's name for people.
    pub fn model_name(&self, model: Model) -> String {
        match model {
            Model::Reference => "reference".to_owned(),
            Model::Candidate { round, layers } => match self.spec.recipe {
                Recipe::FullData => format!("round {round}: {layers} layers inherited"),
                Recipe::LowData => format!("{layers} layers inherited"),
            },
            Model::Control { index } => {
                self.spec.controls.get(index as usize).map_or_else(|| format!("control {index}"), |c| c.name.clone())
            }
            Model::Arm { index } => {
                self.spec.arms.get(index as usize).map_or_else(|| format!("arm {index}"), |a| a.name.clone())
            }
        }
    }

    /// What `event` makes of the run.
    ///
    /// # Errors
    /// [`InvalidRunEvent`]; the run is unchanged.
    pub fn advance(&self, event: &RunEvent) -> Result<Transition, InvalidRunEvent> {
        let invalid = || InvalidRunEvent { event: event_name(event).to_owned(), state: self.describe_state() };
        if self.state.is_final() {
            // The last job's end may arrive after a cancel ended the run; a second cancel is harmless.
            return match (event, &self.state) {
                (RunEvent::CancelRequested | RunEvent::JobCancelled, RunState::Cancelled) => Ok(self.stay()),
                _ => Err(invalid()),
            };
        }
        match event {
            RunEvent::Created => match self.state {
                RunState::Created => Ok(self.begin()),
                _ => Err(invalid()),
            },
            RunEvent::JobSucceeded { outcome } => self.after_job(outcome).ok_or_else(invalid),
            RunEvent::JobFailed { message } => Ok(self.clone().fail(message.clone())),
            RunEvent::JobCancelled => match self.intent {
                Intent::Cancel => Ok(self.clone().end(RunState::Cancelled, "cancelled")),
                Intent::Run | Intent::Pause => Ok(self.clone().fail("a job of the run was cancelled".to_owned())),
            },
            RunEvent::PauseRequested => match self.intent {
                Intent::Cancel => Err(invalid()),
                Intent::Run | Intent::Pause => Ok(self.clone().ask(Intent::Pause, JobsRequest::Pause, "pause requested")),
            },
            RunEvent::ResumeRequested => match self.intent {
                Intent::Cancel => Err(invalid()),
                Intent::Run => Ok(self.stay()),
                Intent::Pause => Ok(self.clone().ask(Intent::Run, JobsRequest::Resume, "resumed")),
            },
            RunEvent::CancelRequested => match self.state {
                RunState::Created => Ok(self.clone().end(RunState::Cancelled, "cancelled before it began")),
                _ => Ok(self.clone().ask(Intent::Cancel, JobsRequest::Cancel, "cancel requested")),
            },
        }
    }

    fn stay(&self) -> Transition {
        Transition { run: self.clone(), submit: None, request: None, notes: Vec::new() }
    }

    fn ask(mut self, intent: Intent, request: JobsRequest, note: &str) -> Transition {
        self.intent = intent;
        Transition { run: self, submit: None, request: Some(request), notes: vec![note.to_owned()] }
    }

    fn end(mut self, state: RunState, note: &str) -> Transition {
        self.state = state;
        Transition { run: self, submit: None, request: None, notes: vec![note.to_owned()] }
    }

    fn fail(self, message: String) -> Transition {
        let note = format!("failed: {message}");
        self.end(RunState::Failed { message }, &note)
    }

    fn begin(&self) -> Transition {
        if let Some(artifact) = self.spec.corpus.token_set() {
            let mut run = self.clone();
            run.tokens = Some(TokenSetRef { artifact, train_tokens: None, vocab_size: None });
            return run.after_tokens(Vec::new());
        }
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
        });
        self.clone().submit(RunState::Tokenizing, "tokenize the corpus".to_owned(), spec, Vec::new())
    }

    fn submit(mut self, state: RunState, label: String, spec: JobSpec, notes: Vec<String>) -> Transition {
        self.state = state;
        // A job that ends while the run is paused is followed by one that waits: the request reaches it too.
        let request = (self.intent == Intent::Pause).then_some(JobsRequest::Pause);
        Transition { run: self, submit: Some(Submission { label, spec }), request, notes }
    }

    fn after_job(&self, outcome: &JobOutcome) -> Option<Transition> {
        let mut run = self.clone();
        let next = match (&self.state, outcome) {
            (RunState::Tokenizing, JobOutcome::Tokenized(tokenized)) => {
                run.tokens = Some(TokenSetRef {
                    artifact: tokenized.tokens,
                    train_tokens: Some(tokenized.train_tokens),
                    vocab_size: Some(tokenized.vocab_size),
                });
                let note = format!(
                    "tokenized: {} training and {} validation tokens, vocabulary {}",
                    tokenized.train_tokens, tokenized.validation_tokens, tokenized.vocab_size
                );
                Some((run, AfterJob::Tokens(note)))
            }
            (RunState::Slicing(model), JobOutcome::Sliced(sliced)) => {
                let model = *model;
                // A candidate's slice is where a given reference's depth becomes known.
                if !matches!(model, Model::Reference) {
                    run.reference_layers = Some(sliced.reference_layers);
                }
                let record = run.record_mut(model);
                record.initial = Some(sliced.checkpoint);
                record.layers = Some(sliced.config.n_layers);
                record.parameters = Some(sliced.parameters);
                Some((run, AfterJob::Train(model)))
            }
            (RunState::Training(model), JobOutcome::Trained(trained)) => {
                let model = *model;
                let record = run.record_mut(model);
                record.checkpoint = Some(Location::Artifact(trained.checkpoint));
                record.steps = Some(trained.steps);
                record.tokens_seen = Some(trained.tokens_seen);
                record.epochs = Some(trained.epochs);
                record.wall_s = Some(trained.wall_s);
                record.first_loss_nats = Some(trained.first_loss_nats);
                Some((run, AfterJob::Evaluate(model)))
            }
            (RunState::Evaluating(model), JobOutcome::Evaluated(evaluated)) => {
                let model = *model;
                if matches!(model, Model::Reference) {
                    run.reference_layers = Some(evaluated.config.n_layers);
                }
                let record = run.record_mut(model);
                record.validation = evaluated.validation_loss().cloned();
                record.layers = Some(evaluated.config.n_layers);
                record.parameters = Some(evaluated.parameters);
                Some((run, AfterJob::Measured(model)))
            }
            _ => None,
        };
        let (run, then) = next?;
        // Cancelled while its last job finished: what was made is kept, nothing more is started.
        if run.intent == Intent::Cancel {
            return Some(run.end(RunState::Cancelled, "cancelled"));
        }
        Some(match then {
            AfterJob::Tokens(note) => run.after_tokens(vec![note]),
            AfterJob::Train(model) => run.train(model),
            AfterJob::Evaluate(model) => run.evaluate(model, Vec::new()),
            AfterJob::Measured(model) => run.after_measured(model),
        })
    }

    fn after_tokens(mut self, notes: Vec<String>) -> Transition {
        if let Some(uri) = &self.spec.reference.checkpoint {
            let location = parse_location(uri);
            self.record_mut(Model::Reference).checkpoint = Some(location);
            return match self.spec.recipe {
                Recipe::FullData => self.evaluate(Model::Reference, notes),
                Recipe::LowData => self.first_candidate(notes),
            };
        }
        match (self.spec.reference.architecture.clone(), self.tokens.and_then(|tokens| tokens.vocab_size)) {
            (Some(architecture), Some(vocab_size)) => {
                let source = SliceSource::Architecture { architecture, vocab_size };
                self.slice(Model::Reference, source, notes)
            }
            _ => self.fail("a ready token set needs a given reference checkpoint".to_owned()),
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
            None => self.fail("target.start_layers is needed: the reference's depth is not known yet".to_owned()),
        }
    }

    fn slice_candidate(self, round: u32, layers: LayerCount, mut notes: Vec<String>) -> Transition {
        if let Some(reference) = self.reference_layers
            && layers > reference
        {
            return self.fail(format!("target.start_layers: {layers} is more than the reference's {reference} layers"));
        }
        let Some(checkpoint) = self.record(Model::Reference).and_then(|r| r.checkpoint.clone()) else {
            return self.fail("the reference has no checkpoint".to_owned());
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
        notes.push(format!("round {round}: inherit {layers} layers"));
        self.slice(Model::Candidate { round, layers }, source, notes)
    }

    fn slice(mut self, model: Model, source: SliceSource, notes: Vec<String>) -> Transition {
        self.record_mut(model);
        let label = format!("{}: slice", self.model_name(model));
        let spec = JobSpec::Slice(SliceSpec {
            source,
            tokenizer: self.tokens.map(|tokens| tokens.artifact),
            seed: self.model_seed(model),
        });
        self.submit(RunState::Slicing(model), label, spec, notes)
    }

    fn train(self, model: Model) -> Transition {
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
            expect_inherited: self.inherits_embeddings(model),
        });
        self.submit(RunState::Training(model), label, spec, Vec::new())
    }

    fn training_of(&self, model: Model) -> (TrainingSpec, f64) {
        let training = &self.spec.training;
        match model {
            Model::Reference => (self.spec.reference.training.as_ref().unwrap_or(training).clone(), 1.0),
            Model::Candidate { .. } => (training.clone(), self.spec.target.data_fraction),
            Model::Control { index } => {
                let factor = self.spec.controls.get(index as usize).map_or(1.0, |c| c.steps_factor);
                let mut training = training.clone();
                if let Some(winner_steps) = self.winner().and_then(|winner| winner.steps) {
                    training.epochs = None;
                    training.steps = Some(((winner_steps as f64 * factor).round() as u64).max(1));
                }
                (training, self.spec.target.data_fraction)
            }
            Model::Arm { index } => match self.spec.arms.get(index as usize) {
                Some(arm) => {
                    let training = TrainingSpec { steps: None, epochs: Some(arm.epochs), ..training.clone() };
                    (training, arm.data_fraction)
                }
                None => (training.clone(), 1.0),
            },
        }
    }

    fn inherits_embeddings(&self, model: Model) -> bool {
        match model {
            Model::Reference | Model::Control { .. } => false,
            Model::Candidate { .. } | Model::Arm { .. } => self.spec.target.inherit == InheritSet::All,
        }
    }

    fn evaluate(mut self, model: Model, notes: Vec<String>) -> Transition {
        let (Some(tokens), Some(checkpoint)) = (self.tokens, self.record_mut(model).checkpoint.clone()) else {
            return self.fail("nothing to evaluate".to_owned());
        };
        let label = match model {
            Model::Reference => "benchmark the reference".to_owned(),
            _ => format!("{}: evaluate", self.model_name(model)),
        };
        let spec = JobSpec::Evaluate(EvaluateSpec {
            checkpoint,
            tasks: vec![EvaluationTask::ValidationLoss {
                tokens: tokens.artifact,
                block_size: self.spec.training.block_size,
                max_sequences: self.spec.evaluation.max_sequences,
            }],
            batch_size: self.spec.evaluation.batch_size,
        });
        self.submit(RunState::Evaluating(model), label, spec, notes)
    }

    fn after_measured(self, model: Model) -> Transition {
        let Some(score) = self.record(model).and_then(|r| r.validation.clone()) else {
            let name = self.model_name(model);
            return self.fail(format!("{name}: the evaluation brought no validation loss"));
        };
        let mut notes = vec![format!("{}: validation loss {} nats", self.model_name(model), with_error(&score))];
        match model {
            Model::Reference => self.first_candidate(notes),
            Model::Candidate { round, layers } => match self.decide(round, layers, &score) {
                Decision::Grow { layers } => {
                    notes.push(format!("not matched yet: grow to {layers} layers"));
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

    fn decide(&self, round: u32, layers: LayerCount, score: &Score) -> Decision {
        let benchmark = self.record(Model::Reference).and_then(|r| r.validation.as_ref()).map(|s| s.value);
        let target = &self.spec.target;
        match (self.spec.recipe, benchmark) {
            (Recipe::LowData, _) => Decision::Settle { note: "one round: done growing".to_owned() },
            (Recipe::FullData, None) => Decision::Settle { note: "no benchmark: done growing".to_owned() },
            (Recipe::FullData, Some(benchmark)) => {
                if score.value <= benchmark + target.tolerance_nats {
                    let note = format!(
                        "matched: {:.4} is at most the reference's {benchmark:.4} + {}",
                        score.value, target.tolerance_nats
                    );
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
            return self.fail("no candidate was measured".to_owned());
        };
        let Some(model) = next else {
            let matched = self.matched(&winner);
            let mut transition = self.end(RunState::Finished { winner: winner.model, matched }, "finished");
            transition.notes.splice(0..0, notes);
            return transition;
        };
        let (Some(layers), Some(checkpoint)) =
            (winner.layers, self.record(Model::Reference).and_then(|r| r.checkpoint.clone()))
        else {
            return self.fail("the reference has no checkpoint".to_owned());
        };
        let inherit = match model {
            Model::Control { .. } => InheritSet::Nothing,
            Model::Arm { .. } | Model::Reference | Model::Candidate { .. } => self.spec.target.inherit,
        };
        let layer_map = self.spec.target.layer_map.clone();
        let source = SliceSource::Checkpoint { checkpoint, layers, layer_map, inherit, previous: None };
        self.slice(model, source, notes)
    }

    /// The last candidate that was measured.
    pub fn winner(&self) -> Option<&ModelRecord> {
        self.last_candidate().filter(|record| record.validation.is_some())
    }

    fn last_candidate(&self) -> Option<&ModelRecord> {
        self.models.iter().rev().find(|record| matches!(record.model, Model::Candidate { .. }) && record.checkpoint.is_some())
    }

    fn matched(&self, winner: &ModelRecord) -> Option<bool> {
        let benchmark = self.record(Model::Reference)?.validation.as_ref()?.value;
        Some(winner.validation.as_ref()?.value <= benchmark + self.spec.target.tolerance_nats)
    }

    fn record_mut(&mut self, model: Model) -> &mut ModelRecord {
        let index = match self.models.iter().position(|record| record.model == model) {
            Some(index) => index,
            None => {
                self.models.push(ModelRecord::new(model));
                self.models.len() - 1
            }
        };
        &mut self.models[index]
    }

    /// Fresh tensors of different models must not be equal.
    fn model_seed(&self, model: Model) -> u64 {
        let offset = match model {
            Model::Reference => 0,
            Model::Candidate { round, .. } => 1 + u64::from(round),
            Model::Control { index } => 1_000 + u64::from(index),
            Model::Arm { index } => 2_000 + u64::from(index),
        };
        self.spec.seed.wrapping_add(offset)
    }

    /// Where it stands, for people.
    pub fn describe_state(&self) -> String {
        match &self.state {
            RunState::Created => "created".to_owned(),
            RunState::Tokenizing => "tokenizing".to_owned(),
            RunState::Slicing(model) => format!("slicing ({})", self.model_name(*model)),
            RunState::Training(model) => format!("training ({})", self.model_name(*model)),
            RunState::Evaluating(Model::Reference) => "benchmarking the reference".to_owned(),
            RunState::Evaluating(model) => format!("evaluating ({})", self.model_name(*model)),
            RunState::Finished { winner, matched } => {
                let matched = match matched {
                    Some(true) => ", matches the reference",
                    Some(false) => ", does not match the reference",
                    None => "",
                };
                format!("finished ({}{matched})", self.model_name(*winner))
            }
            RunState::Failed { message } => format!("failed: {message}"),
            RunState::Cancelled => "cancelled".to_owned(),
        }
    }
}

enum AfterJob {
    Tokens(String),
    Train(Model),
    Evaluate(Model),
    Measured(Model),
}

enum Decision {
    Grow { layers: LayerCount },
    Settle { note: String },
}

fn with_error(score: &Score) -> String {
    match score.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", score.value),
        None => format!("{:.4}", score.value),
    }
}

fn event_name(event: &RunEvent) -> &'static str {
    match event {
        RunEvent::Created => "a second creation",
        RunEvent::JobSucceeded { .. } => "a finished job",
        RunEvent::JobFailed { .. } => "a failed job",
        RunEvent::JobCancelled => "a cancelled job",
        RunEvent::PauseRequested => "a pause",
        RunEvent::ResumeRequested => "a resume",
        RunEvent::CancelRequested => "a cancel",
    }
}

/// Specs are validated before a run is made; a location that slipped through fails in the job that reads it.
fn parse_location(text: &str) -> Location {
    text.parse().unwrap_or_else(|_| Location::Uri(text.to_owned()))
}

#[cfg(test)]
mod tests;
