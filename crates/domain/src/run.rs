//! The run: which job comes next, as a pure function of the recipe and past events.
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
//!        └─► Finished                             (any) ─► Failed | Cancelled          Failed ─ retry ─► where it failed
//! ```
//! A failed control or arm is noted, and so are benchmarks that cannot be measured: a finished
//! target is not lost because of what it is compared with. A given reference skips its first two
//! states. A low-data run skips a given reference altogether, unless it has benchmarks, and has one
//! round. Pausing keeps the state: see [`Intent`].

use serde::{Deserialize, Serialize};

use crate::artifact::Location;
use crate::id::LayerCount;
use crate::job::JobStatus;
use crate::spec::{JobOutcome, JobSpec, Recipe, RunSpec};

mod state;
mod event;
mod growth;
mod jobs;
pub mod note;

pub use event::{InvalidRunEvent, JobsRequest, RunEvent, Submission, Transition};
pub use note::Note;
pub use state::{Intent, Model, ModelDecision, ModelRecord, RunState, TokenSetRef};

/// A run: its recipe, its state and everything it has learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The recipe.
    pub spec: RunSpec,
    /// Its state.
    pub state: RunState,
    /// The intent of its owner.
    pub intent: Intent,
    /// Its tokens, once available.
    pub tokens: Option<TokenSetRef>,
    /// The number of layers of the reference, once known.
    pub reference_layers: Option<LayerCount>,
    /// Its models, in the order in which they were started.
    pub models: Vec<ModelRecord>,
}

impl Run {
    /// Creates a new run.
    pub fn new(spec: RunSpec) -> Self {
        let reference_layers = spec.reference_layers();
        Self { spec, state: RunState::Created, intent: Intent::Run, tokens: None, reference_layers, models: Vec::new() }
    }

    /// Returns the public status.
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

    /// Returns whether the target matches the reference, or `None` before the end or if the
    /// reference was not measured.
    pub fn matched(&self) -> Option<bool> {
        match self.state {
            RunState::Finished { matched, .. } => matched,
            _ => None,
        }
    }

    /// Returns what is known about `model`.
    pub fn record(&self, model: Model) -> Option<&ModelRecord> {
        self.models.iter().find(|record| record.model == model)
    }

    /// Returns the name of a model, for people.
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

    /// Returns a description of the state, for people.
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

    /// Returns the transition caused by `event`.
    ///
    /// # Errors
    /// [`InvalidRunEvent`]; the run is unchanged.
    pub fn advance(&self, event: &RunEvent) -> Result<Transition, InvalidRunEvent> {
        let invalid = || InvalidRunEvent { event: event.name().to_owned(), state: self.describe_state() };
        if self.state.is_final() {
            // The last job may end after the run was cancelled; a second cancel is harmless.
            return match (event, &self.state) {
                (RunEvent::CancelRequested | RunEvent::JobCancelled, RunState::Cancelled) => Ok(self.stay()),
                (RunEvent::RetryRequested { step }, RunState::Failed { .. }) if step.has_job() => {
                    Ok(self.clone().retry(step.clone()))
                }
                _ => Err(invalid()),
            };
        }
        match event {
            RunEvent::Created => match self.state {
                RunState::Created => Ok(self.begin()),
                _ => Err(invalid()),
            },
            RunEvent::JobSucceeded { outcome } => self.after_job(outcome).ok_or_else(invalid),
            // A run that was just created has no job that could end.
            RunEvent::JobFailed { .. } | RunEvent::JobCancelled if self.state == RunState::Created => Err(invalid()),
            RunEvent::JobFailed { message } => Ok(self.clone().after_failure(message)),
            RunEvent::JobCancelled => match self.intent {
                Intent::Cancel => Ok(self.clone().end(RunState::Cancelled, Note::Cancelled { begun: true })),
                Intent::Run | Intent::Pause => Ok(self.clone().after_failure("a job of the run was cancelled")),
            },
            RunEvent::RetryRequested { .. } => Err(invalid()),
            RunEvent::PauseRequested => match self.intent {
                Intent::Cancel => Err(invalid()),
                Intent::Run | Intent::Pause => {
                    Ok(self.clone().ask(Intent::Pause, JobsRequest::Pause, Note::PauseRequested))
                }
            },
            RunEvent::ResumeRequested => match self.intent {
                Intent::Cancel => Err(invalid()),
                Intent::Run => Ok(self.stay()),
                Intent::Pause => Ok(self.clone().ask(Intent::Run, JobsRequest::Resume, Note::Resumed)),
            },
            RunEvent::CancelRequested => match self.state {
                RunState::Created => Ok(self.clone().end(RunState::Cancelled, Note::Cancelled { begun: false })),
                _ => Ok(self.clone().ask(Intent::Cancel, JobsRequest::Cancel, Note::CancelRequested)),
            },
        }
    }

