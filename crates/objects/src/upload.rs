//! Writing one object of any size, with only a few parts in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use inheritune_domain::artifact::SegmentDigest;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStoreExt as _, PutPayloadMut, WriteMultipart};
use tokio_util::task::AbortOnDropHandle;

use super::bucket::{Bucket, retried};
use super::folder::ObjectRange;
use crate::ObjectError;
use crate::error::corrupt;

/// Size of the first parts of an object. Later parts are larger, because S3 accepts at most
/// [`MAX_PARTS`].
const PART_BYTES: usize = 6 << 20;
/// Number of parts after which the part size doubles. This allows objects of up to 390 GB.
const PARTS_OF_A_SIZE: usize = 2_000;
/// Most parts of an object.
const MAX_PARTS: usize = 10_000;
/// Smallest part that S3 accepts, except for the last one.
pub(super) const MIN_PART_BYTES: u64 = 5 << 20;
/// Parts in flight at once.
const PARTS_AT_ONCE: usize = 3;
/// Longest wait for parts in flight when an upload is aborted.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes accepted between two checks of the parts in flight.
const PIECE_BYTES: usize = 1 << 20;

/// An upload of one object. The object is not readable before [`Upload::finish`].
pub struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    progress: UploadProgress,
    state: State,
}

/// Progress of an upload. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct UploadProgress(Arc<Mutex<ProgressState>>);

#[derive(Debug, Default)]
struct ProgressState {
    segments: Vec<SegmentDigest>,
    upload_id: Option<MultipartId>,
    /// Uploaded parts by number. They may complete out of order.
    parts: BTreeMap<usize, FinishedPart>,
}

/// The finished beginning of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finished {
    /// Digests of the segments that were written to the upload.
    pub segments: Vec<SegmentDigest>,
    /// The parts that the store has received; `None` if the object is not uploaded in parts.
    pub parts: Option<FinishedParts>,
}

/// Parts of an upload that the store has received. The store keeps them until any client completes
/// or aborts the upload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedParts {
    /// Upload id that the store assigned.
    pub upload_id: MultipartId,
    /// The parts, in order.
    pub parts: Vec<FinishedPart>,
}

/// One part that the store has received.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedPart {
    e_tag: String,
    size_bytes: u64,
}

enum State {
    /// The bytes so far fit into one request.
    Small(PutPayloadMut),
    /// Multipart upload without resumable parts, used for a local folder.
    Local(WriteMultipart),
    Parts(Parts),
}

/// An object in numbered parts, uploaded or copied by the server.
struct Parts {
    bucket: Arc<Bucket>,
    store: Arc<dyn MultipartStore>,
    key: Key,
    id: MultipartId,
    /// Bytes that are not sent yet.
    pending: PutPayloadMut,
    /// The number of the next part, from 0.
    next: usize,
    /// Parts in flight, ordered by number.
    sent: VecDeque<AbortOnDropHandle<Result<(), ObjectError>>>,
    /// Receives the uploaded parts.
    progress: UploadProgress,
}

impl UploadProgress {
    /// Returns what is finished so far.
    pub fn finished(&self) -> Finished {
        let state = self.lock();
        let parts = state.parts.iter().enumerate().take_while(|(at, (number, _))| at == *number);
        let parts = parts.map(|(_, (_, part))| part.clone()).collect();
        let parts = state.upload_id.clone().map(|upload_id| FinishedParts { upload_id, parts });
        Finished { segments: state.segments.clone(), parts }
    }

    /// Records that all bytes of the next segment were written to the upload.
    pub(super) fn segment(&self, segment: SegmentDigest) {
        self.lock().segments.push(segment);
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FinishedParts {
    /// Returns the total size of the parts.
    pub fn size_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.size_bytes))
    }

    pub(super) fn ids(&self) -> Vec<PartId> {
        self.parts.iter().map(|part| PartId { content_id: part.e_tag.clone() }).collect()
    }
}

impl Upload {
    pub(super) fn new(bucket: Arc<Bucket>, key: Key) -> Self {
        Self { bucket, key, progress: UploadProgress::default(), state: State::Small(PutPayloadMut::new()) }
    }

    /// Returns a handle to the upload's progress.
    pub fn progress(&self) -> UploadProgress {
        self.progress.clone()
    }

    /// Appends bytes. Waits while too many parts are in flight.
    ///
    /// # Errors
    /// Errors of the object store. The upload cannot be used afterwards.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), ObjectError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Returns whether [`Upload::copy`] may be supported.
    pub(super) fn can_copy(&self) -> bool {
        self.bucket.copies_parts()
    }

    /// Returns the number of bytes to write before the next [`Upload::copy`], so that the pending
    /// part reaches [`MIN_PART_BYTES`].
    pub(super) fn bytes_before_copy(&self) -> u64 {
        let pending = match &self.state {
            State::Small(buffer) | State::Parts(Parts { pending: buffer, .. }) => buffer.content_length() as u64,
            State::Local(_) => 0,
        };
        if pending == 0 { 0 } else { MIN_PART_BYTES.saturating_sub(pending) }
    }

    /// Appends a range of an object in S3 of at least [`MIN_PART_BYTES`]. The server copies it.
    ///
    /// # Errors
    /// Errors of the object store. The upload cannot be used afterwards.
    pub(super) async fn copy(&mut self, object_range: ObjectRange) -> Result<(), ObjectError> {
        self.begin_parts().await?;
        if let State::Parts(parts) = &mut self.state {
            parts.send_pending().await?;
            let (bucket, key, id, number) = (self.bucket.clone(), self.key.clone(), parts.id.clone(), parts.next);
            let size_bytes = object_range.size_bytes();
            parts.send(size_bytes, async move { bucket.copy_part((&key, &id, number), &object_range).await }).await?;
        }
        Ok(())
    }

