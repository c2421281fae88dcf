//! Executes a plan: describes for every tensor of a file where its bytes are or how they are
//! generated. The store assembles them. Only transposed tensors are held in memory as a whole, one
//! at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use inheritune_checkpoint::decoder_config::Init;
use inheritune_checkpoint::slice_plan::{Origin, Placement, Reading, SourceTensor};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::job::Progress;
use inheritune_objects::{Chunk, Chunks, Folder, Making, ObjectError, Segment, WrittenBytes};
use inheritune_runtime::worker::{JobContext, ProgressSender, StopSignal};
use inheritune_store::artifacts::ArtifactWriter;

use crate::error::SlicerError;
use crate::fresh::FreshChunk;
use crate::layout::WeightsFile;
use crate::plan::PlannedSlice;
use crate::transpose::transposed;

/// Longest tensor that is transposed in memory: the projections of a model with a width of 16,384.
const MAX_TRANSPOSED_BYTES: u64 = 4 << 30;
/// Interval between progress updates.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Writes the target's weights, reports progress, and stops on request.
pub struct Copier<'a> {
    planned: &'a PlannedSlice,
    seed: u64,
    stop: StopSignal,
    meter: Meter,
    digests: BTreeMap<String, Sha256Digest>,
}

impl<'a> Copier<'a> {
    /// Creates a copier for `planned` whose fresh tensors are seeded by `seed`.
    pub fn new(planned: &'a PlannedSlice, seed: u64, context: &JobContext) -> Self {
        let meter = Meter {
            sender: context.progress.clone(),
            total: planned.plan.size_bytes(),
            written: WrittenBytes::default(),
            started: Instant::now(),
        };
        Self { planned, seed, stop: context.stop.clone(), meter, digests: BTreeMap::new() }
    }

    /// Writes one weights file.
    ///
    /// # Errors
    /// [`SlicerError::Stopped`]; a source that cannot be read or that changed during the copy; the
    /// store's errors.
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
        // The first digest belongs to the header.
        for (placement, digest) in file.tensors.iter().zip(digests.iter().skip(1)) {
            self.digests.insert(placement.target.name.clone(), digest.sha256);
        }
        Ok(())
    }

    /// The digests of all written tensors, by name.
    pub fn into_digests(self) -> BTreeMap<String, Sha256Digest> {
        self.digests
    }

    fn segment(&self, placement: &Placement) -> Result<Segment, SlicerError> {
        match &placement.origin {
            Origin::Copied { source, tensor } => match self.planned.folder(*source) {
                Some(folder) => copied(folder, tensor),
                // A plan copies only from the sources it was made from.
                None => Ok(Segment::empty()),
            },
            Origin::Tied { .. } => Ok(Segment::empty()),
            Origin::Fresh { init } => Ok(Segment { chunks: fresh(placement, self.seed, *init), sha256: None }),
        }
    }
}

fn copied(folder: &Arc<Folder>, tensor: &SourceTensor) -> Result<Segment, SlicerError> {
    let SourceTensor { file, bytes, .. } = tensor;
    match tensor.reading {
        Reading::Whole => {
            let sha256 = folder.known_digest(file, bytes);
            Ok(Segment { chunks: vec![Chunk::Copied(folder.range(file, bytes.clone())?)].into(), sha256 })
        }
        Reading::Parts { first, length, step, count } => {
            let starts = (0..count).map(|part| bytes.start + first + part * step);
            let chunks = starts.map(|start| folder.range(file, start..start + length).map(Chunk::Copied));
            Ok(Segment { chunks: chunks.collect::<Result<Vec<_>, _>>()?.into(), sha256: None })
        }
        Reading::Transposed if tensor.size_bytes() > MAX_TRANSPOSED_BYTES => {
            let problem = format!(
                "tensor `{}` must be transposed in memory, but is longer than {MAX_TRANSPOSED_BYTES} bytes",
                tensor.name
            );
            Err(ObjectError::Corrupt { name: file.clone(), problem }.into())
        }
        Reading::Transposed => {
            let identity = format!("transposed {:?} {}", tensor.shape, folder.range(file, bytes.clone())?.identity());
            let (folder, tensor) = (folder.clone(), tensor.clone());
            let making = Making {
                size_bytes: tensor.size_bytes(),
                identity,
                make: Box::new(move || Box::pin(async move { read_transposed(&folder, &tensor).await })),
            };
            Ok(Segment { chunks: vec![Chunk::Made(making)].into(), sha256: None })
        }
    }
}

async fn read_transposed(folder: &Folder, tensor: &SourceTensor) -> Result<Bytes, ObjectError> {
    let mut bytes = Vec::with_capacity(tensor.size_bytes() as usize);
    let mut pieces = folder.stream(&tensor.file, tensor.bytes.clone()).await?;
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    let (rows, number_bytes) = (tensor.shape.last().copied().unwrap_or(1) as usize, tensor.dtype.size_bytes() as usize);
    in_a_thread(move || Bytes::from(transposed(&bytes, rows, number_bytes))).await
}

/// The bytes of a fresh tensor, generated chunk by chunk on demand.
fn fresh(placement: &Placement, seed: u64, init: Init) -> Chunks {
    let numbers = placement.target.shape.iter().product();
    let what = (init, placement.dtype);
    // The tensor's identity determines its chunks, which need no identities of their own.
    let identity = format!("fresh {:?} {seed} {numbers} {what:?}", placement.target.name);
    let chunks = FreshChunk::of(&placement.target.name, seed, numbers, what).map(|chunk| {
        let (size_bytes, identity) = (chunk.numbers * chunk.dtype.size_bytes(), String::new());
        Making { size_bytes, identity, make: Box::new(move || Box::pin(in_a_thread(move || chunk.bytes()))) }
    });
    Chunks::made(placement.size_bytes(), &identity, chunks)
}

async fn in_a_thread(work: impl FnOnce() -> Bytes + Send + 'static) -> Result<Bytes, ObjectError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panicked| ObjectError::GivenUp(format!("a slicer thread failed: {panicked}")))
}

struct Meter {
    sender: ProgressSender,
    total: u64,
    written: WrittenBytes,
    started: Instant,
}

impl Meter {
    fn tell(&self, file: &str) {
        // The written bytes include headers, which the total does not.
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

#[cfg(test)]
mod tests {
    use inheritune_checkpoint::decoder_config::{TensorRole, TensorSpec};
    use inheritune_checkpoint::safetensors_header::Dtype;

    use super::*;

    #[test]
    fn s1_of_a_fresh_tensor_no_chunk_is_there_before_its_turn() {
        let init = Init::Normal { std: 0.02 };
        let target = TensorSpec {
            name: "lm_head.weight".to_owned(),
            shape: vec![1 << 32, 1 << 24],
            role: TensorRole::Head,
            init,
            tied_to: None,
        };
        let placement = Placement { target, dtype: Dtype::F32, origin: Origin::Fresh { init } };
        // Collecting its 2^36 chunks would take terabytes.
        let segment = Segment { chunks: fresh(&placement, 1, init), sha256: None };
        assert_eq!(segment.size_bytes(), 1 << 58);
    }
}
