//! Publishing and reading artifacts. The same scenarios run on a local folder, in memory and over
//! the S3 protocol.
#![allow(clippy::unwrap_used)]

#[path = "support/s3.rs"]
mod s3;
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use inheritune_domain::artifact::{Artifact, ArtifactKind, FileDigest, Location};
use inheritune_domain::id::{ArtifactId, JobId, Sha256Digest};
use inheritune_domain::spec::JobKind;
use inheritune_objects::{FileCache, ObjectError, ObjectsConfig, StorageConfig};
use inheritune_store::artifacts::{ArtifactFilter, ArtifactWriter};
use inheritune_store::jobs::{Lease, LeaseKey, Page};
use inheritune_store::{Store, StoreError};
use s3::S3Server;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

/// More than two parts of an upload, and not a multiple of any buffer size.
const LARGE_BYTES: usize = (40 << 20) + 12_345;
/// Timeout for background work.
const LIMIT: Duration = Duration::from_secs(20);

/// A store, and the places where its objects can be inspected and damaged.
struct House {
    store: Store,
    dir: TempDir,
    /// The folder in which every object is a file; `None` in memory.
    objects: Option<PathBuf>,
    s3: Option<S3Server>,
}

impl House {
    async fn folder() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/when absent");
        let storage = StorageConfig::folder(path.clone());
        Self { store: store(storage).await, dir, objects: Some(path), s3: None }
    }

    async fn memory() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: store(StorageConfig::Memory).await, dir, objects: None, s3: None }
    }

    async fn s3() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = S3Server::start().await;
        let store = store(s3.storage("some/prefix")).await;
        Self { store, dir, objects: Some(s3.path("some/prefix")), s3: Some(s3) }
    }

    async fn lease(&self) -> Lease {
        support::submit_and_claim(&self.store, JobKind::Slice).await
    }

    async fn begin(&self) -> ArtifactWriter {
        self.store.begin_artifact(ArtifactKind::Checkpoint, self.lease().await.key)
    }

    /// An artifact of three small files.
    async fn small(&self, lease: LeaseKey, kind: ArtifactKind, step: Option<u64>) -> Artifact {
        let mut writer = self.store.begin_artifact(kind, lease);
        writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
        writer.put_bytes("weights/a.bin", Bytes::from(pattern(1000))).await.unwrap();
        writer.put_bytes("empty", Bytes::new()).await.unwrap();
        writer.publish(step, json!({"n": 1})).await.unwrap()
    }

    async fn listed(&self) -> Vec<ArtifactId> {
        let page = Page { size: 100, token: None };
        let listed = self.store.list_artifacts(&ArtifactFilter::default(), &page).await.unwrap();
        listed.items.into_iter().map(|artifact| artifact.id).collect()
    }

    /// Returns the files in the object store, finished or not, as far as they are visible.
    fn kept(&self) -> Vec<PathBuf> {
        let mut kept = self.objects.as_deref().map(files).unwrap_or_default();
        kept.extend(self.s3.iter().flat_map(S3Server::parts));
        kept
    }

    /// Waits until no files are left.
    async fn until_empty(&self) {
        let emptied = async {
            while !self.kept().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, emptied).await.unwrap_or_else(|_| panic!("left: {:?}", self.kept()));
    }

    fn path(&self, artifact: &Artifact, name: &str) -> PathBuf {
        self.objects.as_ref().unwrap().join(&artifact.location).join(name)
    }
}

