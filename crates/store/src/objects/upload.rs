//! Writing one object of any size with a few parts of memory, its digest taken on the way.

use std::sync::Arc;

use bytes::Bytes;
use inheritune_domain::id::Sha256Digest;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, PutPayloadMut, WriteMultipart};
use sha2::{Digest as _, Sha256};

use super::bucket::Bucket;
use crate::StoreError;

/// Part of a large object. S3 takes 10 000 parts: 160 GB a file.
const PART_BYTES: usize = 16 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 3;
/// Bytes handled between two looks at the parts on their way.
const PIECE_BYTES: usize = 1 << 20;

/// An object on its way into a store. Nothing is readable before [`Upload::finish`].
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    hasher: Sha256,
    size_bytes: u64,
    state: State,
}

enum State {
    /// So far it fits into one request.
    Small(PutPayloadMut),
    Parts(WriteMultipart),
}

impl Upload {
    pub(super) fn new(bucket: Arc<Bucket>, key: Key) -> Self {
        Self { bucket, key, hasher: Sha256::new(), size_bytes: 0, state: State::Small(PutPayloadMut::new()) }
    }

    /// Adds bytes; waits while too many are on their way.
    ///
    /// # Errors
    /// The object store's; the upload is then of no more use.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            self.hasher.update(&piece);
            self.size_bytes += piece.len() as u64;
            self.send(&piece).await?;
        }
        Ok(())
    }

    async fn send(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        match &mut self.state {
            State::Small(buffer) => {
                buffer.extend_from_slice(piece);
                if buffer.content_length() >= PART_BYTES {
                    let parts = self.bucket.store.put_multipart(&self.key).await?;
                    let mut parts = WriteMultipart::new_with_chunk_size(parts, PART_BYTES);
                    for bytes in std::mem::take(buffer).freeze() {
                        parts.put(bytes);
                    }
                    self.state = State::Parts(parts);
                }
            }
            State::Parts(parts) => {
                parts.wait_for_capacity(PARTS_AT_ONCE).await?;
                parts.write(piece);
            }
        }
        Ok(())
    }

    /// Makes the object readable; says its size in bytes and its digest. What failed is cleaned up.
    ///
    /// # Errors
    /// The object store's.
    pub(crate) async fn finish(self) -> Result<(u64, Sha256Digest), StoreError> {
        match self.state {
            State::Small(buffer) => self.bucket.store.put(&self.key, buffer.freeze()).await?,
            State::Parts(parts) => parts.finish().await?,
        };
        Ok((self.size_bytes, Sha256Digest(self.hasher.finalize().into())))
    }

    /// Gives back what the store keeps of an upload that will not be finished.
    ///
    /// # Errors
    /// The object store's.
    pub(crate) async fn abort(self) -> Result<(), StoreError> {
        match self.state {
            State::Small(_) => Ok(()),
            State::Parts(parts) => Ok(parts.abort().await?),
        }
    }
}
