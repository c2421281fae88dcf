//! A client that means harm: every field of every request of every method filled with what it must not hold, and good
//! requests with bytes changed at random. The server lives, in the memory that it had, and says what is wrong.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../api/tests/support/hostile.rs"]
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

/// Longest message that a server takes.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Requests with bytes changed at random.
const RANDOM_REQUESTS: usize = 1500;
/// What the server may come to need besides what it had.
const MEMORY_KB: u64 = 1 << 20;
/// A call that takes longer hangs.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Messages as bytes, whatever they are.
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

/// What comes of a call: OK with its first message, or a status.
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
    // In-bounds requests are worked: what the test machine has no room for is refused by the ceilings.
    let ceilings = ["--max-parameters", "10000000", "--max-job-bytes", "100000000"];
    let server = Server::start_with(dir.path(), |command| command.args(ceilings));
    let before_kb = peak_memory_kb(server.pid());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let channel = runtime.block_on(Channel::from_shared(server.address.clone()).unwrap().connect()).unwrap();
    let (mut codes, mut wrong) = (BTreeMap::<String, usize>::new(), Vec::new());

    for method in hostile::methods() {
        hostile::for_each(&method, |Hostile { path, value, out_of_bounds, message, .. }| {
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
    for _ in 0..RANDOM_REQUESTS {
        let (method, bytes) = &good[random.random_range(0..good.len())];
        let bytes = changed(bytes, &mut random);
        if let Err(status) = runtime.block_on(call(&channel, method, bytes.clone())) {
            *codes.entry(format!("{:?}", status.code())).or_default() += 1;
            // tonic's own answer to what is no message.
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