    fn begin(&self) -> Transition {
        let mut run = self.clone();
        match self.spec.corpus.token_set() {
            Some(artifact) => {
                run.tokens = Some(TokenSetRef { artifact, train_tokens: None, vocab_size: None });
                run.after_tokens(Vec::new())
            }
            None => run.tokenize(),
        }
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
                let corpus = tokenized.corpus.as_ref().map(|corpus| corpus.summary(tokenized.documents));
                let note = Note::Tokenized {
                    train_tokens: tokenized.train_tokens,
                    validation_tokens: tokenized.validation_tokens,
                    vocab_size: tokenized.vocab_size,
                    corpus: corpus.unwrap_or_default(),
                };
                Some((run, AfterJob::Tokens { train_tokens: tokenized.train_tokens, note }))
            }
            (RunState::Slicing(model), JobOutcome::Sliced(sliced)) => {
                let model = *model;
                // Slicing a candidate reveals the depth of a given reference.
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
                record.difference = evaluated.validation_difference();
                record.benchmarks = evaluated.benchmark_scores();
                record.scores = Some(evaluated.scores_artifact);
                record.layers = Some(evaluated.config.n_layers);
                record.parameters = Some(evaluated.parameters);
                Some((run, AfterJob::Measured(model)))
            }
            _ => None,
        };
        let (run, then) = next?;
        // Cancelled while its last job finished: the result is kept, but no new job is started.
        if run.intent == Intent::Cancel {
            return Some(run.end(RunState::Cancelled, Note::Cancelled { begun: true }));
        }
        Some(match then {
            AfterJob::Tokens { train_tokens, note } => match run.spec.check_tokens(train_tokens) {
                Ok(()) => run.after_tokens(vec![note]),
                Err(violations) => run.fail_after(vec![note], violations.to_string()),
            },
            AfterJob::Train(model) => run.train(model),
            AfterJob::Evaluate(model) => run.evaluate(model, Vec::new()),
            AfterJob::Measured(model) => run.after_measured(model),
        })
    }

    /// Fails the run only if the target depends on the failed job.
    fn after_failure(mut self, message: &str) -> Transition {
        if self.intent == Intent::Cancel {
            return self.fail(message.to_owned());
        }
        match self.state {
            RunState::Evaluating(model) if self.measures_benchmarks(model) => {
                let note = Note::WithoutBenchmarks { model: self.model_name(model), problem: message.to_owned() };
                self.record_mut(model).benchmarks_problem = Some(message.to_owned());
                self.evaluate(model, vec![note])
            }
            RunState::Slicing(model) | RunState::Training(model) | RunState::Evaluating(model) => {
                self.go_on_without(model, message)
            }
            RunState::Created
            | RunState::Tokenizing
            | RunState::Finished { .. }
            | RunState::Failed { .. }
            | RunState::Cancelled => self.fail(message.to_owned()),
        }
    }

    /// Returns to the step whose job failed.
    fn retry(mut self, step: RunState) -> Transition {
        self.state = step;
        self.intent = Intent::Run;
        let note = Note::Retried { state: self.describe_state() };
        Transition { run: self, submit: None, request: Some(JobsRequest::Retry), notes: vec![note] }
    }

    fn submit(mut self, state: RunState, label: String, spec: JobSpec, notes: Vec<Note>) -> Transition {
        self.state = state;
        // If a job ends while the run is paused, the next job must be paused as well.
        let request = (self.intent == Intent::Pause).then_some(JobsRequest::Pause);
        Transition { run: self, submit: Some(Submission { label, spec }), request, notes }
    }

    fn stay(&self) -> Transition {
        Transition { run: self.clone(), submit: None, request: None, notes: Vec::new() }
    }

    fn ask(mut self, intent: Intent, request: JobsRequest, note: Note) -> Transition {
        self.intent = intent;
        Transition { run: self, submit: None, request: Some(request), notes: vec![note] }
    }

    fn end(mut self, state: RunState, note: Note) -> Transition {
        self.state = state;
        Transition { run: self, submit: None, request: None, notes: vec![note] }
    }

    fn fail(self, message: String) -> Transition {
        self.fail_after(Vec::new(), message)
    }

    /// Fails the run, keeping the notes of earlier decisions.
    fn fail_after(mut self, mut notes: Vec<Note>, message: String) -> Transition {
        notes.push(Note::Failed { message: message.clone() });
        self.state = RunState::Failed { message };
        Transition { run: self, submit: None, request: None, notes }
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
}

enum AfterJob {
    Tokens { train_tokens: u64, note: Note },
    Train(Model),
    Evaluate(Model),
    Measured(Model),
}

#[cfg(test)]
mod tests;
