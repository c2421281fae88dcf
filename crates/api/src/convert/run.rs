//! Conversions for runs and recipes.

use inheritune_domain::id::{LayerCount, RunId};
use inheritune_domain::job::JobStatus;
use inheritune_domain::run::{Model, ModelRecord, Run, RunState, TokenSetRef};
use inheritune_domain::spec::{
    ArmSpec, ControlSpec, CorpusSpec, EvaluationSpec, Recipe, ReferenceSpec, RunSpec, ScoreDifference, TargetSpec,
    TokenizerSpec, defaults,
};
use inheritune_domain::violation::Violations;
use time::OffsetDateTime;
use uuid::Uuid;

use super::fields::{Field, Notes};
use super::page::{Page, page};
use super::slicing::{architecture, inherit, inherit_fields, layer_map};
use super::time::timestamp;
use super::training::training_spec;
use crate::v1;

/// What a [`v1::CreateRunRequest`] asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// The validated recipe.
    pub spec: RunSpec,
    /// A request id chosen by the caller.
    pub request_id: Option<Uuid>,
}

impl TryFrom<v1::CreateRunRequest> for NewRun {
    type Error = Violations;

    fn try_from(request: v1::CreateRunRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let spec = field.at("spec").required(request.spec);
        let spec = run_spec(&mut field.at("spec"), spec);
        let request_id = field.at("request_id").optional_id(&request.request_id);
        notes.domain(spec.validate(), |path| format!("spec.{}", renamed(path)));
        notes.into_result(Self { spec, request_id })
    }
}

impl TryFrom<v1::RunSpec> for RunSpec {
    type Error = Violations;

    fn try_from(message: v1::RunSpec) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let spec = run_spec(&mut Field::root(&mut notes), message);
        notes.domain(spec.validate(), renamed);
        notes.into_result(spec)
    }
}

/// Which runs a [`v1::ListRunsRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRuns {
    /// Only runs with this status.
    pub status: Option<JobStatus>,
    /// The requested page.
    pub page: Page,
}

impl TryFrom<&v1::ListRunsRequest> for ListedRuns {
    type Error = Violations;

    fn try_from(request: &v1::ListRunsRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let listed = Self {
            status: field.at("status").named(request.status),
            page: page(&mut field, request.page_size, &request.page_token),
        };
        notes.into_result(listed)
    }
}

/// Returns the path in [`v1::RunSpec`] of a path reported by the validation of a recipe.
fn renamed(path: &str) -> String {
    path.replace("layer_map[", "layer_map.list[")
}

fn run_spec(field: &mut Field<'_>, message: v1::RunSpec) -> RunSpec {
    let corpus = field.at("corpus").required(message.corpus);
    let reference = field.at("reference").required(message.reference);
    let target = field.at("target").required(message.target);
    let training = field.at("training").required(message.training);
    let evaluation = message.evaluation.unwrap_or_default();
    RunSpec {
        recipe: recipe(&mut field.at("recipe"), message.recipe, !message.arms.is_empty()),
        name: message.name,
        seed: message.seed.unwrap_or(defaults::seed()),
        priority: message.priority,
        corpus: corpus_spec(corpus),
        reference: reference_spec(&mut field.at("reference"), reference),
        target: target_spec(&mut field.at("target"), target),
        training: training_spec(&mut field.at("training"), training),
        evaluation: EvaluationSpec {
            max_sequences: evaluation.max_sequences,
            batch_size: evaluation.batch_size.unwrap_or(defaults::batch_size()),
            benchmarks: evaluation.benchmarks,
            benchmark_data: evaluation.benchmark_data,
            benchmark_limit: evaluation.benchmark_limit,
        },
        controls: message
            .controls
            .into_iter()
            .map(|control| ControlSpec {
                name: control.name,
                steps_factor: control.steps_factor.unwrap_or(defaults::steps_factor()),
            })
            .collect(),
        arms: message
            .arms
            .into_iter()
            .map(|arm| ArmSpec { name: arm.name, data_fraction: arm.data_fraction, epochs: arm.epochs })
            .collect(),
    }
}

fn recipe(field: &mut Field<'_>, value: i32, has_arms: bool) -> Recipe {
    match field.named(value) {
        Some(recipe) => return recipe,
        None if value == 0 => field.bad("must be given: full-data or low-data"),
        None => {}
    }
    // A placeholder with which the other fields cause no further violations.
    if has_arms { Recipe::LowData } else { Recipe::FullData }
}