async fn store(storage: StorageConfig) -> Store {
    support::store_with(ObjectsConfig { storage, allowed_uris: Vec::new() }).await
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn at(artifact: &Artifact) -> Location {
    Location::Artifact(artifact.id)
}

async fn published_artifacts_are_read_back(house: House) {
    let large = pattern(LARGE_BYTES);
    let local = house.dir.path().join("local.bin");
    std::fs::write(&local, &large[..20 << 20]).unwrap();
    let lease = house.lease().await;
    let mut writer = house.store.begin_artifact(ArtifactKind::Checkpoint, lease.key);
    writer.put_file("weights/local.bin", &local).await.unwrap();
    let mut file = writer.create("weights/large.bin").await.unwrap();
    for piece in large.chunks((3 << 20) + 7) {
        file.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let written = file.finish().await.unwrap();
    assert_eq!((written.size_bytes, written.digest), (large.len() as u64, FileDigest::Whole(Sha256Digest::of(&large))));
    writer.put_bytes("empty", Bytes::new()).await.unwrap();
    writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    for taken in ["config.json", "config.json/x", "weights", "manifest.json", "../up"] {
        let error = writer.put_bytes(taken, Bytes::new()).await.unwrap_err();
        assert!(matches!(&error, StoreError::Location { location, .. } if location.ends_with(taken)), "{error}");
    }
    assert!(house.listed().await.is_empty());
    let artifact = writer.publish(Some(7), json!({"layers": 3})).await.unwrap();

    assert_eq!(house.store.artifact(artifact.id).await.unwrap(), artifact);
    assert_eq!(house.listed().await, [artifact.id]);
    assert_eq!((artifact.job, artifact.step, artifact.run), (Some(lease.key.job), Some(7), None));
    assert_eq!(artifact.size_bytes, (large.len() + (20 << 20) + 2) as u64);
    let prefix = format!("artifacts/checkpoint/{}/{}-", lease.key.job, lease.key.token);
    assert!(artifact.location.starts_with(&prefix), "{}", artifact.location);

    let folder = house.store.open(&at(&artifact)).await.unwrap();
    let names: Vec<_> = folder.files().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "empty", "weights/large.bin", "weights/local.bin"]);
    assert_eq!(folder.read("config.json", 2).await.unwrap(), "{}");
    assert!(folder.read("empty", 0).await.unwrap().is_empty());
    let error = folder.read("config.json", 1).await.unwrap_err().to_string();
    assert_eq!(error, format!("artifact://{}/config.json: is 2 bytes; the limit is 1", artifact.id));
    let error = folder.read("absent", 1).await.unwrap_err().to_string();
    assert_eq!(error, format!("file artifact://{}/absent does not exist", artifact.id));
    let length = large.len() as u64;
    for (start, end) in
        [(0, 0), (5, 6), (8 << 20, (8 << 20) + 1), (17, (24 << 20) + 3), (length - 1, length), (0, length)]
    {
        let wanted = &large[start as usize..end as usize];
        assert!(folder.read_range("weights/large.bin", start..end).await.unwrap() == wanted, "{start}..{end}");
        let pieces = folder.stream("weights/large.bin", start..end).await.unwrap();
        let pieces: Vec<Bytes> = pieces.try_collect().await.unwrap();
        assert!(pieces.concat() == wanted, "{start}..{end}");
    }
    let past_the_end = folder.read_range("weights/large.bin", 1..length + 1).await.unwrap_err();
    assert!(matches!(past_the_end, ObjectError::Corrupt { .. }), "{past_the_end}");
    assert!(folder.stream("weights/large.bin", 1..length + 1).await.is_err());

    let fetched = house.dir.path().join("fetched");
    folder.fetch(&fetched).await.unwrap();
    assert!(std::fs::read(fetched.join("weights/large.bin")).unwrap() == large);
    assert!(std::fs::read(fetched.join("weights/local.bin")).unwrap() == large[..20 << 20]);
    assert_eq!((files(&fetched).len(), std::fs::read(fetched.join("empty")).unwrap().len()), (4, 0));
    let one = house.dir.path().join("one");
    folder.fetch_file("config.json", &one).await.unwrap();
    assert_eq!(files(&one), [one.join("config.json")]);

    let downloads = house.store.artifact_files(artifact.id).await.unwrap();
    let config = &downloads[0];
    assert_eq!((config.name.as_str(), config.size_bytes), ("config.json", 2));
    assert_eq!(config.digest, Some(FileDigest::Whole(Sha256Digest::of(b"{}"))));
    assert_eq!(download(&config.download_url).await.unwrap_or("{}".to_owned()), "{}");
}

