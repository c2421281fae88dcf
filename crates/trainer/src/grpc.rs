//! `TrainingService`: estimates the cost of a training on the machine that serves the call.

use std::time::Duration;

use inheritune_api::v1::training_service_server::{TrainingService, TrainingServiceServer};
use inheritune_api::{convert, status, v1};
use inheritune_checkpoint::config_json;
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_domain::artifact::Location;
use inheritune_domain::spec::used_tokens;
use inheritune_lm::tokens::{TOKENS_FILE, TokenSetMeta};
use inheritune_lm::{Kind, device};
use inheritune_runtime::store_status::{RETRY_AFTER, store_status};
use inheritune_store::{Store, StoreError};
use tonic::{Request, Response, Status};

use crate::data_order::{DataOrder, StepShape};
use crate::estimate::{ASSUMED_UTILISATION, Estimate, estimate};

/// Full name of the service, for health checks and reflection.
pub const SERVICE_NAME: &str = "inheritune.v1.TrainingService";
/// Maximum size of the `config.json` and `tokens.json` that are read.
const MAX_JSON_BYTES: u64 = 1 << 20;
/// Maximum duration of a call.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Returns the service, ready to be added to a server.
pub fn service(store: Store) -> TrainingServiceServer<Training> {
    TrainingServiceServer::new(training(store))
}

/// Returns the implementation of the service.
pub fn training(store: Store) -> Training {
    Training { store }
}

/// The implementation of `TrainingService`.
pub struct Training {
    store: Store,
}

#[tonic::async_trait]
impl TrainingService for Training {
    async fn estimate(&self, request: Request<v1::EstimateRequest>) -> Result<Response<v1::EstimateResponse>, Status> {
        let asked = convert::training::Estimate::try_from(request.into_inner())
            .map_err(|violations| status::invalid_argument(&violations))?;
        match tokio::time::timeout(CALL_LIMIT, self.answer(&asked)).await {
            Ok(answer) => answer.map(Response::new),
            Err(_) => {
                let problem = format!("no answer within {} s", CALL_LIMIT.as_secs());
                Err(status::unavailable(&problem, RETRY_AFTER))
            }
        }
    }
}

impl Training {
    async fn answer(&self, asked: &convert::training::Estimate) -> Result<v1::EstimateResponse, Status> {
        use convert::training::{EstimateModel, EstimateTokens};
        let config = match &asked.model {
            EstimateModel::Checkpoint(location) => self.checkpoint_config(location).await?,
            EstimateModel::Fresh { architecture, vocab_size } => architecture.config(*vocab_size),
        };
        let train_tokens = match &asked.tokens {
            EstimateTokens::Artifact(id) => self.train_tokens(&Location::Artifact(*id)).await?,
            EstimateTokens::Count(tokens) => *tokens,
        };
        let training = &asked.training;
        let used = used_tokens(train_tokens, asked.data_fraction);
        let shape = StepShape::of(training);
        let order = DataOrder::new(used, shape, training.sampling, 0)
            .map_err(|e| status::unusable("tokens", &e.to_string()))?;
        let fits = training.check_tokens(used);
        fits.map_err(|violations| status::invalid_argument(&violations.under("training")))?;
        let peak_flops = measured_peak().await?;
        let found = estimate(&config, training, used, peak_flops);
        let mut notes = vec![format!(
            "time: 6 N D and attention at {:.0} % of {:.0} GFLOP/s, the matmul peak measured on the machine of this service",
            ASSUMED_UTILISATION * 100.0,
            peak_flops / 1e9
        )];
        if training.block_size > config.max_positions {
            notes
                .push(format!("block_size exceeds the model's {} positions: training will fail", config.max_positions));
        }
        Ok(response(&found, order.epochs(found.steps), (training.tokens_per_step(), notes)))
    }

    async fn checkpoint_config(&self, location: &Location) -> Result<DecoderConfig, Status> {
        let json = self.read(location, "config.json").await.map_err(|e| store_status(&e, "checkpoint"))?;
        let read = config_json::parse(&json);
        let config = read.and_then(|read| DecoderConfig::from_hf(&read.json).map_err(|e| e.to_string()));
        config.map_err(|problem| status::unusable("checkpoint", &format!("{location}/config.json: {problem}")))
    }

    async fn train_tokens(&self, location: &Location) -> Result<u64, Status> {
        let json = self.read(location, TOKENS_FILE).await.map_err(|e| store_status(&e, "tokens_artifact_id"))?;
        let meta: TokenSetMeta = serde_json::from_slice(&json)
            .map_err(|e| status::unusable("tokens_artifact_id", &format!("{location}/{TOKENS_FILE}: {e}")))?;
        Ok(meta.train_tokens)
    }

    async fn read(&self, location: &Location, name: &str) -> Result<bytes::Bytes, StoreError> {
        Ok(self.store.open(location).await?.read(name, MAX_JSON_BYTES).await?)
    }
}

fn response(found: &Estimate, epochs: f64, (tokens_per_step, notes): (u64, Vec<String>)) -> v1::EstimateResponse {
    v1::EstimateResponse {
        steps: found.steps,
        tokens_per_step,
        tokens: found.tokens,
        epochs,
        parameters: found.parameters,
        memory_bytes: found.state_bytes + found.activation_bytes,
        state_bytes: found.state_bytes,
        activation_bytes: found.activation_bytes,
        flops: found.flops,
        seconds: found.seconds,
        tokens_per_second: found.tokens as f64 / found.seconds.max(f64::MIN_POSITIVE),
        notes,
    }
}

/// Measures the peak fp32 matmul speed of this machine's device in floating-point operations per
/// second.
async fn measured_peak() -> Result<f64, Status> {
    let measure = || device::default_device().and_then(|device| device::matmul_peak(device, Kind::Float));
    let measured = tokio::task::spawn_blocking(measure);
    let measured = measured.await.map_err(|error| status::internal(&error))?;
    measured.map_err(|error| status::internal(&error))
}
