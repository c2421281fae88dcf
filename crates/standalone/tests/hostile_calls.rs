//! A hostile client: fills every field of every request of every method with invalid values, and
//! sends good requests with random bytes changed. The server survives, keeps its memory usage, and
//! reports what is wrong.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../api/tests/support/hostile.rs"]
#[allow(dead_code)]
mod hostile;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hostile::Hostile;
use prost::Message as _;
use prost_reflect::MethodDescriptor;
use rand::{Rng as _, SeedableRng as _};
use support::Server;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Longest message that a server accepts.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Only every Nth hostile request is sent, or all of them if the variable is set.
const ONE_IN: usize = 16;
const ALL_VARIABLE: &str = "INHERITUNE_ALL_HOSTILE_CALLS";
/// Number of requests with random bytes changed. Divided by [`ONE_IN`], unless all are sent.
const RANDOM_REQUESTS: usize = 4000;
/// How much the server's peak memory may grow.
const MEMORY_KB: u64 = 1 << 20;
/// A call that takes longer counts as hanging.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A codec that passes messages as raw bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &bytes);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length).to_vec()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// Calls a method and waits for its first message or error status.
async fn call(channel: &Channel, method: &MethodDescriptor, bytes: Vec<u8>) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.unwrap();
    let call = async {
        let mut answers = client.server_streaming(Request::new(bytes), path.parse().unwrap(), Raw).await?.into_inner();
        answers.message().await.map(drop)
    };
    tokio::time::timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| panic!("{}: no answer", method.full_name()))
}

fn peak_memory_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

fn changed(bytes: &[u8], random: &mut impl rand::RngCore) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 if at < bytes.len() => bytes[at] = random.random(),
            _ if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes.extend([0xff; 10]),
        }
    }
    bytes
}

#[test]
fn s1_no_call_ends_the_server_or_fills_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    // Valid requests are executed, so the ceilings reject those that are too large for the test
    // machine.
    let ceilings = ["--max-parameters", "10000000", "--max-job-bytes", "100000000"];
    let server = Server::start_with(dir.path(), |command| command.args(ceilings));
    let before_kb = peak_memory_kb(server.pid());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let channel = runtime.block_on(Channel::from_shared(server.address.clone()).unwrap().connect()).unwrap();
    let (mut codes, mut wrong) = (BTreeMap::<String, usize>::new(), Vec::new());
    let one_in = if std::env::var_os(ALL_VARIABLE).is_some() { 1 } else { ONE_IN };

    let mut number = 0;
    for method in hostile::methods() {
        hostile::for_each(&method, |Hostile { path, value, out_of_bounds, message }| {
            number += 1;
            if number % one_in != 0 {
                return;
            }
            let bytes = message.encode_to_vec();
            let too_long = bytes.len() > MAX_MESSAGE_BYTES;
            let answer = runtime.block_on(call(&channel, &method, bytes));
            let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
            *codes.entry(format!("{code:?}")).or_default() += 1;
            let proper = match code {
                Code::OutOfRange | Code::ResourceExhausted => too_long,
                Code::InvalidArgument => true,
                Code::Ok | Code::NotFound | Code::FailedPrecondition => !out_of_bounds,
                _ => false,
            };
            if !proper {
                wrong.push(format!("{}.{path} = {value}: {answer:?}", method.full_name()));
            }
        });
    }
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));

    let good: Vec<(MethodDescriptor, Vec<u8>)> = hostile::methods()
        .into_iter()
        .flat_map(|method| hostile::good(&method).into_iter().map(move |good| (method.clone(), good.encode_to_vec())))
        .collect();
    let mut random = rand::rngs::StdRng::seed_from_u64(15);
    for _ in 0..RANDOM_REQUESTS / one_in {
        let (method, bytes) = &good[random.random_range(0..good.len())];
        let bytes = changed(bytes, &mut random);
        if let Err(status) = runtime.block_on(call(&channel, method, bytes.clone())) {
            *codes.entry(format!("{:?}", status.code())).or_default() += 1;
            // tonic's own response to bytes that are not a valid message.
            let undecodable = status.code() == Code::Internal && status.message().contains("decode");
            let proper = matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition);
            assert!(proper || undecodable, "{} {bytes:?}: {status:?}", method.full_name());
        }
    }

    let after_kb = peak_memory_kb(server.pid());
    println!("answers: {codes:?}; peak memory {before_kb} kB before, {after_kb} kB after");
    assert!(after_kb < before_kb + MEMORY_KB, "{before_kb} kB before, {after_kb} kB after");
    server.ok(&["run", "list"]);
}

