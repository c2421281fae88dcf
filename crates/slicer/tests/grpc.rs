//! `SlicingService` over a real connection, and the sample configuration.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Client, House, bare, gpt2_json, tensors, write_checkpoint};
use inheritune_api::v1::{self, TensorOrigin};
use inheritune_runtime::service::ServiceConfig;
use safetensors::Dtype;
use tonic::Code;

#[test]
fn the_sample_configuration_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/slicer.toml");
    let config: ServiceConfig = inheritune_runtime::config::load(path.as_ref()).unwrap();
    assert_eq!(config.worker.concurrency, 2);
}

#[tokio::test]
async fn checkpoints_are_inspected_and_slices_planned() {
    let house = House::build().await;
    let config = gpt2_json(4);
    let mut source = tensors(&config, Dtype::F16, 0, bare);
    write_checkpoint(&house.dir.path().join("reference"), &config, &source);
    source.truncate(20);
    write_checkpoint(&house.dir.path().join("incomplete"), &config, &source);

    house
        .serve(async |client| {
            inspect(&house, client).await;
            plan(&house, client).await;
            parts(&house, client).await;
        })
        .await;
    house.close().await;
}

async fn inspect(house: &House, client: &mut Client) {
    let checkpoint = house.location("reference").to_string();
    let reply = client.inspect(v1::InspectRequest { checkpoint }).await.unwrap().into_inner();
    assert_eq!(reply.config.unwrap().n_layers, 4);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&reply.config_json).unwrap(), gpt2_json(4));
    assert_eq!(reply.total_parameters, reply.embedding_parameters + reply.block_parameters);
    assert_eq!(reply.size_bytes, 2 * reply.total_parameters);
    assert_eq!(reply.tensors.len(), 2 + 4 * 12 + 2 + 1);
    let attention = reply.tensors.iter().find(|t| t.name == "transformer.h.3.attn.c_attn.weight").unwrap();
    assert_eq!((attention.layer, attention.role.as_str(), attention.dtype.as_str()), (Some(3), "attention", "F16"));
    assert_eq!((attention.shape.as_slice(), attention.size_bytes), ([8, 24].as_slice(), 384));
    let head = reply.tensors.last().unwrap();
    assert_eq!((head.role.as_str(), head.tied_to.as_str(), head.size_bytes), ("head", "transformer.wte.weight", 0));

    let mut refused = async |checkpoint: String| client.inspect(v1::InspectRequest { checkpoint }).await.unwrap_err();
    let error = refused("reference".to_owned()).await;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let error = refused(house.location("incomplete").to_string()).await;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("are missing"), "{error}");
    let error = refused(format!("artifact://{}", uuid::Uuid::new_v4())).await;
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

async fn plan(house: &House, client: &mut Client) {
    let request = |checkpoint: &str, layers: u32| {
        let reference = v1::CheckpointSource {
            checkpoint: house.location(checkpoint).to_string(),
            layers,
            inherit: v1::InheritSet::OfficialCode.into(),
            ..v1::CheckpointSource::default()
        };
        let source = Some(v1::slice_spec::Source::Reference(reference));
        v1::PlanSliceRequest { spec: Some(v1::SliceSpec { source, ..v1::SliceSpec::default() }) }
    };
    let reply = client.plan_slice(request("reference", 2)).await.unwrap().into_inner();
    assert_eq!((reply.reference_layers, reply.layer_map.as_slice()), (4, [0, 1].as_slice()));
    assert_eq!(reply.copied_bytes + reply.fresh_bytes, 2 * reply.total_parameters);
    assert!(reply.missing.is_empty());
    let origin = |name: &str| {
        let tensor = reply.tensors.iter().find(|t| t.name == name).unwrap();
        (tensor.origin(), tensor.from.clone())
    };
    assert_eq!(origin("transformer.wte.weight"), (TensorOrigin::Copied, "wte.weight".to_owned()));
    assert_eq!(origin("transformer.wpe.weight"), (TensorOrigin::Fresh, "normal(0, 0.02)".to_owned()));
    assert_eq!(origin("transformer.h.1.ln_1.bias"), (TensorOrigin::Copied, "h.1.ln_1.bias".to_owned()));
    assert_eq!(origin("lm_head.weight"), (TensorOrigin::Tied, "transformer.wte.weight".to_owned()));

    let reply = client.plan_slice(request("incomplete", 2)).await.unwrap().into_inner();
    assert_eq!(reply.missing.len(), 2 + 4 * 12 + 2 - 20);
    let error = client.plan_slice(request("reference", 5)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("the target asks for 5 layers but the reference has only 4"), "{error}");
    let error = client.plan_slice(v1::PlanSliceRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

/// Inherited parts instead of a preset, and a shard size that is too small.
async fn parts(house: &House, client: &mut Client) {
    let request = |inherit: v1::InheritSet, max_shard_size_bytes| {
        let reference = v1::CheckpointSource {
            checkpoint: house.location("reference").to_string(),
            layers: 2,
            inherit: inherit.into(),
            inherit_parts: [v1::InheritPart::Norms, v1::InheritPart::Attention].map(i32::from).to_vec(),
            ..v1::CheckpointSource::default()
        };
        let source = Some(v1::slice_spec::Source::Reference(reference));
        v1::PlanSliceRequest { spec: Some(v1::SliceSpec { source, max_shard_size_bytes, ..v1::SliceSpec::default() }) }
    };
    let reply = client.plan_slice(request(v1::InheritSet::Unspecified, None)).await.unwrap().into_inner();
    assert_eq!(reply.weights_files, 1);
    assert_eq!(reply.tensors.len(), 2 + 2 * 12 + 2 + 1);
    for tensor in &reply.tensors {
        let expected = match tensor.role.as_str() {
            "attention" | "norm" => TensorOrigin::Copied,
            "head" => TensorOrigin::Tied,
            _ => TensorOrigin::Fresh,
        };
        assert_eq!((tensor.origin(), tensor.layer.is_some()), (expected, tensor.name.contains(".h.")), "{tensor:?}");
    }
    let error = client.plan_slice(request(v1::InheritSet::All, Some(1))).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for field in ["spec.reference.inherit_parts: ", "spec.max_shard_size_bytes: must be at least 1048576"] {
        assert!(error.message().contains(field), "{error}");
    }
}
