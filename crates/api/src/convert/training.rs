//! Conversions for tokenizing and training.

use inheritune_checkpoint::decoder_config::Architecture;
use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{
    CorpusFacts, FilesLeftOut, FilesOfKind, TokenizeSpec, Tokenized, TokenizerSource, TrainSpec, Trained, TrainingSpec,
    architecture, defaults, limits,
};
use inheritune_domain::violation::Violations;
use uuid::Uuid;

use super::fields::{Field, Notes};
use super::slicing::fresh_source;
use crate::v1;

/// What a [`v1::EstimateRequest`] asks about.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The model.
    pub model: EstimateModel,
    /// The tokens.
    pub tokens: EstimateTokens,
    /// How the model would be trained.
    pub training: TrainingSpec,
    /// Fraction of the training tokens that is used.
    pub data_fraction: f64,
}

/// The model of an estimate.
#[derive(Debug, Clone, PartialEq)]
pub enum EstimateModel {
    /// An existing model.
    Checkpoint(Location),
    /// A model that does not exist yet.
    Fresh {
        /// Its shape.
        architecture: Architecture,
        /// Number of rows of its embedding.
        vocab_size: u32,
    },
}

/// The tokens of an estimate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EstimateTokens {
    /// A token set.
    Artifact(ArtifactId),
    /// A number of training tokens.
    Count(u64),
}

impl TryFrom<v1::EstimateRequest> for Estimate {
    type Error = Violations;

    fn try_from(request: v1::EstimateRequest) -> Result<Self, Violations> {
        let mut notes = Notes::default();
        let mut field = Field::root(&mut notes);
        let model = match request.model {
            Some(v1::estimate_request::Model::Checkpoint(text)) => {
                EstimateModel::Checkpoint(field.at("checkpoint").location(&text))
            }
            Some(v1::estimate_request::Model::Fresh(message)) => {
                let (architecture, vocab_size) = fresh_source(&mut field.at("fresh"), message);
                EstimateModel::Fresh { architecture, vocab_size }
            }
            None => {
                field.at("model").bad("give checkpoint or fresh");
                EstimateModel::Checkpoint(Location::Artifact(ArtifactId(Uuid::nil())))
            }
        };
        let tokens = match request.tokens {
            Some(v1::estimate_request::Tokens::TokensArtifactId(text)) => {
                EstimateTokens::Artifact(field.at("tokens_artifact_id").id(&text))
            }
            Some(v1::estimate_request::Tokens::TrainTokens(count)) => {
                field.at("train_tokens").whole(limits::TRAIN_TOKENS, count);
                EstimateTokens::Count(count)
            }
            None => {
                field.at("tokens").bad("give tokens_artifact_id or train_tokens");
                EstimateTokens::Count(0)
            }
        };
        let data_fraction = request.data_fraction.unwrap_or(defaults::data_fraction());
        if !limits::DATA_FRACTION.holds(data_fraction) {
            field.at("data_fraction").bad(limits::DATA_FRACTION.description());
        }
        let mut at = field.at("training");
        let message = at.required(request.training);
        let training = training_spec(&mut at, message);
        notes.domain(training.validate(), |path| format!("training.{path}"));
        if let EstimateModel::Fresh { architecture, vocab_size } = &model {
            notes.domain(architecture::validate_with_vocabulary(architecture, *vocab_size), |path| {
                format!("fresh.{path}")
            });
        }
        notes.into_result(Self { model, tokens, training, data_fraction })
    }
}

