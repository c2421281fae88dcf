//! An S3 server in this process that checks signatures and keeps each object as a file.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses only some of the helpers

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use inheritune_objects::StorageConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub const BUCKET: &str = "inheritune-test";
const ACCESS_KEY: &str = "AKIDINHERITUNETEST";
const SECRET_KEY: &str = "not-a-secret";

/// A server that runs until it is dropped.
pub struct S3Server {
    pub endpoint: String,
    root: TempDir,
    traffic: Arc<Traffic>,
    _connections: JoinSet<()>,
}

/// Counters of the server, and settings of its faults.
#[derive(Default)]
pub struct Traffic {
    /// Bytes of request and response bodies.
    pub passed_bytes: AtomicU64,
    /// Parts that the server copied itself.
    pub copied_parts: AtomicU64,
    /// Whether the server rejects copies of parts.
    pub refuses_copies: AtomicBool,
    /// Whether the server executes the first request of each kind, but resets the connection
    /// instead of responding.
    pub hangs_up: AtomicBool,
    hung_up_on: Mutex<BTreeSet<String>>,
}

impl Traffic {
    /// Counts a request. Returns `None` if it is rejected.
    fn note(&self, request: &Request<Incoming>) -> Option<()> {
        if request.headers().contains_key("x-amz-copy-source") {
            if self.refuses_copies.load(Ordering::Relaxed) {
                return None;
            }
            self.copied_parts.fetch_add(1, Ordering::Relaxed);
        }
        self.passed_bytes.fetch_add(length(request.headers()), Ordering::Relaxed);
        Some(())
    }

    /// Returns whether the response to this request is lost.
    fn loses_answer_to(&self, request: &Request<Incoming>) -> bool {
        let names = request.uri().query().unwrap_or_default().split('&').map(|pair| pair.split('=').next().unwrap());
        let kind = format!("{} {}", request.method(), names.collect::<Vec<_>>().join(" "));
        self.hangs_up.load(Ordering::Relaxed) && self.hung_up_on.lock().unwrap().insert(kind)
    }

    /// Returns the kinds of requests whose response was lost: method and names of query parameters.
    pub fn hung_up_on(&self) -> Vec<String> {
        self.hung_up_on.lock().unwrap().iter().cloned().collect()
    }
}

impl S3Server {
    pub async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        // The first server of a process uses the address in the environment.
        let address = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default().replace("http://", "");
        let listener = match TcpListener::bind(&address).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("127.0.0.1:0").await.unwrap(),
        };
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (traffic, mut connections) = (Arc::new(Traffic::default()), JoinSet::new());
        let seen = traffic.clone();
        connections.spawn(async move {
            let mut accepted = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                let (service, traffic) = (service.clone(), seen.clone());
                if traffic.hangs_up.load(Ordering::Relaxed) {
                    socket.set_zero_linger().unwrap();
                }
                accepted.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let (service, traffic) = (service.clone(), traffic.clone());
                        async move {
                            if traffic.note(&request).is_none() {
                                let refused = s3s::Body::from("<Error><Code>NotImplemented</Code></Error>".to_owned());
                                return Ok(Response::builder().status(501).body(refused).unwrap());
                            }
                            let get = request.method() == Method::GET;
                            let lost = traffic.loses_answer_to(&request);
                            let answer = service.call(request.map(s3s::Body::from)).await.map_err(|e| format!("{e:?}"));
                            if lost {
                                return Err("hung up".to_owned());
                            }
                            if let (true, Ok(answer)) = (get, &answer) {
                                traffic.passed_bytes.fetch_add(length(answer.headers()), Ordering::Relaxed);
                            }
                            answer
                        }
                    });
                    let _client_gone = server.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Self { endpoint, root, traffic, _connections: connections }
    }

    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Returns a separate client, to write objects that the store reads.
    pub fn client(&self) -> AmazonS3 {
        let client =
            AmazonS3Builder::new().with_bucket_name(BUCKET).with_endpoint(&self.endpoint).with_allow_http(true);
        client.with_access_key_id(ACCESS_KEY).with_secret_access_key(SECRET_KEY).build().unwrap()
    }

    /// Returns the file of the object `key`.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }

    /// Returns the parts of uploads that were neither completed nor aborted.
    pub fn parts(&self) -> Vec<PathBuf> {
        let entries = self.root.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().contains(".part-")).collect()
    }

    pub fn storage(&self, prefix: &str) -> StorageConfig {
        StorageConfig::S3 {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: Some(self.endpoint.clone()),
            // The same server under another name.
            public_endpoint: Some(self.endpoint.replace("127.0.0.1", "localhost")),
            region: Some("eu-test-1".to_owned()),
            allow_http: true,
            credentials_file: None,
        }
    }
}

fn length(headers: &HeaderMap) -> u64 {
    headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap())
}

/// Runs `body` with the server's credentials in the environment. If they are not set in this
/// process, runs the test `test` again in a child process, because changing the environment of a
/// running process is unsafe.
pub fn with_credentials(test: &str, body: impl Future<Output = ()>) {
    if std::env::var("AWS_ACCESS_KEY_ID").as_deref() == Ok(ACCESS_KEY) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(body);
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        again.env_remove(name);
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    again.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")).env("AWS_ALLOW_HTTP", "true");
    let ended = again.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.contains("1 passed"), "{out}\n{err}");
}
