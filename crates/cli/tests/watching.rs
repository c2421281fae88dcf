//! Tests that follow a run over real sockets.
//!
//! The server is scripted, because a real one cannot produce the relevant situations on demand: a
//! stream that breaks in the middle, or Ctrl-C between two messages. Tests with a real server are
//! in `crates/standalone/tests/end_to_end.rs`.
#![allow(clippy::unwrap_used)]

#[path = "../../report/tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use futures::Stream;
use inheritune_api::v1;
use inheritune_api::v1::artifact_service_server::{ArtifactService, ArtifactServiceServer};
use inheritune_api::v1::run_service_server::{RunService, RunServiceServer};
use sha2::Digest as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const ID: &str = "01900000-0000-7000-8000-000000000000";
const CHECKPOINT: &str = "01900000-0000-7000-8000-0000000000c0";

type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchRunResponse, Status>> + Send>>;

/// The messages of one WatchRun call. Without an error at the end, the stream stays open.
type Act = Vec<Result<v1::WatchRunResponse, Status>>;

#[derive(Clone, Default)]
struct Story {
    acts: Arc<Mutex<VecDeque<Act>>>,
    asked_after: Arc<Mutex<Vec<i64>>>,
    end: Arc<Mutex<v1::Run>>,
    created: Arc<Mutex<Vec<String>>>,
    dead_runs: usize,
    weights: Option<String>,
}

#[tonic::async_trait]
impl RunService for Story {
    type WatchRunStream = Watched;

    async fn create_run(
        &self,
        request: Request<v1::CreateRunRequest>,
    ) -> Result<Response<v1::CreateRunResponse>, Status> {
        let mut created = self.created.lock().unwrap();
        created.push(request.into_inner().request_id);
        let run =
            if created.len() <= self.dead_runs { run(v1::JobStatus::Failed) } else { run(v1::JobStatus::Running) };
        Ok(Response::new(v1::CreateRunResponse { run: Some(run) }))
    }

    async fn get_run(&self, _: Request<v1::GetRunRequest>) -> Result<Response<v1::GetRunResponse>, Status> {
        Ok(Response::new(v1::GetRunResponse { run: Some(self.end.lock().unwrap().clone()) }))
    }

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Result<Response<Watched>, Status> {
        self.asked_after.lock().unwrap().push(request.into_inner().after_note_seq);
        let act = self.acts.lock().unwrap().pop_front().unwrap_or_default();
        let ends = act.iter().any(Result::is_err);
        let told = futures::stream::iter(act);
        if ends {
            return Ok(Response::new(Box::pin(told)));
        }
        Ok(Response::new(Box::pin(futures::StreamExt::chain(told, futures::stream::pending()))))
    }

    async fn get_report(&self, _: Request<v1::GetReportRequest>) -> Result<Response<v1::GetReportResponse>, Status> {
        let report_json = serde_json::to_string(&fixtures::full_data()).unwrap();
        Ok(Response::new(v1::GetReportResponse { report_json }))
    }

