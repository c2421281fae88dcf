//! Hostile callers over real sockets: silent, slow and too many connections, unknown methods, wrong
//! tokens.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_runtime::listen::{Gate, ListenLimits, raise_descriptor_limit};
use inheritune_runtime::operations::serve_operations;
use inheritune_runtime::security::{Security, SecurityConfig};
use inheritune_runtime::serve::{GrpcServices, bind, serve};
use inheritune_runtime::telemetry::{self, TelemetryConfig};
use inheritune_store::{Store, StoreConfig};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::codegen::{Service as _, http};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Much longer than any of these tests take: only a hanging test reaches it.
const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "inheritune.v1.RunService";
/// A method of it that responds after [`SLOW_FOR`].
const SLOW: &str = "/inheritune.v1.RunService/GetRun";
const SLOW_FOR: Duration = Duration::from_secs(2);

/// A server of one service with one slow method.
struct Server {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(limits: ListenLimits, security: Security) -> Server {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut routes = Routes::default();
    let slow = axum::routing::post(async || {
        tokio::time::sleep(SLOW_FOR).await;
        ([("grpc-status", "0"), ("content-type", "application/grpc")], "")
    });
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.route(SLOW, slow);
    let services = GrpcServices { routes, names: vec![SERVICE] };
    let stop = CancellationToken::new();
    tokio::spawn(serve(Gate::new(listener, "grpc", limits), services, security, stop.clone()));
    Server { address, stop }
}

fn token_of(dir: &Path, token: &str) -> Security {
    let file = dir.join("token");
    std::fs::write(&file, token).unwrap();
    SecurityConfig { bearer_token_file: Some(file), ..SecurityConfig::default() }.load().unwrap()
}

async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn is_serving(address: SocketAddr) -> bool {
    let check = async {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await?;
        let request = HealthCheckRequest { service: String::new() };
        Ok::<_, Box<dyn std::error::Error>>(HealthClient::new(channel).check(request).await?)
    };
    tokio::time::timeout(Duration::from_secs(10), check).await.is_ok_and(|checked| checked.is_ok())
}

/// Calls a path and returns the status code and message.
async fn call(channel: &mut Channel, path: &str, authorization: Option<&str>) -> Result<(String, String), String> {
    std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|e| e.to_string())?;
    let request = http::Request::post(format!("http://server{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = authorization.iter().fold(request, |request, value| request.header("authorization", *value));
    let reply = channel.call(request.body(tonic::body::Body::empty()).unwrap()).await.map_err(|e| e.to_string())?;
    let header = |name: &str| reply.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    Ok((header("grpc-status"), header("grpc-message")))
}

/// Returns whether the other side closes the connection within `limit`.
fn is_closed_within(mut stream: &TcpStream, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let mut bytes = [0; 4096];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn database(dir: &Path) -> (LocalPostgres, Store) {
    let postgres = LocalPostgres::start(&dir.join("postgres"), None).await.unwrap();
    let store = connect(postgres.url()).await;
    (postgres, store)
}

async fn connect(url: &str) -> Store {
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    Store::connect(&StoreConfig { database_url: url.to_owned(), max_connections: 4, objects }).await.unwrap()
}

/// Runs in a separate process that the next test starts with few descriptors.
#[tokio::test]
#[ignore = "is a part of s4_silent_sockets_keep_nobody_out"]
async fn a_server_with_few_descriptors() {
    let Ok(url) = std::env::var("LISTEN_TEST_DATABASE") else { return };
    let limits = ListenLimits { first_call_ms: 4_000, ..ListenLimits::default() };
    let descriptors = raise_descriptor_limit();
    let grpc = start(limits, Security::default()).await;
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let operations = listener.local_addr().unwrap();
    tokio::spawn(serve_operations(listener, connect(&url).await, CancellationToken::new()));
    println!("listening {descriptors} {} {operations}", grpc.address);
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_silent_sockets_keep_nobody_out() {
    assert!(raise_descriptor_limit() > 3_000, "this test opens 2,200 sockets");
    let dir = tempfile::tempdir().unwrap();
    let (postgres, _store) = database(dir.path()).await;
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 1024 && exec \"$0\" --exact a_server_with_few_descriptors --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env("LISTEN_TEST_DATABASE", postgres.url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The test harness prints something before it.
    let line = lines.find_map(|line| line.split_once("listening ").map(|(_, rest)| rest.to_owned())).unwrap();
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("1024"));
    let [grpc, operations] = [(); 2].map(|()| words.next().unwrap().parse::<SocketAddr>().unwrap());

    for address in [grpc, operations] {
        let opened = Instant::now();
        let silent: Vec<TcpStream> = (0..1_100).map(|_| TcpStream::connect(address).unwrap()).collect();
        for _ in 0..3 {
            assert!(is_serving(grpc).await, "gRPC is gone");
            assert!(get(operations, "/readyz").contains("200 OK"), "/readyz is gone");
        }
        // All of them are closed, even the last one.
        assert!(is_closed_within(silent.last().unwrap(), Duration::from_secs(20)));
        eprintln!(
            "1,100 silent sockets at {address}: the last was closed after {:.1} s",
            opened.elapsed().as_secs_f64()
        );
    }
    // Connections with one complete call, then silence: closed to make room for later ones.
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut one = channel(grpc).await;
        call(&mut one, "/grpc.health.v1.Health/Check", None).await.unwrap();
        idle.push(one);
    }
    assert!(is_serving(grpc).await);
    child.kill().unwrap();
    child.wait().unwrap();
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_slow_handshake_is_closed_and_so_is_a_slow_first_call() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("server.pem"), dir.path().join("server.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = SecurityConfig { certificate_file: Some(certificate), key_file: Some(key), ..SecurityConfig::default() };
    let limits = ListenLimits { first_call_ms: 1_000, ..ListenLimits::default() };
    let hello: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 7, 7, 7, 7, 7, 7, 7];
    for (security, starts_with) in
        [(tls.load().unwrap(), hello), (Security::default(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    {
        let server = start(limits.clone(), security).await;
        let stream = TcpStream::connect(server.address).unwrap();
        let (began, mut writer) = (Instant::now(), stream.try_clone().unwrap());
        let slowly = starts_with.to_owned();
        std::thread::spawn(move || {
            // Sending single bytes does not keep a connection open.
            for byte in slowly.iter().cycle().take(200) {
                if writer.write_all(std::slice::from_ref(byte)).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let closed = tokio::task::spawn_blocking(move || is_closed_within(&stream, Duration::from_secs(15)));
        assert!(closed.await.unwrap());
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_idle_connections_are_closed_and_busy_ones_are_not() {
    let limits = ListenLimits { first_call_ms: 5_000, idle_ms: 700, ..ListenLimits::default() };
    let server = start(limits, Security::default()).await;
    // A complete HTTP/2 connection without a call gets the time limit of a first call.
    let idle = channel(server.address).await;
    let mut watched = HealthClient::new(idle.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watched.next().await.unwrap().is_ok());
    // A running stream counts as a call.
    let ended = tokio::time::timeout(Duration::from_secs(3), watched.next()).await;
    assert!(ended.is_err(), "the connection of a running call was closed: {ended:?}");
    drop(watched);
    // So does a slow call.
    let mut busy = channel(server.address).await;
    assert_eq!(call(&mut busy, SLOW, None).await.unwrap().0, "0");
    // Between calls, a client reconnects automatically.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(call(&mut busy, "/grpc.health.v1.Health/Check", None).await.map(|_| ()), Ok(()));

    // The server closes an idle connection.
    let mut raw = TcpStream::connect(server.address).unwrap();
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let closed = tokio::task::spawn_blocking(move || is_closed_within(&raw, Duration::from_secs(15)));
    assert!(closed.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_full_listener_closes_who_waits_and_refuses_when_all_are_busy() {
    let limits = ListenLimits { max_connections: 3, ..ListenLimits::default() };
    let per_peer = ListenLimits { max_connections_per_peer: 3, ..ListenLimits::default() };
    for limits in [limits, per_peer] {
        let server = start(limits, Security::default()).await;
        let mut busy = Vec::new();
        for _ in 0..3 {
            let mut one = channel(server.address).await;
            busy.push(tokio::spawn(async move { call(&mut one, SLOW, None).await }));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let refused = TcpStream::connect(server.address).unwrap();
        let refused = tokio::task::spawn_blocking(move || is_closed_within(&refused, Duration::from_millis(1_200)));
        assert!(refused.await.unwrap(), "a fourth connection was accepted while three were busy");
        for one in busy {
            assert_eq!(one.await.unwrap().unwrap().0, "0", "a busy connection was closed");
        }
        // They are idle now, so new connections replace them.
        for _ in 0..5 {
            assert!(is_serving(server.address).await);
        }
    }
}

/// Forwards one connection to `server`, and sends on the channel how long it took the server to
/// close it.
fn relay(server: SocketAddr) -> (SocketAddr, std::sync::mpsc::Receiver<Duration>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (closed, is_closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (near, far) = (listener.accept().unwrap().0, TcpStream::connect(server).unwrap());
        let (mut near_out, mut far_in) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut near_out, &mut far_in));
        let began = Instant::now();
        let (mut far, mut near) = (far, near);
        let _ = std::io::copy(&mut far, &mut near);
        let _ = near.shutdown(std::net::Shutdown::Both);
        closed.send(began.elapsed()).unwrap();
    });
    (address, is_closed)
}

/// A call without a token does not keep its connection open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_refused_calls_keep_no_connection_open() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenLimits { first_call_ms: 1_000, ..ListenLimits::default() };
    let server = start(limits, token_of(dir.path(), "right")).await;
    let (address, is_closed) = relay(server.address);
    let mut one = channel(address).await;
    let began = Instant::now();
    while let Ok((code, _)) = call(&mut one, SLOW, None).await {
        assert_eq!(code, "16");
        assert!(began.elapsed() < LIMIT, "calls without a token keep the connection open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_closed.recv().unwrap() < Duration::from_secs(20));
    // A call with a token does.
    let (address, is_closed) = relay(server.address);
    let mut one = channel(address).await;
    for _ in 0..30 {
        call(&mut one, "/grpc.health.v1.Health/Check", Some("Bearer right")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_closed.try_recv().is_err(), "a connection in use was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u4_a_wrong_token_says_something_else_than_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ListenLimits::default(), token_of(dir.path(), "right")).await;
    let mut one = channel(server.address).await;
    let (none, message) = call(&mut one, SLOW, None).await.unwrap();
    assert!(none == "16" && message.contains("requires"), "{none} {message}");
    for wrong in ["Bearer wrong", "Bearer right2", "Basic right", "right", "Bearer ", ""] {
        let (code, said) = call(&mut one, SLOW, Some(wrong)).await.unwrap();
        assert!(code == "16" && said.contains("does%20not%20match") && said != message, "{wrong}: {code} {said}");
        assert!(!said.contains("right"), "{said}");
    }
    assert_eq!(call(&mut one, SLOW, Some("Bearer right")).await.unwrap().0, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_made_up_methods_make_no_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let (postgres, store) = database(dir.path()).await;
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let operations = listener.local_addr().unwrap();
    let config =
        TelemetryConfig { metrics_listen: Some(operations), filter: "error".to_owned(), ..TelemetryConfig::default() };
    let _telemetry = telemetry::init("test", &config).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve_operations(listener, store, stop.clone()));
    let server = start(ListenLimits::default(), token_of(dir.path(), "right")).await;
    let mut one = channel(server.address).await;
    call(&mut one, SLOW, Some("Bearer right")).await.unwrap();
    call(&mut one, "/grpc.health.v1.Health/Check", None).await.unwrap();
    let page = || async { tokio::task::spawn_blocking(move || get(operations, "/metrics")).await.unwrap() };
    let before = page().await;
    assert!(before.contains("method=\"inheritune.v1.RunService/GetRun\""), "{before}");
    for n in 0..1_000 {
        for path in [
            format!("/inheritune.v1.RunService/Madeup{n}"),
            format!("/grpc.health.v1.Health/Madeup{n}"),
            format!("/grpc.reflection.v1.ServerReflection/Madeup{n}"),
            format!("/grpc.reflection.v1alpha.ServerReflection/Madeup{n}/x"),
            format!("/Madeup{n}.Service/GetRun"),
            format!("/inheritune.v1.RunService/GetRun/Madeup{n}"),
            format!("//inheritune.v1.JobService/Madeup{n}"),
            format!("/inheritune.v1.RunService/GetRun?Madeup{n}"),
        ] {
            // Before and after authentication.
            let token = if n % 2 == 0 { None } else { Some("Bearer right") };
            if n > 8 && path.contains('?') && token.is_some() {
                // It is the slow method.
                continue;
            }
            call(&mut one, &path, token).await.unwrap();
        }
    }
    let after = page().await;
    assert!(!after.contains("Madeup"), "{}", after.lines().find(|line| line.contains("Madeup")).unwrap());
    // Unknown methods share a handful of series, one per status code, however many there are.
    assert!(after.len() < before.len() + 4_096, "{} bytes became {}", before.len(), after.len());
    assert!(after.contains("method=\"unknown\""), "{after}");
    stop.cancel();
    postgres.stop().await.unwrap();
}
