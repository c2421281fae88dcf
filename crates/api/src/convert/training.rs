//! Tokenizing and training.

use inheritune_domain::artifact::Location;
use inheritune_domain::checkpoint::decoder_config::Architecture;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{
    DecayOn, Precision, Sampling, Schedule, TokenizeSpec, Tokenized, TokenizerSource, TrainSpec, Trained, TrainingSpec,
    limits,
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
    /// How it would be trained.
    pub training: TrainingSpec,
    /// Share of the training tokens that is used.
    pub data_fraction: f64,
}

/// The model of an estimate.
#[derive(Debug, Clone, PartialEq)]
pub enum EstimateModel {
    /// One that is there.
    Checkpoint(Location),
    /// One that is not there yet.
    Fresh {
        /// Its shape.
        architecture: Architecture,
        /// Rows of its embedding.
        vocab_size: u32,
    },
}

/// The tokens of an estimate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EstimateTokens {
    /// A token set.
    Artifact(ArtifactId),
    /// So many training tokens.
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
        let data_fraction = request.data_fraction.unwrap_or(1.0);
        if !limits::DATA_FRACTION.holds(data_fraction) {
            field.at("data_fraction").bad(limits::DATA_FRACTION.description());
        }
        let mut at = field.at("training");
        let message = at.required(request.training);
        let training = training_spec(&mut at, message);
        notes.domain(training.validate(), |path| format!("training.{path}"));
        if let EstimateModel::Fresh { architecture, vocab_size } = &model {
            notes.domain(architecture.validate_with_vocabulary(*vocab_size), |path| format!("fresh.{path}"));
        }
        notes.into_result(Self { model, tokens, training, data_fraction })
    }
}

pub(super) fn training_spec(field: &mut Field<'_>, message: v1::TrainingSpec) -> TrainingSpec {
    TrainingSpec {
        block_size: message.block_size,
        micro_batch: message.micro_batch,
        gradient_accumulation: message.gradient_accumulation.unwrap_or(1),
        precision: precision(&mut field.at("precision"), message.precision),
        activation_checkpointing: message.activation_checkpointing,
        sampling: sampling(&mut field.at("sampling"), message.sampling),
        source_weights: message.source_weights,
        document_mask: message.document_mask,
        steps: message.steps,
        epochs: message.epochs,
        lr_max: message.lr_max,
        lr_min: message.lr_min,
        warmup_steps: message.warmup_steps,
        schedule: schedule(&mut field.at("schedule"), message.schedule),
        weight_decay: message.weight_decay.unwrap_or(0.1),
        decay: decay(&mut field.at("decay"), message.decay),
        beta1: message.beta1.unwrap_or(0.9),
        beta2: message.beta2.unwrap_or(0.95),
        adam_eps: message.adam_eps.unwrap_or(1e-8),
        clip_norm: message.clip_norm.unwrap_or(1.0),
        log_every_steps: message.log_every_steps.unwrap_or(10),
        evaluate_every_steps: message.evaluate_every_steps,
        evaluate_sequences: message.evaluate_sequences.unwrap_or(64),
        checkpoint_every_steps: message.checkpoint_every_steps.unwrap_or(500),
        keep_newest: message.keep_newest.unwrap_or(2),
        keep_best: message.keep_best,
    }
}

fn precision(field: &mut Field<'_>, value: i32) -> Precision {
    match field.known(value) {
        None | Some(v1::Precision::Unspecified | v1::Precision::Fp32) => Precision::Fp32,
        Some(v1::Precision::Bf16Mixed) => Precision::Bf16Mixed,
        Some(v1::Precision::Bf16) => Precision::Bf16,
    }
}

fn sampling(field: &mut Field<'_>, value: i32) -> Sampling {
    match field.known(value) {
        None | Some(v1::Sampling::Unspecified | v1::Sampling::Permutation) => Sampling::Permutation,
        Some(v1::Sampling::RandomOffsets) => Sampling::RandomOffsets,
    }
}

fn schedule(field: &mut Field<'_>, value: i32) -> Schedule {
    match field.known(value) {
        None | Some(v1::Schedule::Unspecified | v1::Schedule::Cosine) => Schedule::Cosine,
        Some(v1::Schedule::Constant) => Schedule::Constant,
    }
}

fn decay(field: &mut Field<'_>, value: i32) -> DecayOn {
    match field.known(value) {
        None | Some(v1::DecayOn::Unspecified | v1::DecayOn::Matrices) => DecayOn::Matrices,
        Some(v1::DecayOn::All) => DecayOn::All,
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
        data_fraction: message.data_fraction.unwrap_or(1.0),
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
    TokenizeSpec { sources, tokenizer, validation_fraction: message.validation_fraction.unwrap_or(0.05) }
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
    }
}

impl From<&TrainingSpec> for v1::TrainingSpec {
    fn from(spec: &TrainingSpec) -> Self {
        let schedule = match spec.schedule {
            Schedule::Cosine => v1::Schedule::Cosine,
            Schedule::Constant => v1::Schedule::Constant,
        };
        let decay = match spec.decay {
            DecayOn::Matrices => v1::DecayOn::Matrices,
            DecayOn::All => v1::DecayOn::All,
        };
        let precision = match spec.precision {
            Precision::Fp32 => v1::Precision::Fp32,
            Precision::Bf16Mixed => v1::Precision::Bf16Mixed,
            Precision::Bf16 => v1::Precision::Bf16,
        };
        let sampling = match spec.sampling {
            Sampling::Permutation => v1::Sampling::Permutation,
            Sampling::RandomOffsets => v1::Sampling::RandomOffsets,
        };
        Self {
            block_size: spec.block_size,
            micro_batch: spec.micro_batch,
            gradient_accumulation: Some(spec.gradient_accumulation),
            steps: spec.steps,
            epochs: spec.epochs,
            lr_max: spec.lr_max,
            lr_min: spec.lr_min,
            warmup_steps: spec.warmup_steps,
            schedule: schedule.into(),
            weight_decay: Some(spec.weight_decay),
            decay: decay.into(),
            beta1: Some(spec.beta1),
            beta2: Some(spec.beta2),
            adam_eps: Some(spec.adam_eps),
            clip_norm: Some(spec.clip_norm),
            log_every_steps: Some(spec.log_every_steps),
            evaluate_every_steps: spec.evaluate_every_steps,
            evaluate_sequences: Some(spec.evaluate_sequences),
            checkpoint_every_steps: Some(spec.checkpoint_every_steps),
            precision: precision.into(),
            sampling: sampling.into(),
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
        }
    }
}
