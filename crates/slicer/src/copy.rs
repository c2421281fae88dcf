//! Carrying a plan out: kept bytes are read by ranges a few chunks ahead, fresh ones are made, and all are
//! written in order. Memory is a few chunks, whatever the size of the model; only tensors that are transposed are
//! held whole, one at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use inheritune_domain::checkpoint::slice_plan::{Origin, Placement, Reading};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::job::Progress;
use inheritune_runtime::worker::{JobContext, ProgressSender, StopSignal};
use inheritune_store::artifacts::ArtifactWriter;
use inheritune_store::objects::Folder;
use sha2::{Digest as _, Sha256};

use crate::error::{BadCheckpoint, SlicerError};
use crate::fresh::FreshChunk;
use crate::layout::WeightsFile;
use crate::plan::PlannedSlice;
use crate::transpose::transposed;

/// Bytes of one ranged read.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// Chunks read or made ahead of the one being written.
const CHUNKS_AHEAD: usize = 4;

/// Writes the target's weights; tells how far it is, and stops when told to.
pub struct Copier<'a> {
    planned: &'a PlannedSlice,
    seed: u64,
    stop: StopSignal,
    meter: Meter,
    digests: BTreeMap<String, Sha256Digest>,
}

impl<'a> Copier<'a> {
    /// A copier of `planned`, whose fresh tensors are seeded by `seed`.
    pub fn new(planned: &'a PlannedSlice, seed: u64, context: &JobContext) -> Self {
        let meter = Meter {
            sender: context.progress.clone(),
            total: planned.plan.size_bytes(),
            done: 0,
            started: Instant::now(),
        };
        Self { planned, seed, stop: context.stop.clone(), meter, digests: BTreeMap::new() }
    }

    /// Writes one file of weights.
    ///
    /// # Errors
    /// [`SlicerError::Stopped`]; a source that cannot be read or the store's errors.
    pub async fn write(&mut self, file: &WeightsFile<'_>, artifact: &mut ArtifactWriter) -> Result<(), SlicerError> {
        let mut chunks = Vec::new();
        for (tensor, placement) in file.tensors.iter().enumerate() {
            chunks.extend(self.chunks(placement).map(|chunk| (tensor, chunk)));
        }
        let mut chunks = futures::stream::iter(chunks)
            .map(|(tensor, chunk)| async move { Ok::<_, SlicerError>((tensor, chunk.ready().await?)) })
            .buffered(CHUNKS_AHEAD);
        let mut hashers = vec![Sha256::new(); file.tensors.len()];
        let mut writer = artifact.create(&file.name).await?;
        writer.write(Bytes::from(file.header.clone())).await?;
        loop {
            let next = tokio::select! {
                biased;
                _ = self.stop.wait() => return Err(SlicerError::Stopped),
                next = chunks.next() => next,
            };
            let Some(chunk) = next else { break };
            let (tensor, ready) = chunk?;
            let pieces = match ready {
                Ready::Bytes(bytes) => vec![bytes],
                Ready::Whole(tensor) => tokio::select! {
                    biased;
                    _ = self.stop.wait() => return Err(SlicerError::Stopped),
                    pieces = tensor.pieces() => pieces?,
                },
            };
            for bytes in pieces {
                hashers[tensor].update(&bytes);
                self.meter.add(bytes.len() as u64, &file.tensors[tensor].target.name);
                writer.write(bytes).await?;
            }
        }
        writer.finish().await?;
        for (placement, hasher) in file.tensors.iter().zip(hashers) {
            self.digests.insert(placement.target.name.clone(), Sha256Digest(hasher.finalize().into()));
        }
        Ok(())
    }

    /// Digests of the tensors that were written, by name.
    pub fn into_digests(self) -> BTreeMap<String, Sha256Digest> {
        self.digests
    }

    fn chunks(&self, placement: &Placement) -> Box<dyn Iterator<Item = Chunk> + Send> {
        match &placement.origin {
            Origin::Copied { source, tensor } => match self.planned.checkpoint(*source) {
                Some(checkpoint) => {
                    let (location, folder) = (checkpoint.location.to_string(), checkpoint.folder.clone());
                    let file = tensor.file.clone();
                    let copied = move |range| {
                        let (location, folder, file) = (location.clone(), folder.clone(), file.clone());
                        CopiedChunk { location, folder, file, range }
                    };
                    match tensor.reading {
                        Reading::Whole => {
                            Box::new(ranges(&tensor.bytes).map(move |range| Chunk::Copied(Box::new(copied(range)))))
                        }
                        Reading::Parts { first, length, step, count } => {
                            let start = tensor.bytes.start + first;
                            let parts = (0..count).map(move |part| start + part * step..start + part * step + length);
                            let ranges = parts.flat_map(|part| ranges(&part));
                            Box::new(ranges.map(move |range| Chunk::Copied(Box::new(copied(range)))))
                        }
                        Reading::Transposed => {
                            let source = copied(tensor.bytes.clone());
                            let (shape, number_bytes) = (tensor.shape.clone(), tensor.dtype.size_bytes() as usize);
                            let whole = TransposedTensor { source, shape, number_bytes };
                            Box::new(std::iter::once(Chunk::Transposed(Box::new(whole))))
                        }
                    }
                }
                // A plan copies only from the sources it was made from.
                None => Box::new(std::iter::empty()),
            },
            Origin::Tied { .. } => Box::new(std::iter::empty()),
            Origin::Fresh { init } => {
                let numbers = placement.target.shape.iter().product();
                let chunks = FreshChunk::of(&placement.target.name, self.seed, numbers, (*init, placement.dtype));
                Box::new(chunks.collect::<Vec<_>>().into_iter().map(Chunk::Fresh))
            }
        }
    }
}