/// Downloads as a client without credentials. Returns `None` for a store in memory.
async fn download(url: &str) -> Option<String> {
    let url = url::Url::parse(url).unwrap();
    match url.scheme() {
        "memory" => None,
        "file" => Some(std::fs::read_to_string(url.to_file_path().unwrap()).unwrap()),
        scheme => {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            assert_eq!(scheme, "http");
            let address = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
            let target = format!("{}?{}", url.path(), url.query().unwrap());
            assert!(target.contains("X-Amz-Expires=3600"), "{target}");
            let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut reply = String::new();
            socket.read_to_string(&mut reply).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 20"), "{reply}");
            Some(reply.split_once("\r\n\r\n").unwrap().1.to_owned())
        }
    }
}

async fn a_stale_lease_publishes_nothing(house: House) {
    let stale = house.lease().await;
    let mut late = house.store.begin_artifact(ArtifactKind::Checkpoint, stale.key);
    late.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    let mut later = house.store.begin_artifact(ArtifactKind::Checkpoint, stale.key);
    later.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();

    support::let_lease_run_out(&house.store, &stale).await;
    let error = late.publish(None, json!({})).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost(job) if job == stale.key.job), "{error}");

    // Another worker holds the job now and publishes.
    house.store.expire_leases().await.unwrap();
    let current = support::claim(&house.store).await;
    assert_eq!(current.key.job, stale.key.job);
    let published = house.small(current.key, ArtifactKind::Checkpoint, None).await;
    let error = later.publish(None, json!({})).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost(_)), "{error}");

    assert_eq!(house.listed().await, [published.id]);
    let folder = published.location.rsplit_once('/').unwrap().1;
    let kept = house.kept();
    assert!(kept.iter().all(|path| path.components().any(|part| part.as_os_str() == folder)), "{kept:?}");
    assert_eq!(kept.len(), if house.objects.is_some() { 4 } else { 0 });
}

async fn what_is_not_published_is_cleaned_up(house: House) {
    let large = Bytes::from(pattern(LARGE_BYTES));
    let mut writer = house.begin().await;
    writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    let mut broken_off = writer.create("large.bin").await.unwrap();
    broken_off.write(large.clone()).await.unwrap();
    drop(broken_off);
    assert_eq!(house.kept().is_empty(), house.objects.is_none());
    writer.abandon().await.unwrap();
    house.until_empty().await;

    let mut writer = house.begin().await;
    writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    let mut broken_off = writer.create("large.bin").await.unwrap();
    broken_off.write(large.clone()).await.unwrap();
    drop(broken_off);
    drop(writer);
    house.until_empty().await;

    // An unfinished file is not part of the published artifact.
    let mut writer = house.begin().await;
    drop(writer.create("large.bin").await.unwrap());
    let mut broken_off = writer.create("larger.bin").await.unwrap();
    broken_off.write(large).await.unwrap();
    drop(broken_off);
    writer.put_bytes("config.json", Bytes::from_static(b"{}")).await.unwrap();
    let missing = writer.put_file("missing", Path::new("/nonexistent/file")).await.unwrap_err();
    assert!(missing.to_string().starts_with("/nonexistent/file: "), "{missing}");
    let artifact = writer.publish(None, json!({})).await.unwrap();
    let folder = house.store.open(&at(&artifact)).await.unwrap();
    assert_eq!(folder.files().len(), 1);
}

