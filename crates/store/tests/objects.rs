//! Reading and registering locations outside the object store.
#![allow(clippy::unwrap_used)]

#[path = "support/s3.rs"]
mod s3;
mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_objects::{Folder, ObjectError, Objects, ObjectsConfig, StorageConfig};
use inheritune_store::artifacts::ArtifactFilter;
use inheritune_store::jobs::Page;
use inheritune_store::{Store, StoreError};
use s3::S3Server;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

async fn store(allowed_uris: Vec<String>) -> Store {
    support::store_with(ObjectsConfig { storage: StorageConfig::Memory, allowed_uris }).await
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn names(folder: &Folder) -> Vec<&str> {
    folder.files().iter().map(|file| file.name.as_str()).collect()
}

async fn open(store: &Store, uri: &str) -> Result<Folder, StoreError> {
    store.open(&Location::Uri(uri.to_owned())).await
}

/// Checks that `uri` is rejected with a [`StoreError::Location`] that contains all of `told`.
async fn refused(store: &Store, uri: &str, told: &[&str]) {
    match open(store, uri).await {
        Err(StoreError::Location { location, problem }) => {
            assert_eq!(location, uri);
            assert!(told.iter().all(|told| problem.contains(told)), "{uri}: {problem}");
        }
        other => panic!("{uri}: {other:?}"),
    }
}

/// Creates `allowed/` with a few files, and `secret/` beside it.
fn tree() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("allowed/model/config.json", "{}"),
        ("allowed/model/weights/a b.bin", "abc"),
        ("allowed/model/empty", ""),
        ("allowed/note.txt", "note"),
        ("secret/key", "key"),
        ("allowed2/x", "x"),
    ] {
        write(&dir.path().join(name), text);
    }
    let uri = format!("file://{}", dir.path().display());
    (dir, uri)
}

#[tokio::test]
async fn folders_and_files_under_an_allowed_prefix_are_read() {
    let (dir, root) = tree();
    let store = store(vec![format!("{root}/allowed/")]).await;
    for uri in
        [format!("{root}/allowed/model"), format!("{root}/allowed/model/"), format!("{root}/allowed/./x/../mod%65l")]
    {
        let folder = open(&store, &uri).await.unwrap();
        assert_eq!(names(&folder), ["config.json", "empty", "weights/a b.bin"]);
        assert_eq!(folder.read("weights/a b.bin", 3).await.unwrap(), "abc");
        assert_eq!(folder.read_range("weights/a b.bin", 1..3).await.unwrap(), "bc");
        assert!(folder.files().iter().all(|file| file.digest.is_none()));
        let fetched = dir.path().join("fetched");
        folder.fetch(&fetched).await.unwrap();
        assert_eq!(std::fs::read_to_string(fetched.join("weights/a b.bin")).unwrap(), "abc");
    }
    let folder = open(&store, &format!("{root}/allowed/note.txt")).await.unwrap();
    assert_eq!(names(&folder), ["note.txt"]);
    assert_eq!(folder.read("note.txt", 10).await.unwrap(), "note");
    let error = folder.read("note.txt", 1).await.unwrap_err().to_string();
    assert_eq!(error, format!("{root}/allowed/note.txt: is 4 bytes; the limit is 1"));
    assert_eq!(names(&open(&store, &format!("{root}/allowed")).await.unwrap()).len(), 4);

    let folder = open(&store, &format!("{root}/allowed/model")).await.unwrap();
    write(&dir.path().join("allowed/model/weights/a b.bin"), "a");
    let error = folder.read("weights/a b.bin", 3).await.unwrap_err().to_string();
    assert!(error.ends_with("model/weights/a b.bin: is 1 bytes, but when opened it had 3"), "{error}");
    std::fs::remove_file(dir.path().join("allowed/model/config.json")).unwrap();
    let error = folder.read("config.json", 3).await.unwrap_err();
    assert!(matches!(&error, ObjectError::NotFound(_)), "{error}");

    let absent = format!("{root}/allowed/absent");
    let error = open(&store, &absent).await.unwrap_err();
    assert_eq!(error.to_string(), format!("file {absent} does not exist"));
    assert!(matches!(error, StoreError::NotFound { kind: "file", .. }));
}