enum Chunk {
    Copied(Box<CopiedChunk>),
    Transposed(Box<TransposedTensor>),
    Fresh(FreshChunk),
}

/// What a chunk is when its turn comes.
enum Ready {
    Bytes(Bytes),
    /// Not read ahead, so that only one is in memory.
    Whole(Box<TransposedTensor>),
}

struct CopiedChunk {
    location: String,
    folder: Arc<Folder>,
    file: String,
    range: Range<u64>,
}

impl Chunk {
    async fn ready(self) -> Result<Ready, SlicerError> {
        match self {
            Self::Copied(chunk) => chunk.read().await.map(Ready::Bytes),
            Self::Transposed(tensor) => Ok(Ready::Whole(tensor)),
            Self::Fresh(chunk) => Ok(Ready::Bytes(tokio::task::spawn_blocking(move || chunk.bytes()).await?)),
        }
    }
}

impl CopiedChunk {
    async fn read(self) -> Result<Bytes, SlicerError> {
        let Self { location, folder, file, range: Range { start, end } } = self;
        let bytes = folder.read_range(&file, start..end).await?;
        let got = bytes.len() as u64;
        if got == end - start {
            return Ok(bytes);
        }
        Err(SlicerError::checkpoint(&location, BadCheckpoint::ShortRead { file, start, end, got }))
    }
}

/// A matrix that the source has the other way round.
struct TransposedTensor {
    source: CopiedChunk,
    /// Of the target.
    shape: Vec<u64>,
    number_bytes: usize,
}

impl TransposedTensor {
    /// The target's bytes, in pieces. The source is read piece by piece too: one long request is slow.
    async fn pieces(self: Box<Self>) -> Result<Vec<Bytes>, SlicerError> {
        let Self { source, shape, number_bytes } = *self;
        let mut bytes = Vec::with_capacity((source.range.end - source.range.start) as usize);
        for range in ranges(&source.range) {
            let CopiedChunk { location, folder, file, .. } = &source;
            let (location, folder, file) = (location.clone(), folder.clone(), file.clone());
            bytes.extend_from_slice(&CopiedChunk { location, folder, file, range }.read().await?);
        }
        let columns = shape.last().copied().unwrap_or(1) as usize;
        let target =
            tokio::task::spawn_blocking(move || Bytes::from(transposed(&bytes, columns, number_bytes))).await?;
        let piece = |range: Range<u64>| target.slice(range.start as usize..range.end as usize);
        Ok(ranges(&(0..target.len() as u64)).map(piece).collect())
    }
}

/// `bytes` in pieces of at most [`CHUNK_BYTES`].
fn ranges(bytes: &Range<u64>) -> impl Iterator<Item = Range<u64>> + Send + use<> {
    let Range { start, end } = *bytes;
    (start..end).step_by(CHUNK_BYTES as usize).map(move |at| at..end.min(at + CHUNK_BYTES))
}

struct Meter {
    sender: ProgressSender,
    total: u64,
    done: u64,
    started: Instant,
}

impl Meter {
    fn add(&mut self, bytes: u64, tensor: &str) {
        self.done += bytes;
        let elapsed_s = self.started.elapsed().as_secs_f64();
        let per_second = if elapsed_s > 0.0 { self.done as f64 / elapsed_s } else { 0.0 };
        let remaining = self.total.saturating_sub(self.done) as f64;
        self.sender.set(Progress {
            done: self.done,
            total: self.total,
            unit: "bytes".to_owned(),
            per_second,
            estimated_remaining_seconds: (per_second > 0.0).then(|| remaining / per_second),
            message: format!("writing {tensor}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES, ranges};

    #[test]
    fn ranges_cover_every_byte_once() {
        for (start, end) in [(8, 8), (8, 9), (0, CHUNK_BYTES), (5, 2 * CHUNK_BYTES + 6)] {
            let mut at = start;
            for range in ranges(&(start..end)) {
                assert_eq!(range.start, at);
                assert!(range.end > at && range.end - at <= CHUNK_BYTES);
                at = range.end;
            }
            assert_eq!(at, end);
        }
    }
}
