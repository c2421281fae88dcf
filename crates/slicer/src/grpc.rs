//! `SlicingService`: inspects checkpoints and plans slices, from `config.json` and headers alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use inheritune_api::v1::slicing_service_server::{SlicingService, SlicingServiceServer};
use inheritune_api::{convert, status, v1};
use inheritune_checkpoint::decoder_config::{BlockPart, DecoderConfig, TensorRole, TensorSpec};
use inheritune_checkpoint::left_out::{LeftOut, LeftOutKind};
use inheritune_checkpoint::slice_plan::{Origin, Placement, PlanError, Source, SourceTensor};
use inheritune_runtime::serve::GrpcServices;
use inheritune_runtime::store_status::{RETRY_AFTER, store_status};
use inheritune_store::Store;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::error::{BadCheckpoint, SlicerError};
use crate::layout;
use crate::plan::PlannedSlice;
use crate::record::described_origin;
use crate::source::Checkpoint;

/// The service's full name.
pub const SERVICE_NAME: &str = "inheritune.v1.SlicingService";
/// Calls that read headers concurrently. Each may hold a few headers of up to 16 MiB, or pickles of
/// up to 64 MiB.
const CALLS_AT_ONCE: usize = 4;
/// Time limit of one call, including the time it waits for its turn.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Maximum number of left-out items that are listed per reason.
const MAX_TOLD: usize = 100;

/// The gRPC services of this crate.
pub fn services(store: &Store) -> GrpcServices {
    let slicing = Slicing { store: store.clone(), turns: Arc::new(Semaphore::new(CALLS_AT_ONCE)) };
    GrpcServices { routes: tonic::service::Routes::new(SlicingServiceServer::new(slicing)), names: vec![SERVICE_NAME] }
}

struct Slicing {
    store: Store,
    turns: Arc<Semaphore>,
}

impl Slicing {
    /// Runs `work` once a slot is free, within the time limit.
    async fn in_turn<T>(&self, work: impl Future<Output = Result<T, SlicerError>>, field: &str) -> Result<T, Status> {
        let limited = tokio::time::timeout(CALL_LIMIT, async {
            let _turn = self.turns.acquire().await.map_err(|e| status::internal(&e))?;
            work.await.map_err(|e| slicer_status(&e, field))
        });
        match limited.await {
            Ok(result) => result,
            Err(_) => {
                let problem = format!("reading the headers took longer than {} s", CALL_LIMIT.as_secs());
                Err(status::unavailable(&problem, RETRY_AFTER))
            }
        }
    }
}

#[tonic::async_trait]
impl SlicingService for Slicing {
    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        let location = convert::slicing::inspected(request.get_ref()).map_err(|v| status::invalid_argument(&v))?;
        let checkpoint = self.in_turn(Checkpoint::open(&self.store, &location), "checkpoint").await?;
        Ok(Response::new(inspected(&checkpoint)))
    }

    async fn plan_slice(
        &self,
        request: Request<v1::PlanSliceRequest>,
    ) -> Result<Response<v1::PlanSliceResponse>, Status> {
        let spec = convert::slicing::planned_slice(request.get_ref()).map_err(|v| status::invalid_argument(&v))?;
        let planned = async {
            match PlannedSlice::new(&self.store, &spec).await {
                Ok(planned) => planned_response(&planned, spec.max_shard_size_bytes),
                // The only part of a plan that exists for a source with missing tensors.
                Err(SlicerError::Checkpoint {
                    problem: BadCheckpoint::Tensors(PlanError::MissingTensors { tensors, .. }),
                    ..
                }) => Ok(v1::PlanSliceResponse { missing: tensors, ..v1::PlanSliceResponse::default() }),
                Err(error) => Err(error),
            }
        };
        Ok(Response::new(self.in_turn(planned, "spec").await?))
    }
}

fn inspected(checkpoint: &Checkpoint) -> v1::InspectResponse {
    let config = checkpoint.config();
    let tensors: Vec<v1::TensorInfo> = config.tensors().into_iter().map(|spec| tensor_info(spec, checkpoint)).collect();
    v1::InspectResponse {
        config: Some(config.into()),
        config_json: checkpoint.config_json.to_string(),
        total_parameters: config.parameters(),
        embedding_parameters: outside_blocks(config),
        block_parameters: config.block_parameters(),
        size_bytes: tensors.iter().map(|tensor| tensor.size_bytes).sum(),
        left_out: left_out(&checkpoint.left_out()),
        tensors,
    }
}

