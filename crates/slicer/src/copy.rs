//! Carrying a plan out: for every tensor of a file, where its bytes are or how they are made; the store puts them
//! together. Only tensors that are transposed are held whole, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use inheritune_domain::checkpoint::slice_plan::{Origin, Placement, Reading, SourceTensor};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::job::Progress;
use inheritune_runtime::worker::{JobContext, ProgressSender, StopSignal};
use inheritune_store::StoreError;
use inheritune_store::artifacts::ArtifactWriter;
use inheritune_store::objects::{Chunk, Folder, Making, Segment, WrittenBytes};

use crate::error::SlicerError;
use crate::fresh::FreshChunk;
use crate::layout::WeightsFile;
use crate::plan::PlannedSlice;
use crate::transpose::transposed;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

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
            written: WrittenBytes::default(),
            started: Instant::now(),
        };
        Self { planned, seed, stop: context.stop.clone(), meter, digests: BTreeMap::new() }
    }

    /// Writes one file of weights.
    ///
    /// # Errors
    /// [`SlicerError::Stopped`]; a source that cannot be read, or that changed meanwhile; the store's errors.
    pub async fn write(&mut self, file: &WeightsFile<'_>, artifact: &mut ArtifactWriter) -> Result<(), SlicerError> {
        let mut segments = vec![Segment::of_bytes(Bytes::from(file.header.clone()))];
        for placement in &file.tensors {
            segments.push(self.segment(placement)?);
        }
        let mut assembling = std::pin::pin!(artifact.assemble(&file.name, segments, &self.meter.written));
        let digests = loop {
            tokio::select! {
                biased;
                _ = self.stop.wait() => return Err(SlicerError::Stopped),
                digests = &mut assembling => break digests?,
                () = tokio::time::sleep(PROGRESS_EVERY) => self.meter.tell(&file.name),
            }
        };
        self.meter.tell(&file.name);
        // The first one is the header's.
        for (placement, digest) in file.tensors.iter().zip(digests.iter().skip(1)) {
            self.digests.insert(placement.target.name.clone(), digest.sha256);
        }
        Ok(())
    }

    /// Digests of the tensors that were written, by name.
    pub fn into_digests(self) -> BTreeMap<String, Sha256Digest> {
        self.digests
    }

    fn segment(&self, placement: &Placement) -> Result<Segment, SlicerError> {
        match &placement.origin {
            Origin::Copied { source, tensor } => match self.planned.folder(*source) {
                Some(folder) => copied(folder, tensor),
                // A plan copies only from the sources it was made from.
                None => Ok(Segment { chunks: Vec::new(), sha256: None }),
            },
            Origin::Tied { .. } => Ok(Segment { chunks: Vec::new(), sha256: None }),
            Origin::Fresh { init } => {
                let numbers = placement.target.shape.iter().product();
                let chunks = FreshChunk::of(&placement.target.name, self.seed, numbers, (*init, placement.dtype));
                Ok(Segment { chunks: chunks.map(fresh).collect(), sha256: None })
            }
        }
    }
}

fn copied(folder: &Arc<Folder>, tensor: &SourceTensor) -> Result<Segment, SlicerError> {
    let SourceTensor { file, bytes, .. } = tensor;
    match tensor.reading {
        Reading::Whole => {
            let sha256 = folder.known_digest(file, bytes);
            Ok(Segment { chunks: vec![Chunk::Copied(folder.stretch(file, bytes.clone())?)], sha256 })
        }
        Reading::Parts { first, length, step, count } => {
            let starts = (0..count).map(|part| bytes.start + first + part * step);
            let chunks = starts.map(|start| folder.stretch(file, start..start + length).map(Chunk::Copied));
            Ok(Segment { chunks: chunks.collect::<Result<_, _>>()?, sha256: None })
        }
        Reading::Transposed => {
            let identity = format!("transposed {:?} {}", tensor.shape, folder.stretch(file, bytes.clone())?.identity());
            let (folder, tensor) = (folder.clone(), tensor.clone());
            let making = Making {
                size_bytes: tensor.size_bytes(),
                identity,
                make: Box::new(move || Box::pin(async move { read_transposed(&folder, &tensor).await })),
            };
            Ok(Segment { chunks: vec![Chunk::Made(making)], sha256: None })
        }
    }
}

async fn read_transposed(folder: &Folder, tensor: &SourceTensor) -> Result<Bytes, StoreError> {
    let mut bytes = Vec::with_capacity(tensor.size_bytes() as usize);
    let mut pieces = folder.stream(&tensor.file, tensor.bytes.clone()).await?;
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    let (rows, number_bytes) = (tensor.shape.last().copied().unwrap_or(1) as usize, tensor.dtype.size_bytes() as usize);
    in_a_thread(move || Bytes::from(transposed(&bytes, rows, number_bytes))).await
}

fn fresh(chunk: FreshChunk) -> Chunk {
    let (size_bytes, identity) = (chunk.numbers * chunk.dtype.size_bytes(), format!("{chunk:?}"));
    Chunk::Made(Making { size_bytes, identity, make: Box::new(move || Box::pin(in_a_thread(move || chunk.bytes()))) })
}

async fn in_a_thread(work: impl FnOnce() -> Bytes + Send + 'static) -> Result<Bytes, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panicked| StoreError::WrongState(format!("a thread of the slicer is gone: {panicked}")))
}

struct Meter {
    sender: ProgressSender,
    total: u64,
    written: WrittenBytes,
    started: Instant,
}

impl Meter {
    fn tell(&self, file: &str) {
        // Headers count too.
        let done = self.written.get().min(self.total);
        let elapsed_s = self.started.elapsed().as_secs_f64();
        let per_second = if elapsed_s > 0.0 { done as f64 / elapsed_s } else { 0.0 };
        self.sender.set(Progress {
            done,
            total: self.total,
            unit: "bytes".to_owned(),
            per_second,
            estimated_remaining_seconds: (per_second > 0.0).then(|| (self.total - done) as f64 / per_second),
            message: format!("writing {file}"),
        });
    }
}
