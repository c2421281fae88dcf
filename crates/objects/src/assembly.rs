//! Assembly of one object from parts of others, in the fastest way that both stores allow:
//!
//! - Into a local folder, several segments are written in parallel, each at its offset ([`local`]).
//! - From S3 to S3, the server copies parts whose digests are known.
//! - Otherwise chunks are read ahead in order, and a few parts are uploaded in parallel.
//!
//! Memory use is a few chunks, independent of the size of the object.

mod local;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use inheritune_domain::artifact::SegmentDigest;
use inheritune_domain::id::Sha256Digest;
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;

use super::folder::ObjectRange;
use super::source::Expected;
use super::upload::{MIN_PART_BYTES, Upload};
use crate::ObjectError;
use crate::error::corrupt;

pub use local::LocalFile;

/// Bytes per read.
const CHUNK_BYTES: u64 = 2 << 20;
/// Reads in flight ahead of the chunk that is being written.
const CHUNKS_AHEAD: usize = 3;
/// Largest chunk that is computed ahead of its turn.
const MAX_MADE_AHEAD_BYTES: u64 = 4 << 20;
/// Largest part that a server copies. If the server rejects the copy, the part is held in memory.
const MAX_COPY_BYTES: u64 = 16 << 20;

/// A part of the assembled object that has its own digest.
#[derive(Debug)]
pub struct Segment {
    /// Its content, in order.
    pub chunks: Chunks,
    /// Its digest, if it is already known. The bytes then need not pass through this process.
    pub sha256: Option<Sha256Digest>,
}

/// The chunks of a segment. They are produced lazily, because a tensor may have any number of them.
pub struct Chunks {
    size_bytes: u64,
    /// Description of the sources, line by line. Equal descriptions mean equal bytes.
    identity: String,
    is_remote: bool,
    in_order: Box<dyn Iterator<Item = Chunk> + Send>,
}

impl Chunks {
    /// Returns chunks of `size_bytes` in total that are all computed, in the order of `in_order`.
    /// `identity` describes their sources and the computation. Equal descriptions mean equal bytes.
    pub fn made(size_bytes: u64, identity: &str, in_order: impl Iterator<Item = Making> + Send + 'static) -> Self {
        let in_order = Box::new(in_order.map(Chunk::Made));
        Self { size_bytes, identity: format!("made {size_bytes} bytes {identity}\n"), is_remote: false, in_order }
    }
}

impl From<Vec<Chunk>> for Chunks {
    fn from(chunks: Vec<Chunk>) -> Self {
        let size_bytes = chunks.iter().map(Chunk::size_bytes).sum();
        let identity = chunks.iter().map(Chunk::identity).collect();
        let is_remote = chunks.iter().any(Chunk::is_remote);
        Self { size_bytes, identity, is_remote, in_order: Box::new(chunks.into_iter()) }
    }
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunks({} bytes: {})", self.size_bytes, self.identity)
    }
}

/// The source of some bytes.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A range of a file or an object.
    Copied(ObjectRange),
    /// Bytes that are computed when their turn comes.
    Made(Making),
}

/// Bytes that are computed when their turn comes.
pub struct Making {
    /// Number of bytes that `make` returns.
    pub size_bytes: u64,
    /// Description of the sources and the computation. Equal descriptions mean equal bytes.
    pub identity: String,
    /// Computes the bytes.
    pub make: Box<dyn FnOnce() -> BoxFuture<'static, Result<Bytes, ObjectError>> + Send>,
}

impl std::fmt::Debug for Making {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Making({}, {} bytes)", self.identity, self.size_bytes)
    }
}

/// Counts the written bytes, to report progress. Clones share one counter.
#[derive(Debug, Clone, Default)]
pub struct WrittenBytes(Arc<AtomicU64>);

impl WrittenBytes {
    /// Returns the number of bytes written so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Segment {
    /// Returns a segment of bytes in memory.
    pub fn of_bytes(bytes: Bytes) -> Self {
        Self { chunks: vec![Chunk::Bytes(bytes)].into(), sha256: None }
    }

    /// Returns a segment without bytes.
    pub fn empty() -> Self {
        Self { chunks: Vec::new().into(), sha256: None }
    }

    /// Returns the length in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.chunks.size_bytes
    }
}