    async fn send(&mut self, piece: Bytes) -> Result<(), ObjectError> {
        match &mut self.state {
            State::Small(buffer) => {
                buffer.push(piece);
                if buffer.content_length() >= PART_BYTES {
                    self.begin_parts().await?;
                }
            }
            State::Local(parts) => {
                parts.wait_for_capacity(PARTS_AT_ONCE).await?;
                parts.put(piece);
            }
            State::Parts(parts) => parts.write(piece).await?,
        }
        Ok(())
    }

    /// Switches from a single request to an upload in parts.
    async fn begin_parts(&mut self) -> Result<(), ObjectError> {
        let State::Small(buffer) = &mut self.state else { return Ok(()) };
        let buffer = std::mem::take(buffer);
        self.state = match self.bucket.multipart() {
            Some(store) => {
                // If a retry starts a second upload, the first one has no parts and uses no space.
                let id = retried(|| async { Ok(store.create_multipart(&self.key).await?) }).await?;
                let key = self.key.clone();
                let progress = self.progress.clone();
                progress.lock().upload_id = Some(id.clone());
                let bucket = self.bucket.clone();
                State::Parts(Parts {
                    bucket,
                    store,
                    key,
                    id,
                    pending: buffer,
                    next: 0,
                    sent: VecDeque::new(),
                    progress,
                })
            }
            None => {
                let parts = self.bucket.store.put_multipart(&self.key).await?;
                let mut parts = WriteMultipart::new_with_chunk_size(parts, PART_BYTES);
                for bytes in buffer.freeze() {
                    parts.put(bytes);
                }
                State::Local(parts)
            }
        };
        Ok(())
    }

    /// Completes the upload, which makes the object readable. Aborts the upload if that fails.
    ///
    /// # Errors
    /// Errors of the object store.
    pub async fn finish(self) -> Result<(), ObjectError> {
        match self.state {
            State::Small(buffer) => {
                self.bucket.store.put(&self.key, buffer.freeze()).await?;
            }
            State::Local(parts) => {
                parts.finish().await?;
            }
            State::Parts(mut parts) => {
                if let Err(error) = parts.finish().await {
                    // Report the first error.
                    drop(parts.abort().await);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Aborts the upload and frees its parts in the store.
    ///
    /// # Errors
    /// Errors of the object store.
    pub async fn abort(self) -> Result<(), ObjectError> {
        match self.state {
            State::Small(_) => Ok(()),
            State::Local(parts) => Ok(parts.abort().await?),
            State::Parts(parts) => parts.abort().await,
        }
    }
}

impl Parts {
    async fn write(&mut self, piece: Bytes) -> Result<(), ObjectError> {
        self.pending.push(piece);
        if self.pending.content_length() >= PART_BYTES << (self.next / PARTS_OF_A_SIZE) {
            self.send_pending().await?;
        }
        Ok(())
    }

    async fn send_pending(&mut self) -> Result<(), ObjectError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.pending).freeze();
        let (store, key, id, number) = (self.store.clone(), self.key.clone(), self.id.clone(), self.next);
        let size_bytes = part.content_length() as u64;
        self.send(size_bytes, async move { Ok(store.put_part(&key, &id, number, part).await?) }).await
    }

    async fn send(
        &mut self,
        size_bytes: u64,
        part: impl Future<Output = Result<PartId, ObjectError>> + Send + 'static,
    ) -> Result<(), ObjectError> {
        if self.next >= MAX_PARTS {
            return Err(corrupt(self.key.as_ref(), format!("needs more than {MAX_PARTS} parts, the limit of S3")));
        }
        while self.sent.len() >= PARTS_AT_ONCE {
            self.wait_for_one().await?;
        }
        let (number, progress) = (self.next, self.progress.clone());
        self.next += 1;
        self.sent.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
            let part = FinishedPart { e_tag: part.await?.content_id, size_bytes };
            progress.lock().parts.insert(number, part);
            Ok(())
        })));
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<(), ObjectError> {
        if let Some(part) = self.sent.front_mut() {
            let part = part.await;
            self.sent.pop_front();
            part.unwrap_or_else(|broken| Err(corrupt("uploading task", broken)))?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ObjectError> {
        self.send_pending().await?;
        while !self.sent.is_empty() {
            self.wait_for_one().await?;
        }
        let parts = self.progress.finished().parts;
        let ids = parts.as_ref().map(FinishedParts::ids).unwrap_or_default();
        let Err(error) = self.store.complete_multipart(&self.key, &self.id, ids).await else { return Ok(()) };
        // If the reply to a completion was lost, the retry finds no upload. Keys are written only
        // once, so an object of the expected size is this one.
        match (self.bucket.store.head(&self.key).await, parts) {
            (Ok(object), Some(parts)) if object.size == parts.size_bytes() => Ok(()),
            _ => Err(error.into()),
        }
    }

    /// Aborts the upload. Waits for parts in flight first, because S3 may keep parts that arrive
    /// after the upload was aborted.
    async fn abort(self) -> Result<(), ObjectError> {
        let arrival = async {
            for part in self.sent {
                drop(part.await);
            }
        };
        // Parts that take longer are not waited for.
        drop(tokio::time::timeout(ARRIVAL_LIMIT, arrival).await);
        Ok(self.store.abort_multipart(&self.key, &self.id).await?)
    }
}
