//! Files assembled from parts of others: from a local folder and from S3, into a folder, memory and
//! S3.
#![allow(clippy::unwrap_used)]

#[path = "support/s3.rs"]
mod s3;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use inheritune_domain::artifact::{Artifact, ArtifactKind, Location, SegmentDigest};
use inheritune_domain::id::Sha256Digest;
use inheritune_domain::spec::JobKind;
use inheritune_objects::{Chunk, Folder, Making, ObjectError, ObjectsConfig, Segment, StorageConfig, WrittenBytes};
use inheritune_store::artifacts::ArtifactWriter;
use inheritune_store::jobs::Lease;
use inheritune_store::{Store, StoreError};
use object_store::ObjectStoreExt as _;
use object_store::aws::AmazonS3;
use s3::{BUCKET, S3Server};
use serde_json::json;
use tempfile::TempDir;

/// Size of the source file: more than several parts of an upload, and not a multiple of any buffer
/// size.
const SOURCE_BYTES: usize = (26 << 20) + 4_321;
const NAME: &str = "weights.bin";

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

async fn store(storage: StorageConfig, allowed: &[String]) -> Store {
    support::store_with(ObjectsConfig { storage, allowed_uris: allowed.to_vec() }).await
}

async fn begin(store: &Store) -> ArtifactWriter {
    let lease = support::submit_and_claim(store, JobKind::Slice).await;
    store.begin_artifact(ArtifactKind::Checkpoint, lease.key)
}

async fn open(store: &Store, uri: &str) -> Folder {
    store.open(&Location::Uri(uri.to_owned())).await.unwrap()
}

fn making(bytes: Vec<u8>) -> Chunk {
    let size_bytes = bytes.len() as u64;
    let identity = Sha256Digest::of(&bytes).to_string();
    Chunk::Made(Making {
        size_bytes,
        identity,
        make: Box::new(move || Box::pin(async move { Ok(Bytes::from(bytes)) })),
    })
}

/// The chunks of a segment: their kind, and the range (start, end) of the source that they equal.
type Recipe = &'static [(&'static str, usize, usize)];

/// Large and small ranges in any order, a segment of several chunks, an empty segment, and a large
/// computed chunk.
const RECIPES: [Recipe; 6] = [
    &[("bytes", 0, 1000)],
    &[("copy", 2 << 20, (13 << 20) + 17)],
    &[("copy", 100, 4196)],
    &[],
    &[("copy", 7, 3 << 20), ("copy", 25 << 20, (25 << 20) + 12_001), ("made", 0, 5 << 20)],
    &[("copy", 15 << 20, SOURCE_BYTES)],
];

fn segments(folder: &Folder, source: &[u8]) -> (Vec<Segment>, Vec<Vec<u8>>) {
    let made = |recipe: &Recipe| {
        let mut content = Vec::new();
        let chunks = recipe.iter().map(|(kind, start, end)| {
            content.extend_from_slice(&source[*start..*end]);
            match *kind {
                "copy" => Chunk::Copied(folder.range(NAME, *start as u64..*end as u64).unwrap()),
                "bytes" => Chunk::Bytes(Bytes::copy_from_slice(&source[*start..*end])),
                _ => making(source[*start..*end].to_vec()),
            }
        });
        (Segment { chunks: chunks.collect::<Vec<_>>().into(), sha256: None }, content)
    };
    RECIPES.iter().map(made).unzip()
}

fn digests(contents: &[Vec<u8>]) -> Vec<SegmentDigest> {
    let digest = |c: &Vec<u8>| SegmentDigest { size_bytes: c.len() as u64, sha256: Sha256Digest::of(c) };
    contents.iter().map(digest).collect()
}

/// Fetches the file of an artifact, which also verifies its digests.
async fn fetched(store: &Store, artifact: &Artifact) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    store.open(&Location::Artifact(artifact.id)).await.unwrap().fetch(dir.path()).await.unwrap();
    std::fs::read(dir.path().join(NAME)).unwrap()
}

