//! Writing one object of any size with a few parts of memory.

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
use super::folder::Stretch;
use crate::ObjectError;
use crate::error::corrupt;

/// First parts of a large object; later ones grow, since S3 takes [`MAX_PARTS`].
const PART_BYTES: usize = 6 << 20;
/// After so many parts they are twice as long: 390 GB in all.
const PARTS_OF_A_SIZE: usize = 2_000;
/// Most parts of an object.
const MAX_PARTS: usize = 10_000;
/// Least length of every part but the last.
pub(super) const MIN_PART_BYTES: u64 = 5 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 3;
/// How long parts on their way are waited for where the upload is given up.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes handled between two looks at the parts on their way.
const PIECE_BYTES: usize = 1 << 20;

/// An object on its way into a store. Nothing is readable before [`Upload::finish`].
pub struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    progress: UploadProgress,
    state: State,
}

/// How far an upload is. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct UploadProgress(Arc<Mutex<ProgressState>>);

#[derive(Debug, Default)]
struct ProgressState {
    segments: Vec<SegmentDigest>,
    upload_id: Option<MultipartId>,
    /// Those that arrived, by number: not always in order.
    parts: BTreeMap<usize, FinishedPart>,
}

/// What of an object is finished, from its first byte on.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finished {
    /// Digests of the segments whose bytes were handed over.
    pub segments: Vec<SegmentDigest>,
    /// The parts that the store has; none for an object that is not uploaded in parts.
    pub parts: Option<FinishedParts>,
}

/// Parts of an upload that the store has. It keeps them until the upload is completed or aborted, whoever began it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedParts {
    /// The store's name for the upload.
    pub upload_id: MultipartId,
    /// In their order.
    pub parts: Vec<FinishedPart>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedPart {
    e_tag: String,
    size_bytes: u64,
}

enum State {
    /// So far it fits into one request.
    Small(PutPayloadMut),
    /// Into a local folder.
    Local(WriteMultipart),
    Parts(Parts),
}

/// An object in numbered parts, uploaded or copied by the server.
struct Parts {
    bucket: Arc<Bucket>,
    store: Arc<dyn MultipartStore>,
    key: Key,
    id: MultipartId,
    /// Not sent yet.
    pending: PutPayloadMut,
    /// The number of the next part, from 0.
    next: usize,
    /// Those on their way, in the order of their numbers.
    sent: VecDeque<AbortOnDropHandle<Result<(), ObjectError>>>,
    /// Where those are noted that arrived.
    progress: UploadProgress,
}

impl UploadProgress {
    /// What is finished by now.
    pub fn finished(&self) -> Finished {
        let state = self.lock();
        let parts = state.parts.iter().enumerate().take_while(|(at, (number, _))| at == *number);
        let parts = parts.map(|(_, (_, part))| part.clone()).collect();
        let parts = state.upload_id.clone().map(|upload_id| FinishedParts { upload_id, parts });
        Finished { segments: state.segments.clone(), parts }
    }

    /// The next segment's bytes were handed over.
    pub(super) fn segment(&self, segment: SegmentDigest) {
        self.lock().segments.push(segment);
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FinishedParts {
    /// Length of all of them.
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

    /// How far it is, for whoever wants to watch.
    pub fn progress(&self) -> UploadProgress {
        self.progress.clone()
    }

    /// Adds bytes; waits while too many are on their way.
    ///
    /// # Errors
    /// The object store's; the upload is then of no more use.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), ObjectError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Whether [`Upload::copy`] may work.
    pub(super) fn can_copy(&self) -> bool {
        self.bucket.copies_parts()
    }

    /// Bytes that are to be written before the next [`Upload::copy`]: every part but the last has a least length.
    pub(super) fn bytes_before_copy(&self) -> u64 {
        let pending = match &self.state {
            State::Small(buffer) | State::Parts(Parts { pending: buffer, .. }) => buffer.content_length() as u64,
            State::Local(_) => 0,
        };
        if pending == 0 { 0 } else { MIN_PART_BYTES.saturating_sub(pending) }
    }

    /// Adds a part of an object in S3, at least [`MIN_PART_BYTES`], which the server copies.
    ///
    /// # Errors
    /// The object store's; the upload is then of no more use.
    pub(super) async fn copy(&mut self, stretch: Stretch) -> Result<(), ObjectError> {
        self.begin_parts().await?;
        if let State::Parts(parts) = &mut self.state {
            parts.send_pending().await?;
            let (bucket, key, id, number) = (self.bucket.clone(), self.key.clone(), parts.id.clone(), parts.next);
            let size_bytes = stretch.size_bytes();
            parts.send(size_bytes, async move { bucket.copy_part((&key, &id, number), &stretch).await }).await?;
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

    /// Gives up on one request.
    async fn begin_parts(&mut self) -> Result<(), ObjectError> {
        let State::Small(buffer) = &mut self.state else { return Ok(()) };
        let buffer = std::mem::take(buffer);
        self.state = match self.bucket.multipart() {
            Some(store) => {
                // One that is begun twice has no part the first time: nothing is kept of it.
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

    /// Makes the object readable. What failed is cleaned up.
    ///
    /// # Errors
    /// The object store's.
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
                    // The first error is the one to tell.
                    drop(parts.abort().await);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives back what the store keeps of an upload that will not be finished.
    ///
    /// # Errors
    /// The object store's.
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
            return Err(corrupt(self.key.as_ref(), format!("has more than the {MAX_PARTS} parts that a store takes")));
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
        // A completion whose reply was lost happened: trying it again finds no upload. Keys are written once, so an object
        // of the right size is this one.
        match (self.bucket.store.head(&self.key).await, parts) {
            (Ok(object), Some(parts)) if object.size == parts.size_bytes() => Ok(()),
            _ => Err(error.into()),
        }
    }

    /// A store may keep a part that arrives after the end, as S3 says of its own: those on their way are waited for.
    async fn abort(self) -> Result<(), ObjectError> {
        let arrival = async {
            for part in self.sent {
                drop(part.await);
            }
        };
        // Those that are late are given up with it.
        drop(tokio::time::timeout(ARRIVAL_LIMIT, arrival).await);
        Ok(self.store.abort_multipart(&self.key, &self.id).await?)
    }
}
