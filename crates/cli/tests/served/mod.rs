//! A server with a fixed reply for every call, to test how the client handles replies.
//!
//! It does not know the services by name, so a new call only needs a reply in [`all`].
#![allow(dead_code, clippy::unwrap_used, missing_docs, reason = "not every test needs all of it")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use inheritune_api::v1;
use prost::Message;
use prost::bytes::{Buf as _, BufMut as _};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};

pub const ID: &str = "01900000-0000-7000-8000-000000000000";

/// Replies by the name of the call; a call without one is not implemented.
#[derive(Clone, Default)]
pub struct Replies(Arc<HashMap<&'static str, Vec<Vec<u8>>>>);

impl Replies {
    pub fn new(replies: HashMap<&'static str, Vec<Vec<u8>>>) -> Self {
        Self(Arc::new(replies))
    }

    /// Starts the server and returns its address.
    pub async fn served(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder();
        tokio::spawn(server.serve_with_incoming(self, TcpListenerStream::new(listener)));
        address
    }
}

impl Service<http::Request<Body>> for Replies {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let reply = self.0.get(call.as_str()).cloned();
        Box::pin(async move { Ok(Grpc::new(Plain).server_streaming(Replied(reply), request).await) })
    }
}

struct Replied(Option<Vec<Vec<u8>>>);

type Messages = tokio_stream::Iter<std::vec::IntoIter<Result<Vec<u8>, Status>>>;

impl Service<Request<Vec<u8>>> for Replied {
    type Response = Response<Messages>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Vec<u8>>) -> Self::Future {
        let reply = self.0.take();
        Box::pin(async move {
            let messages = reply.ok_or_else(|| Status::unimplemented("no reply for this call"))?;
            Ok(Response::new(tokio_stream::iter(messages.into_iter().map(Ok).collect::<Vec<_>>())))
        })
    }
}

/// Passes messages through in their encoded form.
#[derive(Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let size = from.remaining();
        Ok(Some(from.copy_to_bytes(size).to_vec()))
    }
}

pub fn job(status: v1::JobStatus) -> v1::Job {
    v1::Job {
        id: ID.to_owned(),
        run_id: ID.to_owned(),
        label: "モデル名がとても長い実験: random initialisation, same depth and twice the steps: train".to_owned(),
        status: status.into(),
        kind: v1::JobKind::Train.into(),
        attempts: 3,
        created_at: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        progress: Some(v1::Progress {
            done: 30,
            total: 120,
            unit: "tokens".to_owned(),
            per_second: 12_300.0,
            progress_percentage: Some(25.0),
            estimated_remaining_seconds: Some(43_530.0),
            message: "step 25120/100000 loss 10.831".to_owned(),
        }),
        outcome: Some(v1::JobOutcome { outcome: Some(v1::job_outcome::Outcome::Evaluated(evaluated())) }),
        spec: Some(v1::JobSpec { spec: Some(v1::job_spec::Spec::Evaluate(v1::EvaluateSpec::default())) }),
        error: "the disk was full, and it took a long time until somebody came by who could do something about it"
            .to_owned(),
        ..v1::Job::default()
    }
}

pub fn run(status: v1::JobStatus) -> v1::Run {
    let model = v1::ModelRecord {
        name: "round 1: 12 layers inherited from a reference with a long name".to_owned(),
        layers: Some(12),
        steps: Some(100_000),
        parameters: Some(1_816_000_000),
        tokens_seen: Some(39_300_000_000),
        wall_s: Some(273_600.0),
        checkpoint: format!("artifact://{ID}"),
        validation: Some(score("validation_loss", "loss_nats", 4.3374)),
        ..v1::ModelRecord::default()
    };
    v1::Run {
        id: ID.to_owned(),
        name: "a-run-with-a-name-that-is-rather-long".to_owned(),
        status: status.into(),
        state: "round 2: evaluating 14 layers that were inherited".to_owned(),
        created_at: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        models: vec![model.clone()],
        winner: Some(model),
        current_jobs: vec![job(status)],
        notes: vec![v1::RunNote {
            seq: 1,
            text: "tokenized: 1102907 training and 58322 validation tokens, vocabulary 2048".to_owned(),
            ..v1::RunNote::default()
        }],
        ..v1::Run::default()
    }
}