async fn deleted_artifacts_are_gone(house: House) {
    let lease = house.lease().await;
    let old = house.small(lease.key, ArtifactKind::TrainingState, Some(10)).await;
    let newest = house.small(lease.key, ArtifactKind::TrainingState, Some(30)).await;
    let middle = house.small(lease.key, ArtifactKind::TrainingState, Some(20)).await;
    let checkpoint = house.small(lease.key, ArtifactKind::Checkpoint, Some(40)).await;
    let states = async || -> Vec<ArtifactId> {
        let states = house.store.training_states(lease.key.job).await.unwrap();
        states.into_iter().map(|state| state.id).collect()
    };
    assert_eq!(states().await, [newest.id, middle.id, old.id]);

    house.store.delete_artifact(middle.id).await.unwrap();
    assert_eq!(states().await, [newest.id, old.id]);
    assert_eq!(house.listed().await, [checkpoint.id, newest.id, old.id]);
    for error in [
        house.store.artifact(middle.id).await.unwrap_err(),
        house.store.open(&at(&middle)).await.unwrap_err(),
        house.store.artifact_files(middle.id).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), format!("artifact {} (deleted) does not exist", middle.id));
    }
    if house.objects.is_some() {
        assert!(!house.path(&middle, "manifest.json").exists() && house.path(&old, "manifest.json").exists());
        assert_eq!(house.kept().len(), 12);
    }
    house.store.delete_artifact(middle.id).await.unwrap();
    house.store.open(&at(&old)).await.unwrap().fetch(&house.dir.path().join("old")).await.unwrap();

    let unknown = ArtifactId(Uuid::new_v4());
    let error = house.store.delete_artifact(unknown).await.unwrap_err();
    assert_eq!(error.to_string(), format!("artifact {unknown} does not exist"));

    for _ in 0..2 {
        assert!(house.store.pin_artifact(old.id, true).await.unwrap().pinned);
    }
    let error = house.store.delete_artifact(old.id).await.unwrap_err();
    assert_eq!(error.to_string(), format!("artifact {} is pinned; unpin it first", old.id));
    house.store.open(&at(&old)).await.unwrap().fetch(&house.dir.path().join("pinned")).await.unwrap();
    assert!(!house.store.pin_artifact(old.id, false).await.unwrap().pinned);
    house.store.delete_artifact(old.id).await.unwrap();
    for (id, named) in [(old.id, format!("{} (deleted)", old.id)), (unknown, unknown.to_string())] {
        let error = house.store.pin_artifact(id, true).await.unwrap_err();
        assert_eq!(error.to_string(), format!("artifact {named} does not exist"));
    }
}

async fn damage_is_named(house: House) {
    type Damage = fn(&Path);
    let truncated: Damage = |path| {
        let length = path.metadata().unwrap().len();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length - 1).unwrap();
    };
    let longer: Damage = |path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.push(0);
        std::fs::write(path, bytes).unwrap();
    };
    let flipped: Damage = |path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let missing: Damage = |path| std::fs::remove_file(path).unwrap();
    let lease = house.lease().await;
    let corrupt = |error: ObjectError, artifact: &Artifact, name: &str, problem: &str| {
        let ObjectError::Corrupt { name: named, problem: told } = error else { panic!("{error}") };
        assert_eq!(named, format!("artifact://{}/{name}", artifact.id));
        assert!(told.contains(problem), "{told}");
    };
    let name = "weights/a.bin";
    // The last column: whether reading a part of the file also detects the damage.
    for (damage, problem, told_by_part) in [
        (truncated, "is 999 bytes, but the manifest lists 1000", true),
        (longer, "is 1001 bytes, but the manifest lists 1000", true),
        (flipped, "is damaged: its SHA-256 is ", false),
        (missing, "is missing, but the manifest lists it", true),
    ] {
        let artifact = house.small(lease.key, ArtifactKind::Checkpoint, None).await;
        let folder = house.store.open(&at(&artifact)).await.unwrap();
        damage(&house.path(&artifact, name));
        let dir = house.dir.path().join(artifact.id.to_string());
        corrupt(folder.fetch(&dir).await.unwrap_err(), &artifact, name, problem);
        assert!(files(&dir).iter().all(|path| !path.to_str().unwrap().contains("a.bin")), "{:?}", files(&dir));
        corrupt(folder.read(name, 1 << 20).await.unwrap_err(), &artifact, name, problem);
        if told_by_part {
            corrupt(folder.read_range(name, 0..10).await.unwrap_err(), &artifact, name, problem);
            corrupt(folder.read_range(name, 999..1000).await.unwrap_err(), &artifact, name, problem);
            let stream = folder.stream(name, 0..1000).await.unwrap();
            corrupt(stream.try_collect::<Vec<_>>().await.unwrap_err(), &artifact, name, problem);
        }
    }
    let artifact = house.small(lease.key, ArtifactKind::Checkpoint, None).await;
    let folder = house.store.open(&at(&artifact)).await.unwrap();
    missing(&house.path(&artifact, "empty"));
    corrupt(folder.read("empty", 0).await.unwrap_err(), &artifact, "empty", "is missing");
    for (damage, problem) in
        [(flipped, "is damaged: its SHA-256 is "), (truncated, "is damaged"), (missing, "is missing in ")]
    {
        let artifact = house.small(lease.key, ArtifactKind::Checkpoint, None).await;
        damage(&house.path(&artifact, "manifest.json"));
        let StoreError::Corrupt { name, problem: told } = house.store.open(&at(&artifact)).await.unwrap_err() else {
            panic!("a damaged manifest was read");
        };
        assert_eq!(name, format!("artifact://{}/manifest.json", artifact.id));
        assert!(told.contains(problem), "{told}");
    }
}

