//! Downloads an object and uploads it under another key, with object_store alone. `make bench`
//! compares the slicer's copy from S3 to S3 with this baseline. Ranged reads and part uploads
//! overlap; nothing is hashed.
//!
//! Usage: `download_upload BUCKET FROM TO`. The `AWS_*` environment variables specify the server
//! and the credentials.

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, WriteMultipart};

/// Bytes per read and per uploaded part.
const PIECE_BYTES: usize = 8 << 20;
const READS_AT_ONCE: usize = 4;
const PARTS_AT_ONCE: usize = 4;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bucket, from, to] = arguments.as_slice() else { anyhow::bail!("usage: download_upload BUCKET FROM TO") };
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
    let (from, to) = (Key::parse(from)?, Key::parse(to)?);
    let size = store.head(&from).await.with_context(|| format!("{from}"))?.size;
    let starts = (0..size).step_by(PIECE_BYTES);
    let reads = starts.map(|start| store.get_range(&from, start..size.min(start + PIECE_BYTES as u64)));
    let mut reads = futures::stream::iter(reads).buffered(READS_AT_ONCE);
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&to).await?, PIECE_BYTES);
    while let Some(bytes) = reads.try_next().await? {
        upload.wait_for_capacity(PARTS_AT_ONCE).await?;
        upload.put(bytes);
    }
    upload.finish().await?;
    Ok(())
}