fn corpus_spec(message: v1::CorpusSpec) -> CorpusSpec {
    use v1::tokenizer_spec::Tokenizer;
    let tokenizer = match message.tokenizer.and_then(|spec| spec.tokenizer) {
        None | Some(Tokenizer::Reference(v1::ReferenceTokenizer {})) => TokenizerSpec::Reference,
        Some(Tokenizer::Train(train)) => TokenizerSpec::Train { vocab_size: train.vocab_size },
        Some(Tokenizer::Uri(uri)) => TokenizerSpec::Uri(uri),
    };
    CorpusSpec {
        sources: message.sources,
        text_column: message.text_column,
        max_bad_rows: message.max_bad_rows,
        validation_fraction: message.validation_fraction.unwrap_or(defaults::validation_fraction()),
        tokenizer,
    }
}

fn reference_spec(field: &mut Field<'_>, message: v1::ReferenceSpec) -> ReferenceSpec {
    ReferenceSpec {
        checkpoint: message.checkpoint,
        architecture: message.architecture.map(|shape| architecture(&mut field.at("architecture"), shape)),
        training: message.training.map(|training| training_spec(&mut field.at("training"), training)),
    }
}

fn target_spec(field: &mut Field<'_>, message: v1::TargetSpec) -> TargetSpec {
    TargetSpec {
        start_layers: message.start_layers.map(LayerCount),
        grow_by: message.grow_by.unwrap_or(defaults::grow_by()),
        max_rounds: message.max_rounds.unwrap_or(defaults::max_rounds()),
        tolerance_nats: message.tolerance_nats,
        match_by: field.at("match_by").named(message.match_by).unwrap_or_default(),
        growth_source: field.at("growth_source").named(message.growth_source).unwrap_or_default(),
        inherit: inherit(field, message.inherit, &message.inherit_parts),
        layer_map: layer_map(&mut field.at("layer_map"), message.layer_map),
        data_fraction: message.data_fraction.unwrap_or(defaults::data_fraction()),
    }
}

impl From<&RunSpec> for v1::RunSpec {
    fn from(spec: &RunSpec) -> Self {
        Self {
            name: spec.name.clone(),
            recipe: v1::Recipe::from(spec.recipe).into(),
            seed: Some(spec.seed),
            priority: spec.priority,
            corpus: Some((&spec.corpus).into()),
            reference: Some((&spec.reference).into()),
            target: Some((&spec.target).into()),
            training: Some((&spec.training).into()),
            evaluation: Some(v1::EvaluationSpec {
                max_sequences: spec.evaluation.max_sequences,
                batch_size: Some(spec.evaluation.batch_size),
                benchmarks: spec.evaluation.benchmarks.clone(),
                benchmark_data: spec.evaluation.benchmark_data.clone(),
                benchmark_limit: spec.evaluation.benchmark_limit,
            }),
            controls: spec
                .controls
                .iter()
                .map(|c| v1::ControlSpec { name: c.name.clone(), steps_factor: Some(c.steps_factor) })
                .collect(),
            arms: spec
                .arms
                .iter()
                .map(|a| v1::ArmSpec { name: a.name.clone(), data_fraction: a.data_fraction, epochs: a.epochs })
                .collect(),
        }
    }
}

impl From<&CorpusSpec> for v1::CorpusSpec {
    fn from(spec: &CorpusSpec) -> Self {
        use v1::tokenizer_spec::Tokenizer;
        let tokenizer = match &spec.tokenizer {
            TokenizerSpec::Reference => Tokenizer::Reference(v1::ReferenceTokenizer {}),
            TokenizerSpec::Train { vocab_size } => Tokenizer::Train(v1::TrainTokenizer { vocab_size: *vocab_size }),
            TokenizerSpec::Uri(uri) => Tokenizer::Uri(uri.clone()),
        };
        Self {
            sources: spec.sources.clone(),
            validation_fraction: Some(spec.validation_fraction),
            text_column: spec.text_column.clone(),
            max_bad_rows: spec.max_bad_rows,
            tokenizer: Some(v1::TokenizerSpec { tokenizer: Some(tokenizer) }),
        }
    }
}