/// Assembles a file from parts of the one at `uri`, then another from parts of the first, whose
/// digests are known.
async fn parts_of_a_file_are_put_together(store: &Store, uri: &str) {
    let source = pattern(SOURCE_BYTES);
    let folder = open(store, uri).await;
    let (pieces, contents) = segments(&folder, &source);
    let written = WrittenBytes::default();
    let mut writer = begin(store).await;
    let made = writer.assemble(NAME, pieces, &written).await.unwrap();
    assert_eq!(made, digests(&contents));
    assert_eq!(written.get(), contents.concat().len() as u64);
    let taken = writer.assemble(NAME, Vec::new(), &written).await.unwrap_err();
    assert!(matches!(taken, StoreError::Location { .. }), "{taken}");
    let first = writer.publish(None, json!({})).await.unwrap();
    assert!(fetched(store, &first).await == contents.concat());

    // In reverse order, with digests from the manifest. The first segment has no known digest.
    let folder = store.open(&Location::Artifact(first.id)).await.unwrap();
    let mut at = 0;
    let mut again: Vec<Segment> = made
        .iter()
        .map(|segment| {
            let range = at..at + segment.size_bytes;
            at = range.end;
            let sha256 = folder.known_digest(NAME, &range);
            assert_eq!(sha256, Some(segment.sha256));
            Segment { chunks: vec![Chunk::Copied(folder.range(NAME, range).unwrap())].into(), sha256 }
        })
        .collect();
    assert_eq!(folder.known_digest(NAME, &(0..1001)), None);
    again.reverse();
    again.insert(0, Segment::of_bytes(Bytes::from_static(b"header")));
    let mut expected = vec![b"header".to_vec()];
    expected.extend(contents.into_iter().rev());
    let mut writer = begin(store).await;
    assert_eq!(writer.assemble(NAME, again, &WrittenBytes::default()).await.unwrap(), digests(&expected));
    let second = writer.publish(None, json!({})).await.unwrap();
    assert!(fetched(store, &second).await == expected.concat());
}

fn write_source(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(NAME), pattern(SOURCE_BYTES)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_folder_into_a_folder_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    write_source(&dir.path().join("models/one"));
    let uri = format!("file://{}/models/one", dir.path().display());
    let objects = dir.path().join("objects");
    for storage in [StorageConfig::folder(objects.clone()), StorageConfig::Memory] {
        parts_of_a_file_are_put_together(&store(storage, std::slice::from_ref(&uri)).await, &uri).await;
    }
}

#[test]
fn from_s3_and_into_s3() {
    s3::with_credentials("from_s3_and_into_s3", async {
        let dir = tempfile::tempdir().unwrap();
        write_source(&dir.path().join("models/one"));
        let server = S3Server::start().await;
        write_source(&server.path("models/one"));
        let local = format!("file://{}/models/one", dir.path().display());
        let remote = format!("s3://{BUCKET}/models/one");
        let allowed = [local.clone(), remote.clone()];
        let into_folder = store(StorageConfig::folder(dir.path().join("objects")), &allowed).await;
        parts_of_a_file_are_put_together(&into_folder, &remote).await;
        let into_s3 = store(server.storage("prefix"), &allowed).await;
        parts_of_a_file_are_put_together(&into_s3, &local).await;
        parts_of_a_file_are_put_together(&into_s3, &remote).await;
        assert!(server.traffic().copied_parts.load(Ordering::Relaxed) > 0);
        assert_eq!(server.parts(), Vec::<PathBuf>::new());
    });
}

/// Starts a server that contains the source, and a store in the same bucket.
async fn source_in_s3() -> (S3Server, Store, Folder) {
    let server = S3Server::start().await;
    write_source(&server.path("models/one"));
    let remote = format!("s3://{BUCKET}/models/one");
    let store = store(server.storage(""), std::slice::from_ref(&remote)).await;
    let source = open(&store, &remote).await;
    (server, store, source)
}

#[test]
fn what_is_known_does_not_pass_through_here() {
    s3::with_credentials("what_is_known_does_not_pass_through_here", async {
        let (server, store, source) = source_in_s3().await;
        let whole = |folder: &Folder, sha256| {
            let object_range = folder.range(NAME, 0..SOURCE_BYTES as u64).unwrap();
            vec![
                Segment::of_bytes(Bytes::from_static(b"header")),
                Segment { chunks: vec![Chunk::Copied(object_range)].into(), sha256 },
            ]
        };
        let passed = || server.traffic().passed_bytes.swap(0, Ordering::Relaxed);
        let mut writer = begin(&store).await;
        passed();
        let made = writer.assemble(NAME, whole(&source, None), &WrittenBytes::default()).await.unwrap();
        assert!(passed() >= 2 * SOURCE_BYTES as u64, "once in, once out");
        let known = Some(made[1].sha256);
        let mut writer = begin(&store).await;
        writer.assemble(NAME, whole(&source, known), &WrittenBytes::default()).await.unwrap();
        // The header is filled up to the minimum part size, which is downloaded and uploaded.
        let bytes = passed();
        assert!(bytes < 11 << 20, "{bytes}");
        let artifact = writer.publish(None, json!({})).await.unwrap();
        assert!(fetched(&store, &artifact).await[6..] == pattern(SOURCE_BYTES));

        // A server that does not support copies: the same result, but through this process.
        server.traffic().refuses_copies.store(true, Ordering::Relaxed);
        let mut writer = begin(&store).await;
        writer.assemble(NAME, whole(&source, known), &WrittenBytes::default()).await.unwrap();
        let artifact = writer.publish(None, json!({})).await.unwrap();
        assert!(fetched(&store, &artifact).await[6..] == pattern(SOURCE_BYTES));
    });
}

