//! The gRPC API `inheritune.v1`: generated code, conversions to and from the domain, statuses, a
//! client.
//!
//! Owns: the wire format (`proto/inheritune/v1/`, additive only), [`convert`] (which reports every
//! bad field of a request at once), [`status`] (the only place that creates a [`tonic::Status`])
//! and [`client`] (which every program uses to connect).
//!
//! Entry point: [`v1`] for the messages, `v1::run_service_client::RunServiceClient` and the other
//! clients for calls.
//!
//! Must never: know about Postgres, the object store or libtorch; make decisions.

pub mod client;
pub mod convert;
pub mod status;

/// Messages, clients and servers of package `inheritune.v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("inheritune.v1");
}

/// The encoded descriptors of every file of the API, with comments and imports, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inheritune.binpb"));

/// Returns the methods in an encoded descriptor set, each with the full name of its service:
/// (`inheritune.v1.RunService`, `GetRun`).
#[must_use]
pub fn methods(descriptor_set: &[u8]) -> Vec<(String, String)> {
    use prost::Message as _;
    // The compiled-in descriptors always decode; an undecodable set has no methods.
    let files = prost_types::FileDescriptorSet::decode(descriptor_set).unwrap_or_default().file;
    let mut methods = Vec::new();
    for file in files {
        for service in &file.service {
            let service_name = format!("{}.{}", file.package(), service.name());
            methods.extend(service.method.iter().map(|method| (service_name.clone(), method.name().to_owned())));
        }
    }
    methods
}