#[tokio::test]
async fn s11_nothing_else_is_read_and_a_refusal_tells_nothing() {
    let (dir, root) = tree();
    let allowed = format!("{root}/allowed");
    let store = store(vec![allowed.clone(), "s3://models/llama".to_owned()]).await;
    let told = ["may not be read by this service", "allowed_uris"];
    for uri in ["secret/key", "secret/absent", "allowed2/x", "", "allowed/../secret/key", "allowed/%2e%2e/secret/key"] {
        refused(&store, &format!("{root}/{uri}"), &told).await;
    }
    for uri in ["s3://models/llama2", "s3://models", "s3://other/llama", "s3://models/llama/../x", "file:///etc/passwd"]
    {
        refused(&store, uri, &told).await;
        // The error does not reveal the allowed prefixes.
        let error = open(&store, uri).await.unwrap_err().to_string().replacen(uri, "", 1);
        assert!(!error.contains(root.as_str()) && !error.contains("s3://"), "{error}");
    }
    refused(&store, &format!("{root}/allowed/x%2F..%2F..%2Fsecret"), &["is not a plain name"]).await;
    refused(&store, "https://example.com/x", &["scheme https"]).await;
    refused(&store, "file://host/x", &["names the host host"]).await;
    refused(&store, "x", &["is not a URI"]).await;

    // Links must not lead out of the allowed prefixes.
    let in_allowed = |name: &str| dir.path().join("allowed").join(name);
    symlink(dir.path().join("secret/key"), in_allowed("key")).unwrap();
    symlink(dir.path().join("secret"), in_allowed("dir")).unwrap();
    for uri in ["key", "dir", "dir/key", "", "dir/absent", "dir/absent/deeper"] {
        let uri = format!("{allowed}/{uri}");
        refused(&store, &uri, &["leads through a link to a location that this service may not read"]).await;
        // The error reveals neither the target nor whether it exists.
        assert!(!open(&store, &uri).await.unwrap_err().to_string().contains("secret"));
    }
    std::fs::remove_file(in_allowed("key")).unwrap();
    std::fs::remove_file(in_allowed("dir")).unwrap();

    // A Hugging Face cache consists of links that stay inside.
    symlink("../model/config.json", in_allowed("weights.link")).unwrap();
    std::fs::create_dir(in_allowed("snapshot")).unwrap();
    symlink("../model/config.json", in_allowed("snapshot/config.json")).unwrap();
    symlink("../model/weights", in_allowed("snapshot/weights")).unwrap();
    let folder = open(&store, &format!("{allowed}/snapshot")).await.unwrap();
    assert_eq!(names(&folder), ["config.json", "weights/a b.bin"]);
    assert_eq!(folder.read("config.json", 2).await.unwrap(), "{}");
    let with_link = open(&store, &allowed).await.unwrap();
    assert_eq!(with_link.dangling_links(), ["weights.link"]);
    assert!(!names(&with_link).contains(&"weights.link"));
    let error = with_link.read("weights.link", 2).await.unwrap_err().to_string();
    assert!(error.contains("weights.link") && error.contains("is a dangling link"), "{error}");
    std::fs::remove_file(in_allowed("weights.link")).unwrap();
    symlink(".", in_allowed("circle")).unwrap();
    refused(&store, &allowed, &["check its links for cycles"]).await;
    // With two such links there are 2^32 paths of 32 folders, so the walk must stop early.
    let circles = in_allowed("circles");
    std::fs::create_dir(&circles).unwrap();
    symlink(".", circles.join("a")).unwrap();
    symlink(".", circles.join("b")).unwrap();
    refused(&store, &format!("{allowed}/circles"), &[]).await;
}