#[test]
fn a_file_that_changes_is_named_and_nothing_stays() {
    s3::with_credentials("a_file_that_changes_is_named_and_nothing_stays", async {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start().await;
        let objects = dir.path().join("objects");
        let local_dir = dir.path().join("models");
        let local = format!("file://{}", local_dir.display());
        let remote = format!("s3://{BUCKET}/models");
        let allowed = [local.clone(), remote.clone()];
        for storage in [StorageConfig::folder(objects.clone()), server.storage("")] {
            let store = store(storage, &allowed).await;
            for (uri, place) in [(&local, Place::Folder(local_dir.clone())), (&remote, Place::S3(server.client()))] {
                let changes = [
                    (Some(vec![1; SOURCE_BYTES]), "was replaced or modified"),
                    (Some(vec![1; SOURCE_BYTES - 1]), "bytes, but when opened"),
                    (None, "does not exist"),
                ];
                for (change, problem) in changes {
                    place.put(Some(pattern(SOURCE_BYTES))).await;
                    let source = open(&store, uri).await;
                    let (pieces, _) = segments(&source, &pattern(SOURCE_BYTES));
                    // This server lists no ETags, only times in seconds.
                    tokio::time::sleep(Duration::from_millis(1100)).await;
                    place.put(change).await;
                    let mut writer = begin(&store).await;
                    let made = writer.assemble(NAME, pieces, &WrittenBytes::default()).await;
                    let error = made.unwrap_err().to_string();
                    assert!(error.contains(problem) && error.contains(NAME), "{uri}: {error}");
                    writer.abandon().await.unwrap();
                    assert_eq!(server.parts(), Vec::<PathBuf>::new());
                    assert_eq!(files(&objects) + files(&server.path("artifacts")), 0, "{problem}");
                }
            }
        }
    });
}

enum Place {
    Folder(PathBuf),
    S3(AmazonS3),
}

impl Place {
    /// Replaces the source file atomically, or removes it.
    async fn put(&self, content: Option<Vec<u8>>) {
        match (self, content) {
            (Self::Folder(dir), Some(content)) => {
                std::fs::create_dir_all(dir).unwrap();
                std::fs::write(dir.join("new"), content).unwrap();
                std::fs::rename(dir.join("new"), dir.join(NAME)).unwrap();
            }
            (Self::Folder(dir), None) => std::fs::remove_file(dir.join(NAME)).unwrap(),
            (Self::S3(s3), Some(content)) => {
                s3.put(&format!("models/{NAME}").into(), content.into()).await.unwrap();
            }
            (Self::S3(s3), None) => s3.delete(&format!("models/{NAME}").into()).await.unwrap(),
        }
    }
}

/// Creates a folder that contains the source, and a store in another folder.
async fn source_in_a_folder() -> (TempDir, Store, Folder) {
    let dir = tempfile::tempdir().unwrap();
    write_source(&dir.path().join("models"));
    let uri = format!("file://{}/models", dir.path().display());
    let store = store(StorageConfig::folder(dir.path().join("objects")), std::slice::from_ref(&uri)).await;
    let source = open(&store, &uri).await;
    (dir, store, source)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_leaves_nothing() {
    let (dir, store, folder) = source_in_a_folder().await;
    let objects = dir.path().join("objects");
    let (mut pieces, _) = segments(&folder, &pattern(SOURCE_BYTES));
    let never = Making {
        size_bytes: 1,
        identity: "never".to_owned(),
        make: Box::new(|| {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok(Bytes::from_static(b"x"))
            })
        }),
    };
    pieces.push(Segment { chunks: vec![Chunk::Made(never)].into(), sha256: None });
    let mut writer = begin(&store).await;
    let given_up =
        tokio::time::timeout(Duration::from_millis(100), writer.assemble(NAME, pieces, &WrittenBytes::default())).await;
    assert!(given_up.is_err());
    drop(writer);
    let emptied = async {
        while files(&objects) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), emptied).await.unwrap();
}