/// Returns a digest of the sources of `segments`. Objects with equal plan digests are equal, byte
/// for byte.
pub fn plan_digest(segments: &[Segment]) -> Sha256Digest {
    let mut plan = Sha256::new();
    plan.update(format!("{}\n", env!("CARGO_PKG_VERSION")));
    for segment in segments {
        plan.update("segment\n");
        plan.update(&segment.chunks.identity);
    }
    Sha256Digest(plan.finalize().into())
}

/// The digest of a segment: already known, or computed while its bytes are written.
enum Digesting {
    Known(Sha256Digest),
    Hashing(Sha256),
}

impl Digesting {
    fn of(segment: &Segment) -> Self {
        segment.sha256.map_or_else(|| Self::Hashing(Sha256::new()), Self::Known)
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Known(_) => {}
            Self::Hashing(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Sha256Digest {
        match self {
            Self::Known(sha256) => sha256,
            Self::Hashing(hasher) => Sha256Digest(hasher.finalize().into()),
        }
    }
}

impl Chunk {
    /// Returns one line that describes the source of the bytes.
    fn identity(&self) -> String {
        match self {
            Self::Bytes(bytes) => format!("bytes {}\n", Sha256Digest::of(bytes)),
            Self::Copied(object_range) => format!("copied {}\n", object_range.identity()),
            Self::Made(making) => format!("made {} bytes {}\n", making.size_bytes, making.identity),
        }
    }

    fn is_remote(&self) -> bool {
        match self {
            Self::Bytes(_) | Self::Made(_) => false,
            Self::Copied(object_range) => object_range.source.local_path().is_none(),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Copied(object_range) => object_range.range.end - object_range.range.start,
            Self::Made(making) => making.size_bytes,
        }
    }
}

impl Making {
    async fn bytes(self) -> Result<Bytes, ObjectError> {
        let bytes = (self.make)().await?;
        if bytes.len() as u64 == self.size_bytes {
            return Ok(bytes);
        }
        Err(corrupt("computed chunk", format!("has {} bytes, expected {}", bytes.len(), self.size_bytes)))
    }
}

impl ObjectRange {
    pub(super) async fn read(self) -> Result<Bytes, ObjectError> {
        self.source.read(&self.expected, self.range).await
    }

    /// Splits the range into pieces of `piece_bytes`. The last piece may be larger, so that no
    /// piece is smaller than `least_bytes`.
    fn pieces(self, piece_bytes: u64, least_bytes: u64) -> impl Iterator<Item = Self> + Send {
        let mut rest = Some(self).filter(|all| all.size_bytes() > 0);
        std::iter::from_fn(move || {
            let all = rest.take()?;
            if all.size_bytes() <= piece_bytes + least_bytes.saturating_sub(1) {
                return Some(all);
            }
            let (piece, after) = all.split(piece_bytes);
            rest = Some(after);
            Some(piece)
        })
    }

    /// Splits the range after the first `bytes`.
    fn split(self, bytes: u64) -> (Self, Self) {
        let middle = self.range.end.min(self.range.start.saturating_add(bytes));
        let rest = Self { range: middle..self.range.end, ..self.clone() };
        (Self { range: self.range.start..middle, ..self }, rest)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Returns a description of the file, the version in which it was found, and the range. Equal
    /// descriptions mean equal bytes.
    pub fn identity(&self) -> String {
        let Expected { shown, size_bytes, version, .. } = &self.expected;
        format!("{shown} of {size_bytes} bytes, {version:?}, {:?}", self.range)
    }
}

/// Writes `segments` to `upload` in order and returns their digests. Also adds each digest to the
/// upload's progress when its segment is complete.
///
/// # Errors
/// Errors of a source or of the object store. The upload cannot be used afterwards.
pub async fn assemble_in_order(
    upload: &mut Upload,
    segments: Vec<Segment>,
    written: &WrittenBytes,
) -> Result<Vec<SegmentDigest>, ObjectError> {
    let progress = upload.progress();
    let mut open: VecDeque<(u64, Digesting)> =
        segments.iter().map(|segment| (segment.size_bytes(), Digesting::of(segment))).collect();
    let count = open.len();
    let mut done = 0;
    let mut finish_before = |segment: usize, open: &mut VecDeque<(u64, Digesting)>| {
        for (size_bytes, digesting) in open.drain(..segment - done) {
            progress.segment(SegmentDigest { size_bytes, sha256: digesting.finish() });
        }
        done = segment;
    };
    // Boxed: a stream of closures is not provably `Send`.
    let mut steps = futures::stream::iter(steps(segments, upload.can_copy()))
        .map(|(at, step)| step.ahead().map_ok(move |step| (at, step)))
        .buffered(CHUNKS_AHEAD)
        .boxed();
    while let Some((segment, step)) = steps.try_next().await? {
        finish_before(segment, &mut open);
        let mut write = async |upload: &mut Upload, bytes: Bytes| {
            open[0].1.update(&bytes);
            written.add(bytes.len() as u64);
            upload.write(bytes).await
        };
        match step {
            Step::Write(bytes) => write(upload, bytes).await?,
            Step::Read(object_range) => write(upload, object_range.read().await?).await?,
            Step::Make(making) => {
                // Copy the pieces, so that the buffer is freed before the next one is computed.
                for piece in making.bytes().await?.chunks(CHUNK_BYTES as usize) {
                    write(upload, Bytes::copy_from_slice(piece)).await?;
                }
            }
            Step::Copy(object_range) => {
                let (mut head, mut rest) = object_range.split(upload.bytes_before_copy());
                if rest.size_bytes() < MIN_PART_BYTES {
                    (head.range.end, rest.range.start) = (rest.range.end, rest.range.end);
                }
                for piece in head.pieces(CHUNK_BYTES, 0) {
                    write(upload, piece.read().await?).await?;
                }
                for piece in rest.pieces(MAX_COPY_BYTES, MIN_PART_BYTES) {
                    written.add(piece.size_bytes());
                    upload.copy(piece).await?;
                }
            }
        }
    }
    finish_before(count, &mut open);
    Ok(progress.finished().segments)
}

/// Returns the steps of all segments, in order, each with the index of its segment.
fn steps(segments: Vec<Segment>, copies: bool) -> Box<dyn Iterator<Item = (usize, Step)> + Send> {
    Box::new(segments.into_iter().enumerate().flat_map(move |(at, segment)| {
        let copies = copies && segment.sha256.is_some();
        segment.chunks.in_order.flat_map(move |chunk| chunk.steps(copies)).map(move |step| (at, step))
    }))
}

/// One step of an assembly in order.
enum Step {
    Write(Bytes),
    Read(ObjectRange),
    Make(Making),
    /// The server copies the range, except for the bytes that fill up the previous part.
    Copy(ObjectRange),
}

impl Chunk {
    fn steps(self, copies: bool) -> Box<dyn Iterator<Item = Step> + Send> {
        match self {
            Self::Bytes(bytes) => Box::new(std::iter::once(Step::Write(bytes))),
            Self::Made(making) => Box::new(std::iter::once(Step::Make(making))),
            Self::Copied(object_range)
                if copies && object_range.source.is_in_s3() && object_range.size_bytes() >= MIN_PART_BYTES =>
            {
                Box::new(std::iter::once(Step::Copy(object_range)))
            }
            Self::Copied(object_range) => Box::new(object_range.pieces(CHUNK_BYTES, 0).map(Step::Read)),
        }
    }
}

impl Step {
    /// Does the work that is allowed before the step's turn, and returns the remaining step.
    async fn ahead(self) -> Result<Self, ObjectError> {
        match self {
            Self::Read(object_range) => Ok(Self::Write(in_a_task(object_range.read()).await?)),
            // A large chunk waits for its turn, so that only one is in memory.
            Self::Make(making) if making.size_bytes <= MAX_MADE_AHEAD_BYTES => {
                Ok(Self::Write(in_a_task(making.bytes()).await?))
            }
            Self::Write(_) | Self::Make(_) | Self::Copy(_) => Ok(self),
        }
    }
}

/// Runs the future in a task, in parallel with hashing and uploading.
async fn in_a_task(
    bytes: impl Future<Output = Result<Bytes, ObjectError>> + Send + 'static,
) -> Result<Bytes, ObjectError> {
    let task = AbortOnDropHandle::new(tokio::spawn(bytes));
    task.await.unwrap_or_else(|broken| Err(corrupt("reading task", broken)))
}