fn score(task: &str, metric: &str, value: f64) -> v1::Score {
    let named = v1::Score { task: task.to_owned(), metric: metric.to_owned(), value, n: 1838, ..v1::Score::default() };
    v1::Score { stderr: Some(0.0152), chance: Some(0.5), majority: Some(0.635), chance_p_value: Some(0.006), ..named }
}

fn evaluated() -> v1::Evaluated {
    let tasks = ["piqa", "lambada_openai", "mmlu_high_school_government_and_politics"];
    v1::Evaluated {
        scores_artifact_id: ID.to_owned(),
        scores: tasks.map(|task| score(task, "acc", 0.4850)).to_vec(),
        differences: vec![difference()],
        parameters: 124_439_808,
        ..v1::Evaluated::default()
    }
}

fn difference() -> v1::ScoreDifference {
    v1::ScoreDifference {
        task: "mmlu_high_school_government_and_politics".to_owned(),
        metric: "acc".to_owned(),
        value: -0.0123,
        stderr: Some(0.0052),
        n: 1838,
        confidence_low: Some(-0.0221),
        confidence_high: Some(-0.0019),
        p_value: Some(0.02),
    }
}

/// A reply for every call, with long names in each.
pub fn all(status: v1::JobStatus) -> HashMap<&'static str, Vec<Vec<u8>>> {
    let artifact = v1::Artifact {
        id: ID.to_owned(),
        kind: v1::ArtifactKind::TrainingState.into(),
        location: format!("s3://a-bucket-with-a-name/artifacts/training_state/{ID}/12-1"),
        size_bytes: 5 << 30,
        step: Some(100_000),
        pinned: true,
        metadata_json: "{\"family\":\"gpt2\"}".to_owned(),
        ..v1::Artifact::default()
    };
    let tensor = "model.layers.10.self_attn.query_key_value.weight".to_owned();
    let tasks = inheritune_domain::benchmark::all().map(|benchmark| v1::TaskInfo {
        name: benchmark.name.to_owned(),
        description: format!("{} (version {})", benchmark.prompt.description(), benchmark.version),
        metrics: benchmark.prompt.metrics().iter().map(|metric| (*metric).to_owned()).collect(),
        input: format!("{}/{}: rows of {}", benchmark.dataset.folder, benchmark.dataset.split, benchmark.dataset.hub),
    });
    let scores = inheritune_domain::benchmark::POSTER_NINE.map(|task| score(task, "acc", 0.5647)).to_vec();
    let models = vec![v1::ModelScores {
        model: "ours, of 12 layers".to_owned(),
        parameters: 1_000_000,
        checkpoint: format!("artifact://{ID}"),
        scores: scores.clone(),
        ..v1::ModelScores::default()
    }];
    let points = (1..4).map(|step| v1::MetricPoint {
        name: "model_flops_utilization".to_owned(),
        step,
        value: 0.31,
        ..v1::MetricPoint::default()
    });
    let ended = v1::JobStatus::Succeeded;
    let report_json = serde_json::to_string(&crate::fixtures::full_data()).unwrap();
    let one = |message: &dyn Fn() -> Vec<u8>| vec![message()];
    let run_reply = || run(status);
    let job_reply = || job(status);
    HashMap::from([
        ("CreateRun", one(&|| v1::CreateRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        ("GetRun", one(&|| v1::GetRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        ("CancelRun", one(&|| v1::CancelRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        ("PauseRun", one(&|| v1::PauseRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        ("RetryRun", one(&|| v1::RetryRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        ("RetryJob", one(&|| v1::RetryJobResponse { job: Some(job_reply()) }.encode_to_vec())),
        ("ResumeRun", one(&|| v1::ResumeRunResponse { run: Some(run_reply()) }.encode_to_vec())),
        (
            "ListRuns",
            one(&|| {
                v1::ListRunsResponse { runs: vec![run_reply(); 40], next_page_token: "more".to_owned() }.encode_to_vec()
            }),
        ),
        (
            "WatchRun",
            vec![
                v1::WatchRunResponse {
                    run: Some(run(v1::JobStatus::Running)),
                    notes: run(status).notes,
                    jobs: vec![job(v1::JobStatus::Running)],
                }
                .encode_to_vec(),
                v1::WatchRunResponse { run: Some(run(ended)), ..v1::WatchRunResponse::default() }.encode_to_vec(),
            ],
        ),
        ("GetReport", vec![v1::GetReportResponse { report_json }.encode_to_vec()]),
        ("SubmitJob", one(&|| v1::SubmitJobResponse { job: Some(job_reply()) }.encode_to_vec())),
        ("GetJob", vec![v1::GetJobResponse { job: Some(job(ended)) }.encode_to_vec()]),
        ("CancelJob", one(&|| v1::CancelJobResponse { job: Some(job_reply()) }.encode_to_vec())),
        ("PauseJob", one(&|| v1::PauseJobResponse { job: Some(job_reply()) }.encode_to_vec())),
        ("ResumeJob", one(&|| v1::ResumeJobResponse { job: Some(job_reply()) }.encode_to_vec())),
        (
            "ListJobs",
            one(&|| v1::ListJobsResponse { jobs: vec![job_reply(); 40], ..Default::default() }.encode_to_vec()),
        ),
        (
            "WatchJob",
            vec![
                v1::WatchJobResponse { job: Some(job(v1::JobStatus::Running)), metric_points: points.collect() }
                    .encode_to_vec(),
                v1::WatchJobResponse { job: Some(job(ended)), ..Default::default() }.encode_to_vec(),
            ],
        ),
        (
            "RegisterArtifact",
            one(&|| v1::RegisterArtifactResponse { artifact: Some(artifact.clone()) }.encode_to_vec()),
        ),
        (
            "GetArtifact",
            one(&|| {
                let files = vec![v1::ArtifactFile {
                    name: "model.safetensors".to_owned(),
                    size_bytes: 5,
                    sha256: "0".repeat(64),
                    download_url: "file:///dev/zero".to_owned(),
                    ..Default::default()
                }];
                v1::GetArtifactResponse { artifact: Some(artifact.clone()), files }.encode_to_vec()
            }),
        ),
        (
            "ListArtifacts",
            one(&|| {
                v1::ListArtifactsResponse { artifacts: vec![artifact.clone(); 40], ..Default::default() }
                    .encode_to_vec()
            }),
        ),
        ("PinArtifact", one(&|| v1::PinArtifactResponse { artifact: Some(artifact.clone()) }.encode_to_vec())),
        ("UnpinArtifact", one(&|| v1::UnpinArtifactResponse { artifact: Some(artifact.clone()) }.encode_to_vec())),
        ("DeleteArtifact", vec![v1::DeleteArtifactResponse {}.encode_to_vec()]),
        (
            "Inspect",
            one(&|| {
                let info = v1::TensorInfo {
                    name: tensor.clone(),
                    dtype: "F32".to_owned(),
                    shape: vec![12_288, 4096],
                    size_bytes: 201_326_592,
                    file: "model-00001-of-00002.safetensors".to_owned(),
                    layer: Some(10),
                    role: "attention".to_owned(),
                    ..Default::default()
                };
                v1::InspectResponse {
                    config: Some(v1::DecoderConfig { n_layers: 12, ..Default::default() }),
                    tensors: vec![info; 100],
                    ..Default::default()
                }
                .encode_to_vec()
            }),
        ),
        (
            "PlanSlice",
            one(&|| {
                let planned = v1::PlannedTensor {
                    name: tensor.clone(),
                    from: tensor.clone(),
                    dtype: "F32".to_owned(),
                    shape: vec![12_288, 4096],
                    size_bytes: 201_326_592,
                    role: "attention".to_owned(),
                    ..Default::default()
                };
                v1::PlanSliceResponse {
                    tensors: vec![planned; 100],
                    layer_map: (0..24).collect(),
                    ..Default::default()
                }
                .encode_to_vec()
            }),
        ),
        (
            "Estimate",
            vec![
                v1::EstimateResponse {
                    notes: vec![
                        "this is a note of many words that says what the numbers rest on, and so on".to_owned(),
                    ],
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        ("ListTasks", vec![v1::ListTasksResponse { tasks: tasks.collect() }.encode_to_vec()]),
        (
            "CompareScores",
            vec![
                v1::CompareScoresResponse {
                    first_checkpoint: format!("artifact://{ID}"),
                    second_checkpoint: format!("artifact://{ID}"),
                    first: scores.clone(),
                    second: scores,
                    differences: vec![difference()],
                }
                .encode_to_vec(),
            ],
        ),
        ("ListModelScores", vec![v1::ListModelScoresResponse { models, ..Default::default() }.encode_to_vec()]),
    ])
}
