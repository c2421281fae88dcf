//! An S3 server that fails like real servers: with error statuses, with delays, and by closing the
//! connection before, during or after a request.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const BUCKET: &str = "faulty";
const ACCESS_KEY: &str = "AKIDINHERITUNETEST";
const SECRET_KEY: &str = "not-a-secret";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An S3 server that runs until it is dropped. It stores each object as a file.
pub struct FaultyS3 {
    endpoint: String,
    root: TempDir,
    pub faults: Arc<Faults>,
    _connections: JoinSet<()>,
}

/// The injected faults.
pub struct Faults {
    random: Mutex<StdRng>,
    /// Fraction of the requests that get a fault.
    share: f64,
    /// If set, no request is answered.
    pub outage: AtomicBool,
    pub requests: AtomicU64,
    /// How often each of [`Fault::ALL`] happened.
    counts: [AtomicU64; Fault::ALL.len()],
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    InternalError,
    SlowDown,
    Delay,
    HangUpBefore,
    HangUpAmid,
    HangUpAfter,
}

impl Fault {
    const ALL: [Self; 6] =
        [Self::InternalError, Self::SlowDown, Self::Delay, Self::HangUpBefore, Self::HangUpAmid, Self::HangUpAfter];
}

impl FaultyS3 {
    pub async fn start(share: f64, seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let faults = Arc::new(Faults {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            share,
            outage: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            counts: Default::default(),
        });
        let (happens, mut connections) = (faults.clone(), JoinSet::new());
        connections.spawn(async move {
            let mut accepted = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                // Closing the connection resets it.
                socket.set_zero_linger().unwrap();
                let (service, faults) = (service.clone(), happens.clone());
                accepted.spawn(async move {
                    let answer = service_fn(move |request| answer(service.clone(), faults.clone(), request));
                    let server = Builder::new(TokioExecutor::new());
                    let _client_gone = server.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Self { endpoint, root, faults, _connections: connections }
    }

    /// `[objects.storage]`, and the folder with the objects.
    pub fn storage(&self) -> (String, PathBuf) {
        let endpoint = &self.endpoint;
        let storage = format!(
            "kind = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"{endpoint}\"\nregion = \"eu-test-1\"\nallow_http = true"
        );
        (storage, self.root.path().join(BUCKET))
    }

    pub fn env() -> Vec<(&'static str, String)> {
        vec![("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned())]
    }
}

impl Faults {
    fn next(&self) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.outage.load(Ordering::Relaxed) {
            return Some(Fault::HangUpBefore);
        }
        let mut random = self.random.lock().unwrap();
        if !random.random_bool(self.share) {
            return None;
        }
        let at = random.random_range(0..Fault::ALL.len());
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        Some(Fault::ALL[at])
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub fn show(&self) -> String {
        let counts = Fault::ALL.iter().zip(&self.counts);
        let counts: Vec<_> = counts.map(|(fault, n)| format!("{fault:?} {}", n.load(Ordering::Relaxed))).collect();
        format!("{} requests; {}", self.requests.load(Ordering::Relaxed), counts.join(", "))
    }
}

async fn answer(
    service: S3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let refused = |status: u16, code: &str| {
        let body = Body::from(format!("<Error><Code>{code}</Code><Message>injected</Message></Error>"));
        Ok(Response::builder().status(status).body(body)?)
    };
    let fault = faults.next();
    match fault {
        Some(Fault::InternalError) => return refused(500, "InternalError"),
        Some(Fault::SlowDown) => return refused(503, "SlowDown"),
        Some(Fault::HangUpBefore) => return Err("hung up".into()),
        Some(Fault::Delay) => tokio::time::sleep(Duration::from_millis(1500)).await,
        Some(Fault::HangUpAmid | Fault::HangUpAfter) | None => {}
    }
    let answer = service.call(request.map(Body::from)).await.map_err(|e| format!("{e:?}"))?;
    match fault {
        Some(Fault::HangUpAfter) => Err("hung up".into()),
        Some(Fault::HangUpAmid) => {
            let (head, body) = answer.into_parts();
            let whole = body.collect().await?.to_bytes();
            let half = Ok(Frame::data(whole.slice(..whole.len() / 2)));
            let halves = futures::stream::iter([half, Err(std::io::Error::other("hung up"))]);
            Ok(Response::from_parts(head, Body::http_body_unsync(StreamBody::new(halves))))
        }
        Some(Fault::InternalError | Fault::SlowDown | Fault::HangUpBefore | Fault::Delay) | None => Ok(answer),
    }
}