    async fn list_runs(&self, _: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsResponse>, Status> {
        Err(Status::not_found("not in this test"))
    }

    async fn cancel_run(&self, _: Request<v1::CancelRunRequest>) -> Result<Response<v1::CancelRunResponse>, Status> {
        Err(Status::failed_precondition("not in this test"))
    }

    async fn pause_run(&self, _: Request<v1::PauseRunRequest>) -> Result<Response<v1::PauseRunResponse>, Status> {
        Err(Status::invalid_argument("not in this test"))
    }

    async fn resume_run(&self, _: Request<v1::ResumeRunRequest>) -> Result<Response<v1::ResumeRunResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn retry_run(&self, _: Request<v1::RetryRunRequest>) -> Result<Response<v1::RetryRunResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl ArtifactService for Story {
    async fn register_artifact(
        &self,
        _: Request<v1::RegisterArtifactRequest>,
    ) -> Result<Response<v1::RegisterArtifactResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::GetArtifactResponse>, Status> {
        assert_eq!(request.into_inner().id, CHECKPOINT);
        let file = v1::ArtifactFile {
            name: "model.safetensors".to_owned(),
            size_bytes: 7,
            sha256: hex::encode(sha2::Sha256::digest("weights")),
            segments: Vec::new(),
            download_url: self.weights.clone().unwrap(),
        };
        Ok(Response::new(v1::GetArtifactResponse { artifact: Some(v1::Artifact::default()), files: vec![file] }))
    }

    async fn list_artifacts(
        &self,
        _: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn pin_artifact(
        &self,
        _: Request<v1::PinArtifactRequest>,
    ) -> Result<Response<v1::PinArtifactResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn unpin_artifact(
        &self,
        _: Request<v1::UnpinArtifactRequest>,
    ) -> Result<Response<v1::UnpinArtifactResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn delete_artifact(
        &self,
        _: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::DeleteArtifactResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

fn run(status: v1::JobStatus) -> v1::Run {
    v1::Run {
        id: ID.to_owned(),
        name: "story".to_owned(),
        status: status.into(),
        state: "somewhere".to_owned(),
        ..v1::Run::default()
    }
}

fn change(status: v1::JobStatus, seq: i64, job_status: v1::JobStatus) -> Result<v1::WatchRunResponse, Status> {
    Ok(v1::WatchRunResponse {
        run: Some(run(status)),
        notes: vec![v1::RunNote { seq, text: format!("decision {seq}"), ..v1::RunNote::default() }],
        jobs: vec![v1::Job {
            id: "j".to_owned(),
            label: "round 1: train".to_owned(),
            status: job_status.into(),
            ..v1::Job::default()
        }],
    })
}

async fn served(story: &Story) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let routes = tonic::transport::Server::builder()
        .add_service(RunServiceServer::new(story.clone()))
        .add_service(ArtifactServiceServer::new(story.clone()));
    tokio::spawn(routes.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn inheritune(server: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inheritune"));
    command
        .args(["--server", server])
        .args(args)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn output(server: &str, args: &[&str]) -> Output {
    inheritune(server, args).output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_watch_survives_a_broken_stream() {
    use v1::JobStatus::{Running, Succeeded};
    let story = Story::default();
    story.acts.lock().unwrap().extend([
        vec![change(Running, 1, Running), Err(Status::unavailable("going down"))],
        vec![change(Running, 2, Succeeded), change(Succeeded, 3, Succeeded)],
    ]);
    *story.end.lock().unwrap() = run(Succeeded);
    let server = served(&story).await;
    let output = output(&server, &["--output", "json", "run", "watch", ID]).await;
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert_eq!(
        log.lines().collect::<Vec<_>>(),
        [
            "» decision 1",
            "· round 1: train: running",
            "lost the connection to the server (going down); retrying for 60 s",
            "reconnected to the server",
            "» decision 2",
            "✓ round 1: train: done",
            "» decision 3",
        ]
    );
    // The client does not request notes again that it has seen.
    assert_eq!(*story.asked_after.lock().unwrap(), [0, 1]);
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["status"], "SUCCEEDED");
}

#[tokio::test]
async fn the_end_of_a_run_leaves_a_report_and_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("weights");
    std::fs::write(&weights, "weights").unwrap();
    let story = Story { weights: Some(format!("file://{}", weights.display())), ..Story::default() };
    story.acts.lock().unwrap().push_back(vec![change(v1::JobStatus::Succeeded, 1, v1::JobStatus::Succeeded)]);
    *story.end.lock().unwrap() = v1::Run {
        winner: Some(v1::ModelRecord { checkpoint: format!("artifact://{CHECKPOINT}"), ..v1::ModelRecord::default() }),
        ..run(v1::JobStatus::Succeeded)
    };
    let server = served(&story).await;
    let (report, export) = (dir.path().join("report"), dir.path().join("a/target"));
    let args = [
        "run",
        "create",
        "deploy/recipes/demo-full-data.toml",
        "--corpus",
        "s3://bucket/corpus.jsonl",
        "--report",
        report.to_str().unwrap(),
        "--export",
    ];
    let output = output(&server, &[&args[..], &[export.to_str().unwrap()]].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(report.join("index.html")).unwrap().contains("6 of 8 layers"));
    assert_eq!(std::fs::read_to_string(export.join("model.safetensors")).unwrap(), "weights");
}

#[tokio::test]
async fn a_failed_run_is_1_and_still_has_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let story = Story::default();
    story.acts.lock().unwrap().push_back(vec![change(v1::JobStatus::Failed, 1, v1::JobStatus::Failed)]);
    *story.end.lock().unwrap() = v1::Run { state: "failed: no room".to_owned(), ..run(v1::JobStatus::Failed) };
    let server = served(&story).await;
    let report = dir.path().join("report");
    let export = dir.path().join("target");
    let args = ["run", "watch", ID, "--report", report.to_str().unwrap(), "--export", export.to_str().unwrap()];
    let output = output(&server, &args).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).ends_with(&format!("error: run {ID} failed: no room\n")));
    assert!(report.join("report.md").exists() && !export.exists());
}

#[tokio::test]
async fn ctrl_c_ends_the_watch_and_not_the_run() {
    let story = Story::default();
    story.acts.lock().unwrap().push_back(vec![change(v1::JobStatus::Running, 1, v1::JobStatus::Running)]);
    let server = served(&story).await;
    let mut child = inheritune(&server, &["run", "watch", ID]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("» decision 1"));
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let status = child.wait().await.unwrap();
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        last = line;
    }
    assert_eq!(status.code(), Some(130), "{last}");
    assert_eq!(last, format!("interrupted: the run continues; watch it again with: inheritune run watch {ID}"));
}

#[tokio::test]
async fn r5_no_run_is_created_whose_end_has_no_place() {
    let story = Story::default();
    let server = served(&story).await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("file"), "x").unwrap();
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full/x"), "x").unwrap();
    for (place, problem) in [
        (["--report", &at("file"), "--export", &at("new")], "is a file; name a folder"),
        (["--report", &at("new"), "--export", &at("file/below")], "is a file; choose another folder"),
        (["--report", &at("new"), "--export", &at("full")], "is not empty"),
        (["--report", &at("new"), "--export", &at("new")], "would no longer be empty"),
        (["--report", "/proc/report", "--export", &at("new")], "cannot be written to"),
    ] {
        let args = [
            &["run", "create", "deploy/recipes/demo-full-data.toml", "--corpus", "s3://bucket/corpus.jsonl"][..],
            &place,
        ]
        .concat();
        let output = output(&server, &args).await;
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        assert!(text(&output.stderr).contains(problem), "{}", text(&output.stderr));
    }
    assert!(story.created.lock().unwrap().is_empty());
}

#[tokio::test]
async fn dead_runs_of_a_recipe_are_not_gone_on_with() {
    let story = Story { dead_runs: 2, ..Story::default() };
    let server = served(&story).await;
    let args = [
        "run",
        "create",
        "deploy/recipes/demo-full-data.toml",
        "--corpus",
        "s3://bucket/corpus.jsonl",
        "--request-id-from-recipe",
    ];
    for _ in 0..2 {
        let output = output(&server, &args).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let created = story.created.lock().unwrap().clone();
    // Two failed runs, then the one to continue. The second time, the server has no failed runs
    // left.
    assert_eq!(created.len(), 4);
    assert_eq!(created[0], created[3]);
    assert!(created[0] != created[1] && created[1] != created[2]);
}

#[tokio::test]
async fn what_the_server_says_decides_the_exit_code() {
    let server = served(&Story::default()).await;
    for (args, exit_code) in [
        (["run", "list"].as_slice(), 4),
        (&["run", "cancel", ID], 5),
        (&["run", "pause", ID], 2),
        (&["run", "resume", ID], 5),
        (&["run", "retry", ID], 5),
    ] {
        let output = output(&server, args).await;
        assert_eq!(output.status.code(), Some(exit_code), "{args:?}");
        assert_eq!(text(&output.stderr), "error: not in this test\n");
    }
}
