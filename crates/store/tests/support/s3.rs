//! An S3 server in this process that checks signatures and keeps each object as a file.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses a part of it

use std::future::Future;
use std::path::PathBuf;
use std::process::Command;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use inheritune_store::objects::StorageConfig;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub const BUCKET: &str = "inheritune-test";
const ACCESS_KEY: &str = "AKIDINHERITUNETEST";
const SECRET_KEY: &str = "not-a-secret";

/// Serves until dropped.
pub struct S3Server {
    pub endpoint: String,
    root: TempDir,
    _connections: JoinSet<()>,
}

impl S3Server {
    pub async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut accepted = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                let service = service.clone();
                accepted.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _client_gone = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { endpoint, root, _connections: connections }
    }

    /// Where the object `key` is kept.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }

    /// Parts of uploads that were neither completed nor aborted.
    pub fn parts(&self) -> Vec<PathBuf> {
        let entries = self.root.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().contains(".part-")).collect()
    }

    pub fn storage(&self, prefix: &str) -> StorageConfig {
        StorageConfig::S3 {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: Some(self.endpoint.clone()),
            region: Some("eu-test-1".to_owned()),
            allow_http: true,
        }
    }
}

/// Runs `body` where the environment holds the server's credentials: in this process when it does already, else the test
/// called `test` once more in a process of its own. (Changing the environment of a running process is unsafe.)
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
    let ended = again.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.contains("1 passed"), "{out}\n{err}");
}