fn tensor_info(spec: TensorSpec, checkpoint: &Checkpoint) -> v1::TensorInfo {
    let found = checkpoint.inventory.tensor(spec.tied_to.as_deref().unwrap_or(&spec.name));
    let stored = found.filter(|_| spec.tied_to.is_none());
    let (layer, role) = layer_and_role(spec.role);
    v1::TensorInfo {
        dtype: found.map(|tensor| tensor.dtype.to_string()).unwrap_or_default(),
        size_bytes: stored.map_or(0, SourceTensor::size_bytes),
        file: stored.map(|tensor| tensor.file.clone()).unwrap_or_default(),
        name: spec.name,
        shape: spec.shape,
        layer,
        role: role.to_owned(),
        tied_to: spec.tied_to.unwrap_or_default(),
    }
}

fn layer_and_role(role: TensorRole) -> (Option<u32>, &'static str) {
    match role {
        TensorRole::TokenEmbedding => (None, "token_embedding"),
        TensorRole::PositionEmbedding => (None, "position_embedding"),
        TensorRole::Block { layer, part: BlockPart::Attention } => (Some(layer), "attention"),
        TensorRole::Block { layer, part: BlockPart::Mlp } => (Some(layer), "mlp"),
        TensorRole::Block { layer, part: BlockPart::Norm } => (Some(layer), "norm"),
        TensorRole::FinalNorm => (None, "final_norm"),
        TensorRole::Head => (None, "head"),
    }
}

fn planned_response(planned: &PlannedSlice, max_shard_size_bytes: u64) -> Result<v1::PlanSliceResponse, SlicerError> {
    let (plan, config) = (&planned.plan, planned.plan.config());
    Ok(v1::PlanSliceResponse {
        tensors: plan.tensors().iter().map(planned_tensor).collect(),
        config: Some(config.into()),
        reference_layers: planned.reference_layers().0,
        layer_map: plan.layer_map().map(|map| map.sources().to_vec()).unwrap_or_default(),
        total_parameters: config.parameters(),
        embedding_parameters: outside_blocks(config),
        block_parameters: config.block_parameters(),
        copied_bytes: plan.copied_bytes(),
        fresh_bytes: plan.size_bytes() - plan.copied_bytes(),
        missing: Vec::new(),
        weights_files: layout::count(plan, max_shard_size_bytes)?,
        left_out: left_out(&planned.left_out),
    })
}

/// Limits the items per reason: lists the first ones, then says how many more there are.
fn left_out(all: &[LeftOut]) -> Vec<v1::LeftOut> {
    let mut counts: BTreeMap<(LeftOutKind, &str), usize> = BTreeMap::new();
    let mut told = Vec::new();
    let one =
        |name: String, of: &LeftOut| v1::LeftOut { name, reason: of.why.clone(), kind: of.kind.as_str().to_owned() };
    for left in all {
        let count = counts.entry((left.kind, &left.why)).or_default();
        *count += 1;
        if *count <= MAX_TOLD {
            told.push(one(left.name.clone(), left));
        }
    }
    for left in all {
        if let Some(count) = counts.remove(&(left.kind, left.why.as_str())).filter(|count| *count > MAX_TOLD) {
            told.push(one(format!("… and {} more", count - MAX_TOLD), left));
        }
    }
    told
}

fn planned_tensor(placement: &Placement) -> v1::PlannedTensor {
    let origin = match &placement.origin {
        Origin::Copied { source: Source::Reference, .. } => v1::TensorOrigin::Copied,
        Origin::Copied { source: Source::Previous, .. } => v1::TensorOrigin::CopiedFromPrevious,
        Origin::Tied { .. } => v1::TensorOrigin::Tied,
        Origin::Fresh { .. } => v1::TensorOrigin::Fresh,
    };
    let (layer, role) = layer_and_role(placement.target.role);
    v1::PlannedTensor {
        name: placement.target.name.clone(),
        origin: origin.into(),
        from: described_origin(&placement.origin),
        dtype: placement.dtype.to_string(),
        shape: placement.target.shape.clone(),
        size_bytes: placement.size_bytes(),
        layer,
        role: role.to_owned(),
    }
}

fn outside_blocks(config: &DecoderConfig) -> u64 {
    config.parameters() - config.block_parameters()
}

fn slicer_status(error: &SlicerError, field: &str) -> Status {
    match error {
        SlicerError::Store(error) => store_status(error, field),
        SlicerError::Checkpoint { .. } | SlicerError::Plan(_) | SlicerError::Target(_) => {
            status::unusable(field, &error.to_string())
        }
        SlicerError::TooManyFiles { .. } => {
            status::unusable(&format!("{field}.max_shard_size_bytes"), &error.to_string())
        }
        SlicerError::Stopped | SlicerError::Thread(_) => status::internal(error),
    }
}