async fn orphans_are_swept(house: House) {
    let crash = async |lease: &Lease| {
        let mut writer = house.store.begin_artifact(ArtifactKind::Scores, lease.key);
        writer.put_bytes("scores.json", Bytes::from_static(b"{}")).await.unwrap();
        std::mem::forget(writer);
    };
    let (now, hour) = (Duration::ZERO, Duration::from_secs(3600));
    let lease = house.lease().await;
    let published = house.small(lease.key, ArtifactKind::Checkpoint, None).await;
    crash(&lease).await;
    // Files of another deployment in the same bucket, whose job is not in this database.
    let stranger = LeaseKey { job: JobId(Uuid::new_v4()), token: lease.key.token };
    crash(&Lease { key: stranger, ..lease.clone() }).await;
    // An unfinished file of a killed worker in a local folder.
    if house.s3.is_none() && house.objects.is_some() {
        let killed = house.path(&published, "../../..").join(format!("scores/{}/{}-0", lease.key.job, lease.key.token));
        std::fs::create_dir_all(&killed).unwrap();
        std::fs::write(killed.join("half.bin#1"), "half").unwrap();
    }
    // Object stores report times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;

    assert_eq!(house.store.sweep_orphans(now).await.unwrap(), 0, "its lease holds");
    support::let_lease_run_out(&house.store, &lease).await;
    assert_eq!(house.store.expire_leases().await.unwrap(), 1);
    assert_eq!(house.store.sweep_orphans(hour).await.unwrap(), 0, "too young");
    let orphans = if house.s3.is_none() && house.objects.is_some() { 2 } else { 1 };
    assert_eq!(house.store.sweep_orphans(now).await.unwrap(), orphans);
    assert_eq!(house.store.sweep_orphans(now).await.unwrap(), 0);
    house.store.open(&at(&published)).await.unwrap().fetch(&house.dir.path().join("kept")).await.unwrap();
    if house.objects.is_some() {
        assert_eq!(house.kept().len(), 4 + 1);
    }
}