pub(super) fn training_spec(field: &mut Field<'_>, message: v1::TrainingSpec) -> TrainingSpec {
    TrainingSpec {
        block_size: message.block_size,
        micro_batch: message.micro_batch,
        gradient_accumulation: message.gradient_accumulation.unwrap_or(defaults::gradient_accumulation()),
        precision: field.at("precision").named(message.precision).unwrap_or_default(),
        activation_checkpointing: message.activation_checkpointing,
        sampling: field.at("sampling").named(message.sampling).unwrap_or_default(),
        source_weights: message.source_weights,
        document_mask: message.document_mask,
        steps: message.steps,
        epochs: message.epochs,
        lr_max: message.lr_max,
        lr_min: message.lr_min,
        warmup_steps: message.warmup_steps,
        schedule: field.at("schedule").named(message.schedule).unwrap_or_default(),
        weight_decay: message.weight_decay.unwrap_or(defaults::weight_decay()),
        decay: field.at("decay").named(message.decay).unwrap_or_default(),
        beta1: message.beta1.unwrap_or(defaults::beta1()),
        beta2: message.beta2.unwrap_or(defaults::beta2()),
        adam_eps: message.adam_eps.unwrap_or(defaults::adam_eps()),
        clip_norm: message.clip_norm.unwrap_or(defaults::clip_norm()),
        log_every_steps: message.log_every_steps.unwrap_or(defaults::log_every_steps()),
        evaluate_every_steps: message.evaluate_every_steps,
        evaluate_sequences: message.evaluate_sequences.unwrap_or(defaults::evaluate_sequences()),
        checkpoint_every_steps: message.checkpoint_every_steps.unwrap_or(defaults::checkpoint_every_steps()),
        keep_newest: message.keep_newest.unwrap_or(defaults::keep_newest()),
        keep_best: message.keep_best,
    }
}

pub(super) fn train_spec(field: &mut Field<'_>, message: v1::TrainSpec) -> TrainSpec {
    let checkpoint = field.at("checkpoint").location(&message.checkpoint);
    let tokens = field.at("tokens_artifact_id").id(&message.tokens_artifact_id);
    let mut at = field.at("training");
    let training = at.required(message.training);
    TrainSpec {
        checkpoint,
        tokens,
        training: training_spec(&mut at, training),
        data_fraction: message.data_fraction.unwrap_or(defaults::data_fraction()),
        seed: message.seed,
        expect_inherited: message.expect_inherited,
    }
}

pub(super) fn tokenize_spec(field: &mut Field<'_>, message: v1::TokenizeSpec) -> TokenizeSpec {
    let mut at = field.at("sources");
    let sources = message.sources.iter().enumerate().map(|(i, text)| at.index(i).location(text)).collect();
    let tokenizer = match message.tokenizer {
        Some(v1::tokenize_spec::Tokenizer::Train(train)) => TokenizerSource::Train { vocab_size: train.vocab_size },
        Some(v1::tokenize_spec::Tokenizer::From(text)) => TokenizerSource::From(field.at("from").location(&text)),
        None => {
            field.at("tokenizer").bad("give train or from");
            TokenizerSource::From(Location::Artifact(ArtifactId(Uuid::nil())))
        }
    };
    TokenizeSpec {
        sources,
        tokenizer,
        validation_fraction: message.validation_fraction.unwrap_or(defaults::validation_fraction()),
        text_column: message.text_column,
        max_bad_rows: message.max_bad_rows,
    }
}

pub(super) fn trained(field: &mut Field<'_>, message: v1::Trained) -> Trained {
    Trained {
        checkpoint: field.at("checkpoint_artifact_id").id(&message.checkpoint_artifact_id),
        steps: message.steps,
        tokens_seen: message.tokens_seen,
        epochs: message.epochs,
        first_loss_nats: message.first_loss_nats,
        last_loss_nats: message.last_loss_nats,
        wall_s: message.wall_s,
    }
}

pub(super) fn tokenized(field: &mut Field<'_>, message: v1::Tokenized) -> Tokenized {
    Tokenized {
        tokens: field.at("tokens_artifact_id").id(&message.tokens_artifact_id),
        train_tokens: message.train_tokens,
        validation_tokens: message.validation_tokens,
        vocab_size: message.vocab_size,
        documents: message.documents,
        text_bytes: message.text_bytes,
        corpus: message.corpus.map(corpus_facts),
    }
}

/// Returns the facts about a corpus in a message.
pub fn corpus_facts(message: v1::CorpusFacts) -> CorpusFacts {
    let of_kind = |v1::FilesOfKind { kind, files, names }| FilesOfKind { kind, files, names };
    let left_out = |v1::FilesLeftOut { reason, files, names }| FilesLeftOut { reason, files, names };
    CorpusFacts {
        files: message.files.into_iter().map(of_kind).collect(),
        left_out: message.left_out.into_iter().map(left_out).collect(),
        rows_without_text: message.rows_without_text,
        bad_rows: message.bad_rows,
        first_bad_row: message.first_bad_row,
        forced_cuts: message.forced_cuts,
    }
}

