//! The server over a real socket: health, reflection, shutdown.

#![allow(clippy::unwrap_used)]

use inheritune_runtime::security::Security;
use inheritune_runtime::serve::{GrpcServices, bind, serve};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

const NAME: &str = "inheritune.v1.EvaluationService";

async fn health(channel: &Channel, service: &str) -> Result<i32, tonic::Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let reply = HealthClient::new(channel.clone()).check(request).await;
    reply.map(|reply| reply.into_inner().status).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_until_stopped() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = bind(address).await.unwrap_err().to_string();
    assert!(taken.starts_with(&format!("cannot listen on {address}: ")), "{taken}");

    let stop = CancellationToken::new();
    let services = GrpcServices { routes: Routes::default(), names: vec![NAME] };
    let server = tokio::spawn(serve(listener, services, Security::default(), stop.clone()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();

    let serving = ServingStatus::Serving as i32;
    assert_eq!(health(&channel, "").await, Ok(serving));
    assert_eq!(health(&channel, NAME).await, Ok(serving));
    assert_eq!(health(&channel, "inheritune.v1.RunService").await, Err(tonic::Code::NotFound));

    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut replies = v1::server_reflection_client::ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        replies.next().await.unwrap().unwrap().message_response
    else {
        panic!("another reply");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            NAME
        ]
    );

    let symbol = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            NAME.to_owned(),
        )),
    };
    let mut replies = v1alpha::server_reflection_client::ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([symbol]))
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(
        replies.next().await.unwrap().unwrap().message_response,
        Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
    drop(replies);

    stop.cancel();
    server.await.unwrap().unwrap();
    assert!(health(&channel, "").await.is_err());
}