macro_rules! on_folder_and_memory {
    ($($scenario:ident),*) => { $(
        mod $scenario {
            use super::House;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_a_folder() {
                super::$scenario(House::folder().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_memory() {
                super::$scenario(House::memory().await).await;
            }
        }
    )* };
}

on_folder_and_memory!(
    published_artifacts_are_read_back,
    a_stale_lease_publishes_nothing,
    what_is_not_published_is_cleaned_up,
    deleted_artifacts_are_gone,
    orphans_are_swept
);

#[tokio::test]
async fn damage_is_named_in_a_folder() {
    damage_is_named(House::folder().await).await;
}

#[test]
fn every_scenario_on_s3() {
    s3::with_credentials("every_scenario_on_s3", async {
        published_artifacts_are_read_back(House::s3().await).await;
        a_stale_lease_publishes_nothing(House::s3().await).await;
        what_is_not_published_is_cleaned_up(House::s3().await).await;
        deleted_artifacts_are_gone(House::s3().await).await;
        damage_is_named(House::s3().await).await;
        orphans_are_swept(House::s3().await).await;
    });
}

/// A fetched file comes from the cache the next time, and from the store again after its eviction.
#[test]
fn what_was_fetched_from_s3_is_kept() {
    s3::with_credentials("what_was_fetched_from_s3_is_kept", async {
        let house = House::s3().await;
        let traffic = house.s3.as_ref().unwrap().traffic();
        let large = pattern(LARGE_BYTES);
        let mut writer = house.begin().await;
        writer.put_bytes("weights/large.bin", large.clone().into()).await.unwrap();
        writer.put_bytes("empty", Bytes::new()).await.unwrap();
        let artifact = writer.publish(None, json!({})).await.unwrap();
        let cache = FileCache::new(house.dir.path().join("cache"), LARGE_BYTES as u64);
        let fetch = async |name| {
            let before = traffic.passed_bytes.load(Ordering::Relaxed);
            let dir = house.dir.path().join(name);
            house.store.open(&at(&artifact)).await.unwrap().fetch_cached(&dir, &cache).await.unwrap();
            assert!(std::fs::read(dir.join("weights/large.bin")).unwrap() == large);
            assert!(std::fs::read(dir.join("empty")).unwrap().is_empty());
            traffic.passed_bytes.load(Ordering::Relaxed) - before
        };
        assert!(fetch("first").await >= LARGE_BYTES as u64);
        let manifest_alone = fetch("second").await;
        assert!(manifest_alone < 10_000, "{manifest_alone} bytes");
        cache.clear();
        assert!(fetch("third").await >= LARGE_BYTES as u64);
    });
}

/// If the response to a completed request is lost, the retry must not change the result.
#[test]
fn answers_that_get_lost_on_s3_change_nothing() {
    s3::with_credentials("answers_that_get_lost_on_s3_change_nothing", async {
        let house = House::s3().await;
        let traffic = house.s3.as_ref().unwrap().traffic();
        traffic.hangs_up.store(true, Ordering::Relaxed);
        let mut writer = house.begin().await;
        let large = pattern(LARGE_BYTES);
        writer.put_bytes("large", large.clone().into()).await.unwrap();
        writer.put_bytes("small", Bytes::from_static(b"small")).await.unwrap();
        let artifact = writer.publish(None, json!({})).await.unwrap();
        let folder = house.store.open(&at(&artifact)).await.unwrap();
        assert!(folder.read("large", 1 << 30).await.unwrap() == large);
        house.store.delete_artifact(artifact.id).await.unwrap();
        house.until_empty().await;
        let lost = traffic.hung_up_on();
        for kind in ["POST uploads", "PUT partNumber", "POST uploadId", "PUT ", "GET ", "POST delete"] {
            assert!(lost.iter().any(|lost| lost.starts_with(kind)), "{kind}: {lost:?}");
        }
    });
}

#[tokio::test]
async fn r2_a_folder_that_is_not_mounted_is_away_and_nothing_in_it_is_damaged() {
    let house = House::folder().await;
    let artifact = house.small(house.lease().await.key, ArtifactKind::Checkpoint, None).await;
    let location = Location::Artifact(artifact.id);
    let (objects, elsewhere) = (house.objects.clone().unwrap(), house.dir.path().join("elsewhere"));
    std::fs::rename(&objects, &elsewhere).unwrap();
    // A missing folder, and the empty mount point of a disk.
    for is_there in [false, true] {
        if is_there {
            std::fs::create_dir(&objects).unwrap();
        }
        let error = house.store.open(&location).await.unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("disk mounted?"), "{error}");
    }
    std::fs::remove_dir(&objects).unwrap();
    std::fs::rename(&elsewhere, &objects).unwrap();
    house.store.open(&location).await.unwrap();
}