impl From<&CorpusFacts> for v1::CorpusFacts {
    fn from(facts: &CorpusFacts) -> Self {
        let of_kind = |FilesOfKind { kind, files, names }| v1::FilesOfKind { kind, files, names };
        let left_out = |FilesLeftOut { reason, files, names }| v1::FilesLeftOut { reason, files, names };
        Self {
            files: facts.files.iter().cloned().map(of_kind).collect(),
            left_out: facts.left_out.iter().cloned().map(left_out).collect(),
            rows_without_text: facts.rows_without_text,
            bad_rows: facts.bad_rows,
            first_bad_row: facts.first_bad_row.clone(),
            forced_cuts: facts.forced_cuts,
        }
    }
}

impl From<&TrainingSpec> for v1::TrainingSpec {
    fn from(spec: &TrainingSpec) -> Self {
        Self {
            block_size: spec.block_size,
            micro_batch: spec.micro_batch,
            gradient_accumulation: Some(spec.gradient_accumulation),
            steps: spec.steps,
            epochs: spec.epochs,
            lr_max: spec.lr_max,
            lr_min: spec.lr_min,
            warmup_steps: spec.warmup_steps,
            schedule: v1::Schedule::from(spec.schedule).into(),
            weight_decay: Some(spec.weight_decay),
            decay: v1::DecayOn::from(spec.decay).into(),
            beta1: Some(spec.beta1),
            beta2: Some(spec.beta2),
            adam_eps: Some(spec.adam_eps),
            clip_norm: Some(spec.clip_norm),
            log_every_steps: Some(spec.log_every_steps),
            evaluate_every_steps: spec.evaluate_every_steps,
            evaluate_sequences: Some(spec.evaluate_sequences),
            checkpoint_every_steps: Some(spec.checkpoint_every_steps),
            precision: v1::Precision::from(spec.precision).into(),
            sampling: v1::Sampling::from(spec.sampling).into(),
            source_weights: spec.source_weights.clone(),
            document_mask: spec.document_mask,
            keep_newest: Some(spec.keep_newest),
            keep_best: spec.keep_best,
            activation_checkpointing: spec.activation_checkpointing,
        }
    }
}

impl From<&TrainSpec> for v1::TrainSpec {
    fn from(spec: &TrainSpec) -> Self {
        Self {
            checkpoint: spec.checkpoint.to_string(),
            tokens_artifact_id: spec.tokens.to_string(),
            training: Some((&spec.training).into()),
            data_fraction: Some(spec.data_fraction),
            seed: spec.seed,
            expect_inherited: spec.expect_inherited,
        }
    }
}

impl From<&TokenizeSpec> for v1::TokenizeSpec {
    fn from(spec: &TokenizeSpec) -> Self {
        let tokenizer = match &spec.tokenizer {
            TokenizerSource::Train { vocab_size } => {
                v1::tokenize_spec::Tokenizer::Train(v1::TrainTokenizer { vocab_size: *vocab_size })
            }
            TokenizerSource::From(location) => v1::tokenize_spec::Tokenizer::From(location.to_string()),
        };
        Self {
            sources: spec.sources.iter().map(Location::to_string).collect(),
            tokenizer: Some(tokenizer),
            validation_fraction: Some(spec.validation_fraction),
            text_column: spec.text_column.clone(),
            max_bad_rows: spec.max_bad_rows,
        }
    }
}

impl From<&Trained> for v1::Trained {
    fn from(trained: &Trained) -> Self {
        Self {
            checkpoint_artifact_id: trained.checkpoint.to_string(),
            steps: trained.steps,
            tokens_seen: trained.tokens_seen,
            epochs: trained.epochs,
            first_loss_nats: trained.first_loss_nats,
            last_loss_nats: trained.last_loss_nats,
            wall_s: trained.wall_s,
        }
    }
}

impl From<&Tokenized> for v1::Tokenized {
    fn from(tokenized: &Tokenized) -> Self {
        Self {
            tokens_artifact_id: tokenized.tokens.to_string(),
            train_tokens: tokenized.train_tokens,
            validation_tokens: tokenized.validation_tokens,
            vocab_size: tokenized.vocab_size,
            documents: tokenized.documents,
            text_bytes: tokenized.text_bytes,
            corpus: tokenized.corpus.as_ref().map(Into::into),
        }
    }
}