#[tokio::test]
async fn a_prefix_that_is_a_link_is_allowed_with_what_it_leads_to() {
    let (dir, root) = tree();
    symlink(dir.path().join("allowed"), dir.path().join("link")).unwrap();
    let store = store(vec![format!("{root}/link")]).await;
    assert_eq!(names(&open(&store, &format!("{root}/link/model/weights")).await.unwrap()), ["a b.bin"]);
    refused(&store, &format!("{root}/allowed/model"), &["may not be read"]).await;
}

#[tokio::test]
async fn registered_folders_are_artifacts() {
    let (dir, root) = tree();
    let database_url = support::database().await;
    let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: vec![format!("{root}/allowed/")] };
    let store = support::connect(&database_url, objects).await;
    store.migrate().await.unwrap();
    let uri = format!("{root}/allowed/model");
    let register = async |uri: &str, metadata: serde_json::Value, request_id: Option<Uuid>| {
        store.register_artifact(ArtifactKind::Checkpoint, uri, metadata, request_id).await
    };
    let request_id = Some(Uuid::new_v4());
    let artifact = register(&uri, json!({"layers": 3}), request_id).await.unwrap();
    assert_eq!((artifact.size_bytes, artifact.manifest_sha256, artifact.job), (5, None, None));
    assert_eq!((&artifact.location, &artifact.metadata), (&uri, &json!({"layers": 3})));
    assert_eq!(store.artifact(artifact.id).await.unwrap(), artifact);

    let folder = store.open(&Location::Artifact(artifact.id)).await.unwrap();
    assert_eq!(folder.read("config.json", 2).await.unwrap(), "{}");
    let error = folder.read("x", 2).await.unwrap_err().to_string();
    assert_eq!(error, format!("file artifact://{}/x does not exist", artifact.id));
    let files = store.artifact_files(artifact.id).await.unwrap();
    let weights = files.iter().find(|file| file.name == "weights/a b.bin").unwrap();
    assert!(weights.download_url.ends_with("/weights/a%20b.bin"), "{}", weights.download_url);
    let path = url::Url::parse(&weights.download_url).unwrap().to_file_path().unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "abc");

    let again = register(&uri, json!({"layers": 3}), request_id).await.unwrap();
    assert_eq!(again, artifact);
    for reused in [
        register(&uri, json!({"layers": 4}), request_id).await,
        register(&format!("{uri}/weights"), json!({"layers": 3}), request_id).await,
    ] {
        assert!(matches!(reused, Err(StoreError::RequestIdReused(id)) if Some(id) == request_id), "{reused:?}");
    }
    // After a failed registration, the same request id may be used again.
    let request_id = Some(Uuid::new_v4());
    let late = format!("{root}/allowed/late");
    let absent = register(&late, json!({}), request_id).await;
    assert!(matches!(absent, Err(StoreError::NotFound { kind: "file", .. })), "{absent:?}");
    write(&dir.path().join("allowed/late/x"), "x");
    let late = register(&late, json!({}), request_id).await.unwrap();
    let secret = register(&format!("{root}/secret"), json!({}), None).await;
    assert!(matches!(secret, Err(StoreError::Location { .. })), "{secret:?}");

    // A service that may not read the folder cannot read it as an artifact either.
    let stricter = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() };
    let stricter = support::connect(&database_url, stricter).await;
    let error = stricter.open(&Location::Artifact(artifact.id)).await.unwrap_err().to_string();
    assert!(error.contains("may not be read by this service"), "{error}");

    let page = Page { size: 1, token: None };
    let first = store.list_artifacts(&ArtifactFilter::default(), &page).await.unwrap();
    assert_eq!((first.items[0].id, first.items.len()), (late.id, 1));
    let page = Page { size: 1, token: first.next };
    let second = store.list_artifacts(&ArtifactFilter::default(), &page).await.unwrap();
    assert_eq!((second.items[0].id, second.next), (artifact.id, None));
    let filter = ArtifactFilter { kind: Some(ArtifactKind::TokenSet), ..ArtifactFilter::default() };
    assert!(store.list_artifacts(&filter, &page).await.unwrap().items.is_empty());
    let bad = Page { size: 1, token: Some("zz".to_owned()) };
    assert!(matches!(store.list_artifacts(&filter, &bad).await, Err(StoreError::Location { .. })));

    // External files are not deleted.
    store.delete_artifact(artifact.id).await.unwrap();
    assert!(store.artifact(artifact.id).await.is_err());
    assert!(dir.path().join("allowed/model/config.json").exists());
}

