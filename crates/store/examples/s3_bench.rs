//! The other side of `make bench`'s S3 measurements.
//!
//! `s3_bench serve ROOT PORT` serves the folders in ROOT as buckets on loopback; for each line on its standard input it
//! says how many bytes passed in and out, and how many parts it copied itself, since the last line.
//! `s3_bench round-trip BUCKET FROM TO FILE` downloads an object to a file, uploads that, and says the seconds.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/s3.rs"]
mod s3;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpListener;

/// Bytes of one request, and requests at once: those of the slicer.
const PART_BYTES: u64 = 8 << 20;
const AT_ONCE: usize = 4;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", root, port] => serve(Path::new(root), port).await,
        ["round-trip", bucket, from, to, file] => round_trip(bucket, (from, to), Path::new(file)).await,
        _ => panic!("usage: s3_bench serve ROOT PORT | round-trip BUCKET FROM TO FILE"),
    }
}

async fn serve(root: &Path, port: &str) {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
    let server = s3::S3Server::serve(root, listener);
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await.unwrap().is_some() {
        let passed = server.traffic().passed_bytes.swap(0, Ordering::Relaxed);
        println!("{passed} {}", server.traffic().copied_parts.swap(0, Ordering::Relaxed));
    }
}

async fn round_trip(bucket: &str, (from, to): (&str, &str), path: &Path) {
    let s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(true).with_region("bench");
    let s3 = s3.build().unwrap();
    let started = Instant::now();
    let from = from.into();
    let size = s3.head(&from).await.unwrap().size;
    let file = std::fs::File::create(path).unwrap();
    futures::stream::iter((0..size).step_by(PART_BYTES as usize))
        .map(|at| {
            let (s3, from) = (&s3, &from);
            async move { s3.get_range(from, at..size.min(at + PART_BYTES)).await.map(|bytes| (at, bytes)) }
        })
        .buffer_unordered(AT_ONCE)
        .try_for_each(|(at, bytes)| {
            file.write_all_at(&bytes, at).unwrap();
            async { Ok(()) }
        })
        .await
        .unwrap();
    let file = std::fs::File::open(path).unwrap();
    let mut upload =
        WriteMultipart::new_with_chunk_size(s3.put_multipart(&to.into()).await.unwrap(), PART_BYTES as usize);
    for at in (0..size).step_by(PART_BYTES as usize) {
        let mut part = vec![0; (size - at).min(PART_BYTES) as usize];
        file.read_exact_at(&mut part, at).unwrap();
        upload.wait_for_capacity(AT_ONCE - 1).await.unwrap();
        upload.put(part.into());
    }
    upload.finish().await.unwrap();
    println!("{}", started.elapsed().as_secs_f64());
}