fn files(dir: &Path) -> usize {
    let Ok(entries) = dir.read_dir() else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

/// A file of four segments. The third one fails or hangs. Counts how often the second one is
/// computed.
struct Unlucky {
    made: Arc<AtomicU64>,
    /// Folder in which journals appear. The third segment fails once a journal contains `parts`
    /// parts.
    places: PathBuf,
    parts: usize,
}

/// Parts of the whole first segment and of the beginning of the second one.
const JOURNALED_PARTS: usize = 5;

async fn journaled(places: &Path, wanted: usize) {
    let parts = || {
        let journals = places.read_dir().ok()?.map(|place| place.unwrap().path().join("journal.json"));
        let journals = journals.filter_map(|journal| std::fs::read_to_string(journal).ok());
        journals.map(|journal| journal.matches("e_tag").count()).max()
    };
    while parts() < Some(wanted) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[derive(Clone, Copy)]
enum Third {
    Fails,
    Hangs,
    Works,
}

impl Unlucky {
    fn new(places: PathBuf, parts: usize) -> Self {
        Self { made: Arc::default(), places, parts }
    }

    fn segments(&self, folder: &Folder, third: Third) -> Vec<Segment> {
        let copied =
            |range| Segment { chunks: vec![Chunk::Copied(folder.range(NAME, range).unwrap())].into(), sha256: None };
        let made = self.made.clone();
        let make = move || {
            made.fetch_add(1, Ordering::Relaxed);
            async { Ok(Bytes::from(pattern(9 << 20))) }.boxed()
        };
        let (places, parts) = (self.places.clone(), self.parts);
        let unlucky = move || {
            async move {
                match third {
                    Third::Fails => {
                        journaled(&places, parts).await;
                        Err(ObjectError::GivenUp("out of luck".to_owned()))
                    }
                    Third::Hangs => std::future::pending().await,
                    Third::Works => Ok(Bytes::from(pattern(6 << 20))),
                }
            }
            .boxed()
        };
        let making = |size_bytes, identity: &str, make: MakeBytes| {
            let making = Making { size_bytes, identity: identity.to_owned(), make };
            Segment { chunks: vec![Chunk::Made(making)].into(), sha256: None }
        };
        let size = SOURCE_BYTES as u64;
        vec![
            copied(0..size),
            making(9 << 20, "second", Box::new(make)),
            making(6 << 20, "third", Box::new(unlucky)),
            copied(100..size - 100),
        ]
    }

    fn content() -> Vec<u8> {
        let source = pattern(SOURCE_BYTES);
        [&source[..], &pattern(9 << 20), &pattern(6 << 20), &source[100..SOURCE_BYTES - 100]].concat()
    }
}

type MakeBytes = Box<dyn FnOnce() -> BoxFuture<'static, Result<Bytes, ObjectError>> + Send>;

/// Lets the lease expire and claims the same job again.
async fn next_attempt(store: &Store, lease: &Lease) -> Lease {
    support::let_lease_run_out(store, lease).await;
    assert_eq!(store.expire_leases().await.unwrap(), 1);
    support::claim(store).await
}

#[test]
fn the_next_attempt_goes_on_from_the_finished_parts() {
    s3::with_credentials("the_next_attempt_goes_on_from_the_finished_parts", async {
        let (server, store, source) = source_in_s3().await;
        let passed = || server.traffic().passed_bytes.swap(0, Ordering::Relaxed);
        let assemble = async |writer: &mut ArtifactWriter, segments| {
            writer.assemble(NAME, segments, &WrittenBytes::default()).await
        };
        for killed in [false, true] {
            let lease = support::submit_and_claim(&store, JobKind::Slice).await;
            let places = server.path("artifacts/checkpoint").join(lease.key.job.to_string());
            let unlucky = Unlucky::new(places.clone(), JOURNALED_PARTS);
            let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
            if killed {
                tokio::select! {
                    made = assemble(&mut writer, unlucky.segments(&source, Third::Hangs)) => panic!("{made:?}"),
                    () = journaled(&places, JOURNALED_PARTS) => {}
                }
                std::mem::forget(writer);
            } else {
                let error = assemble(&mut writer, unlucky.segments(&source, Third::Fails)).await.unwrap_err();
                assert!(error.to_string().contains("out of luck"), "{error}");
                writer.suspend().await.unwrap();
            }
            assert!(!server.parts().is_empty());

            // Two failures in a row: the second attempt makes no further progress.
            let lease = next_attempt(&store, &lease).await;
            let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
            passed();
            assemble(&mut writer, unlucky.segments(&source, Third::Fails)).await.unwrap_err();
            drop(writer);

            let lease = next_attempt(&store, &lease).await;
            let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
            assemble(&mut writer, unlucky.segments(&source, Third::Works)).await.unwrap();
            let copied = passed();
            let artifact = writer.publish(None, json!({})).await.unwrap();
            assert!(fetched(&store, &artifact).await == Unlucky::content());
            // The last segment is downloaded and uploaded. The third one, and the unfinished parts
            // of the second one, are only uploaded.
            let last = SOURCE_BYTES as u64;
            assert!(copied < 2 * last + (6 << 20) + 3 * (9 << 20), "{copied} bytes");
            assert!(unlucky.made.load(Ordering::Relaxed) <= 3);
            assert_eq!(server.parts(), Vec::<PathBuf>::new());
            assert_eq!(files(&places), 2, "{NAME} and the manifest");
        }
    });
}

#[test]
fn only_the_same_bytes_are_gone_on_from() {
    s3::with_credentials("only_the_same_bytes_are_gone_on_from", async {
        let server = S3Server::start().await;
        let client = server.client();
        let key = format!("models/{NAME}").into();
        client.put(&key, pattern(SOURCE_BYTES).into()).await.unwrap();
        let remote = format!("s3://{BUCKET}/models");
        let store = store(server.storage(""), std::slice::from_ref(&remote)).await;
        let lease = support::submit_and_claim(&store, JobKind::Slice).await;
        let unlucky =
            Unlucky::new(server.path("artifacts/checkpoint").join(lease.key.job.to_string()), JOURNALED_PARTS);
        let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
        let segments = unlucky.segments(&open(&store, &remote).await, Third::Fails);
        writer.assemble(NAME, segments, &WrittenBytes::default()).await.unwrap_err();
        writer.suspend().await.unwrap();

        // This server lists no ETags, only times in seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        client.put(&key, vec![7; SOURCE_BYTES].into()).await.unwrap();
        let lease = next_attempt(&store, &lease).await;
        let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
        let segments = unlucky.segments(&open(&store, &remote).await, Third::Works);
        let digests = writer.assemble(NAME, segments, &WrittenBytes::default()).await.unwrap();
        assert_eq!(digests[0].sha256, Sha256Digest::of(&vec![7; SOURCE_BYTES]));
        assert_eq!(unlucky.made.load(Ordering::Relaxed), 2);

        // Work that no attempt resumes is swept, including the parts of uploads.
        writer.suspend().await.unwrap();
        support::let_lease_run_out(&store, &lease).await;
        assert_eq!(store.expire_leases().await.unwrap(), 1);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(store.sweep_orphans(Duration::ZERO).await.unwrap(), 2);
        assert_eq!(server.parts(), Vec::<PathBuf>::new());
        assert_eq!(files(&server.path("artifacts")), 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_folder_whole_files_are_gone_on_from() {
    let (dir, store, folder) = source_in_a_folder().await;
    let objects = dir.path().join("objects");
    let lease = support::submit_and_claim(&store, JobKind::Slice).await;
    let unlucky = Unlucky::new(objects.join("artifacts/checkpoint").join(lease.key.job.to_string()), 0);
    let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
    writer.assemble(NAME, unlucky.segments(&folder, Third::Works), &WrittenBytes::default()).await.unwrap();
    writer.assemble("2", unlucky.segments(&folder, Third::Fails), &WrittenBytes::default()).await.unwrap_err();
    drop(writer);

    let lease = next_attempt(&store, &lease).await;
    let mut writer = store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
    unlucky.made.store(0, Ordering::Relaxed);
    writer.assemble(NAME, unlucky.segments(&folder, Third::Fails), &WrittenBytes::default()).await.unwrap();
    assert_eq!(unlucky.made.load(Ordering::Relaxed), 0);
    let artifact = writer.publish(None, json!({})).await.unwrap();
    assert!(fetched(&store, &artifact).await == Unlucky::content());
    assert_eq!(files(&objects), 2);
}