#[test]
fn buckets_are_read_as_folders_are() {
    s3::with_credentials("buckets_are_read_as_folders_are", async {
        let server = S3Server::start().await;
        for (key, text) in [("models/a/config.json", "{}"), ("models/a/w/1.bin", "abc"), ("models2/x", "x")] {
            write(&server.path(key), text);
        }
        let bucket = s3::BUCKET;
        let allowed_uris = vec![format!("s3://{bucket}/models")];
        let store = support::store_with(ObjectsConfig { storage: server.storage(""), allowed_uris }).await;
        let folder = open(&store, &format!("s3://{bucket}/models/a/")).await.unwrap();
        assert_eq!(names(&folder), ["config.json", "w/1.bin"]);
        assert_eq!(folder.read("w/1.bin", 3).await.unwrap(), "abc");
        let file = open(&store, &format!("s3://{bucket}/models/a/w/1.bin")).await.unwrap();
        assert_eq!(names(&file), ["1.bin"]);
        assert_eq!(file.read_range("1.bin", 1..2).await.unwrap(), "b");
        refused(&store, &format!("s3://{bucket}/models2/x"), &["may not be read"]).await;
        refused(&store, &format!("s3://{bucket}/models/../models2/x"), &["may not be read"]).await;
        refused(&store, "s3://elsewhere/models", &["may not be read"]).await;
        let error = open(&store, &format!("s3://{bucket}/models/none")).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { kind: "file", .. }), "{error}");
        let uri = format!("s3://{bucket}/models/a");
        let artifact = store.register_artifact(ArtifactKind::Checkpoint, &uri, json!({}), None).await.unwrap();
        assert_eq!(artifact.size_bytes, 5);
        let files = store.artifact_files(artifact.id).await.unwrap();
        let url = &files[1].download_url;
        assert!(url.starts_with("http://localhost:") && url.contains("/models/a/w/1.bin?X-Amz-"), "{url}");
    });
}

#[test]
fn a_bad_configuration_is_named() {
    let error = |storage: StorageConfig, allowed: &[&str]| {
        let allowed_uris = allowed.iter().map(|&uri| uri.to_owned()).collect();
        Objects::new(&ObjectsConfig { storage, allowed_uris }).unwrap_err().to_string()
    };
    let s3 = |bucket: &str, prefix: &str, endpoint: &str| StorageConfig::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        public_endpoint: None,
        region: None,
        allow_http: false,
        credentials_file: None,
    };
    let https = "https://localhost:9000";
    for (error, told) in [
        (error(StorageConfig::folder("/dev/null/x"), &[]), "objects.storage.path: /dev/null/x: cannot be created"),
        (error(s3("", "", https), &[]), "objects.storage.bucket: is empty"),
        (error(s3("b", "a//b", https), &[]), "objects.storage.prefix: "),
        (
            error(s3("b", "", "http://localhost:9000"), &[]),
            "objects.storage.endpoint: `http://localhost:9000` is not encrypted",
        ),
        (error(s3("b", "", "localhost"), &[]), "objects.storage.endpoint: `localhost` is not a URL"),
        (error(s3("b", "", "ftp://x"), &[]), "objects.storage.endpoint: `ftp://x` must start with"),
        (error(StorageConfig::Memory, &["file:///ok", "/data"]), "objects.allowed_uris: `/data` is not a URI"),
        (error(StorageConfig::Memory, &["s3://"]), "objects.allowed_uris: `s3://` has no bucket name"),
    ] {
        assert!(error.starts_with(told), "{error}");
    }
}