impl From<&ReferenceSpec> for v1::ReferenceSpec {
    fn from(spec: &ReferenceSpec) -> Self {
        Self {
            checkpoint: spec.checkpoint.clone(),
            architecture: spec.architecture.as_ref().map(Into::into),
            training: spec.training.as_ref().map(Into::into),
        }
    }
}

impl From<&TargetSpec> for v1::TargetSpec {
    fn from(spec: &TargetSpec) -> Self {
        let (inherit, inherit_parts) = inherit_fields(spec.inherit);
        Self {
            start_layers: spec.start_layers.map(|n| n.0),
            grow_by: Some(spec.grow_by),
            max_rounds: Some(spec.max_rounds),
            tolerance_nats: spec.tolerance_nats,
            match_by: v1::MatchBy::from(spec.match_by).into(),
            growth_source: v1::GrowthSource::from(spec.growth_source).into(),
            inherit,
            inherit_parts,
            layer_map: Some((&spec.layer_map).into()),
            data_fraction: Some(spec.data_fraction),
        }
    }
}

/// The timestamps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunTimes {
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it was last changed.
    pub updated_at: OffsetDateTime,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// Returns a run as a message, without notes and jobs.
pub fn run_message(id: RunId, run: &Run, times: RunTimes) -> v1::Run {
    let (winner, matched) = match &run.state {
        RunState::Finished { winner, matched } => (run.record(*winner), *matched),
        RunState::Created
        | RunState::Tokenizing
        | RunState::Slicing(_)
        | RunState::Training(_)
        | RunState::Evaluating(_)
        | RunState::Failed { .. }
        | RunState::Cancelled => (None, None),
    };
    v1::Run {
        id: id.to_string(),
        name: run.spec.name.clone(),
        status: v1::JobStatus::from(run.status()).into(),
        state: run.describe_state(),
        spec: Some((&run.spec).into()),
        models: run.models.iter().map(|record| model_record(run, record)).collect(),
        notes: Vec::new(),
        current_jobs: Vec::new(),
        tokens: run.tokens.as_ref().map(Into::into),
        reference_layers: run.reference_layers.map(|n| n.0),
        winner: winner.map(|record| model_record(run, record)),
        matched,
        created_at: Some(timestamp(times.created_at)),
        updated_at: Some(timestamp(times.updated_at)),
        finished_at: times.finished_at.map(timestamp),
    }
}

fn model_record(run: &Run, record: &ModelRecord) -> v1::ModelRecord {
    v1::ModelRecord {
        model: Some(record.model.into()),
        name: run.model_name(record.model),
        layers: record.layers.map(|n| n.0),
        initial_artifact_id: record.initial.map(|id| id.to_string()).unwrap_or_default(),
        checkpoint: record.checkpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        steps: record.steps,
        tokens_seen: record.tokens_seen,
        epochs: record.epochs,
        wall_s: record.wall_s,
        first_loss_nats: record.first_loss_nats,
        parameters: record.parameters,
        validation: record.validation.as_ref().map(Into::into),
        difference: record.difference.map(|difference| {
            (&ScoreDifference { task: "validation_loss".to_owned(), metric: "loss_nats".to_owned(), difference }).into()
        }),
        benchmarks: record.benchmarks.iter().map(Into::into).collect(),
        scores_artifact_id: record.scores.map(|id| id.to_string()).unwrap_or_default(),
        benchmarks_problem: record.benchmarks_problem.clone().unwrap_or_default(),
        given_up: record.given_up.clone().unwrap_or_default(),
    }
}

impl From<Model> for v1::Model {
    fn from(model: Model) -> Self {
        use v1::model::Model as Which;
        let which = match model {
            Model::Reference => Which::Reference(v1::ReferenceModel {}),
            Model::Candidate { round, layers } => Which::Candidate(v1::CandidateModel { round, layers: layers.0 }),
            Model::Control { index } => Which::Control(v1::ControlModel { index }),
            Model::Arm { index } => Which::Arm(v1::ArmModel { index }),
        };
        Self { model: Some(which) }
    }
}

impl From<&TokenSetRef> for v1::TokenSet {
    fn from(tokens: &TokenSetRef) -> Self {
        Self {
            artifact_id: tokens.artifact.to_string(),
            train_tokens: tokens.train_tokens,
            vocab_size: tokens.vocab_size,
        }
    }
}