/// Creates a sparse file of `bytes` bytes, which uses no disk space.
fn sparse(path: &std::path::Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Submits a job and waits for its end. Returns its status and error.
fn worked(server: &Server, dir: &std::path::Path, job: &serde_json::Value) -> (String, String) {
    let path = dir.join("job.json");
    std::fs::write(&path, job.to_string()).unwrap();
    let submitted = server.json(&["job", "submit", path.to_str().unwrap()]);
    let id = submitted["id"].as_str().unwrap();
    let started = std::time::Instant::now();
    loop {
        let job = server.json(&["job", "get", id]);
        let (status, error) = (job["status"].as_str().unwrap(), job["error"].as_str().unwrap_or_default());
        if ["SUCCEEDED", "FAILED"].contains(&status) {
            return (status.to_owned(), error.to_owned());
        }
        assert!(started.elapsed() < support::LIMIT, "{job}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `config.json` of a model folder is checked first, and only the files that are needed to load the
/// model are fetched.
#[test]
fn s7_a_model_s_folder_costs_what_the_model_costs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |command| command.args(["--max-job-bytes", "100000000"]));
    let model = dir.path().join("model");
    std::fs::create_dir_all(model.join("checkpoint-500")).unwrap();
    let golden = support::root().join("crates/evaluator/tests/golden/models/tiny-gpt2");
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    for name in
        ["pytorch_model.bin", "optimizer.pt", "checkpoint-500/optimizer.pt", "consolidated.safetensors", "notes.log"]
    {
        sparse(&model.join(name), 1 << 40);
    }
    let text = support::write_corpus(dir.path());
    let evaluate = |model: &std::path::Path, batch_size: u32| {
        serde_json::json!({
            "kind": "evaluate", "checkpoint": model, "batch_size": batch_size,
            "tasks": [{ "task": "rolling_perplexity", "source": text }],
        })
    };
    // A batch is never larger than the number of windows.
    assert_eq!(worked(&server, dir.path(), &evaluate(&model, 1 << 16)), ("SUCCEEDED".to_owned(), String::new()));

    let huge = dir.path().join("huge");
    std::fs::create_dir(&huge).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 65536, "num_attention_heads": 512, "num_hidden_layers": 1024,
        "intermediate_size": 262_144, "vocab_size": 128_000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": false,
    });
    std::fs::write(huge.join("config.json"), config.to_string()).unwrap();
    sparse(&huge.join("model.safetensors"), 1 << 42);
    let (status, error) = worked(&server, dir.path(), &evaluate(&huge, 1));
    assert_eq!(status, "FAILED");
    assert!(error.contains("`ceilings.max_parameters`"), "{error}");

    // A model with an allowed number of parameters but too many bytes.
    std::fs::write(huge.join("config.json"), std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let (status, error) = worked(&server, dir.path(), &evaluate(&huge, 1));
    assert_eq!(status, "FAILED");
    assert!(error.contains("`ceilings.max_job_bytes`"), "{error}");
}

/// A model that is too large for this server is rejected at submission, and the error names the
/// setting. A model that exceeds the byte limit is rejected before anything is written.
#[test]
fn s1_a_fresh_model_beyond_the_ceilings_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), |command| command.args(["--max-job-bytes", "1000000"]));
    let fresh = |n_layers: u32, d_model: u32, d_ff: u32, vocab_size: u32| {
        let architecture = serde_json::json!({
            "family": "llama", "n_layers": n_layers, "d_model": d_model, "n_heads": 1, "d_ff": d_ff, "max_positions": 8,
        });
        let source = serde_json::json!({ "architecture": { "architecture": architecture, "vocab_size": vocab_size } });
        serde_json::json!({ "kind": "slice", "source": source, "tokenizer": null, "seed": 1 })
    };
    let refused = |job: serde_json::Value| {
        let path = dir.path().join("job.json");
        std::fs::write(&path, job.to_string()).unwrap();
        let output = server.inheritune(&["job", "submit", path.to_str().unwrap()]);
        assert!(!output.status.success(), "{job}");
        support::show(&output)
    };
    let error = refused(fresh(1024, 65_536, 1_048_576, u32::MAX));
    assert!(error.contains("vocab_size"), "{error}");
    let error = refused(fresh(1024, 65_536, 1_048_576, 1 << 20));
    assert!(error.contains("`ceilings.max_parameters`"), "{error}");
    let (status, error) = worked(&server, dir.path(), &fresh(2, 1024, 4096, 1000));
    assert_eq!(status, "FAILED");
    assert!(error.contains("`ceilings.max_job_bytes`"), "{error}");
    assert_eq!(worked(&server, dir.path(), &fresh(2, 8, 8, 300)).0, "SUCCEEDED");
}
