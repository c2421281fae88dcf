#![allow(clippy::unwrap_used)]

use inheritune_domain::id::Sha256Digest;

use super::*;

fn segment(content: &str) -> v1::FileSegment {
    v1::FileSegment { size_bytes: content.len() as u64, sha256: Sha256Digest::of(content.as_bytes()).to_string() }
}

fn published(dir: &Path, name: &str, content: &str) -> v1::ArtifactFile {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    v1::ArtifactFile {
        name: name.to_owned(),
        size_bytes: content.len() as u64,
        sha256: Sha256Digest::of(content.as_bytes()).to_string(),
        segments: Vec::new(),
        download_url: Url::from_file_path(&path).unwrap().to_string(),
    }
}

async fn try_export(files: &[v1::ArtifactFile], to: &Path, existing: Existing) -> Result<Vec<PathBuf>, String> {
    export(files, to, existing, &ProgressBar::hidden()).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn files_arrive_with_their_folders() {
    let store = tempfile::tempdir().unwrap();
    let files = [published(store.path(), "config.json", "{}"), published(store.path(), "a b/c.bin", "abc")];
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("target");
    try_export(&files, &to, Existing::Refuse).await.unwrap();
    assert_eq!(std::fs::read_to_string(to.join("config.json")).unwrap(), "{}");
    assert_eq!(std::fs::read_to_string(to.join("a b/c.bin")).unwrap(), "abc");
    assert!(!to.join(STAGING).exists());
    // Exporting the same files again is not a conflict.
    try_export(&files, &to, Existing::Refuse).await.unwrap();
}

#[tokio::test]
async fn a_folder_in_use_is_refused_unless_forced() {
    let store = tempfile::tempdir().unwrap();
    let files = [published(store.path(), "config.json", "new")];
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join("config.json"), "old").unwrap();
    let refused = try_export(&files, to.path(), Existing::Refuse).await.unwrap_err();
    assert!(refused.contains("is not empty"), "{refused}");
    assert_eq!(std::fs::read_to_string(to.path().join("config.json")).unwrap(), "old");
    try_export(&files, to.path(), Existing::Replace).await.unwrap();
    assert_eq!(std::fs::read_to_string(to.path().join("config.json")).unwrap(), "new");
}

#[tokio::test]
async fn a_wrong_file_leaves_nothing_behind() {
    let store = tempfile::tempdir().unwrap();
    let good = published(store.path(), "config.json", "{}");
    let bad = published(store.path(), "model.safetensors", "weights");
    for (change, problem) in [
        (v1::ArtifactFile { sha256: "0".repeat(64), ..bad.clone() }, "SHA-256"),
        (v1::ArtifactFile { sha256: "no digest".to_owned(), ..bad.clone() }, "not a hexadecimal SHA-256"),
        (
            v1::ArtifactFile { sha256: String::new(), segments: ["wei", "GHTS"].map(segment).to_vec(), ..bad.clone() },
            "model.safetensors is damaged between bytes 3 and 7",
        ),
        (v1::ArtifactFile { size_bytes: 3, ..bad.clone() }, "longer than the expected 3 bytes"),
        (v1::ArtifactFile { size_bytes: 30, ..bad.clone() }, "shorter than the expected 30 bytes"),
        (v1::ArtifactFile { download_url: "file:///does/not/exist".to_owned(), ..bad.clone() }, "/does/not/exist"),
        (v1::ArtifactFile { download_url: "ftp://example.org/x".to_owned(), ..bad.clone() }, "ftp://"),
    ] {
        let to = tempfile::tempdir().unwrap();
        let failed = try_export(&[good.clone(), change], to.path(), Existing::Refuse).await.unwrap_err();
        assert!(failed.contains(problem), "{failed}");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 0, "{problem}");
    }
}

#[tokio::test]
async fn names_cannot_leave_the_folder() {
    let store = tempfile::tempdir().unwrap();
    let good = published(store.path(), "x", "x");
    for name in ["../x", "/etc/x", "a/../../x", "", ".", "a\\..\\x", "a\nb", "C:x", ".inheritune-partial/x"] {
        let to = tempfile::tempdir().unwrap();
        let file = v1::ArtifactFile { name: name.to_owned(), ..good.clone() };
        let refused = try_export(&[file], to.path(), Existing::Refuse).await.unwrap_err();
        assert!(refused.contains("unsafe file name"), "{name}: {refused}");
    }
    let refused = try_export(&[good.clone(), good], store.path(), Existing::Replace).await.unwrap_err();
    assert!(refused.contains("twice"), "{refused}");
}

/// A server that answers each connection with the next reply.
async fn answering(replies: &[&str]) -> (std::net::SocketAddr, impl Future<Output = ()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        for reply in replies {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let n = socket.read(&mut request).await.unwrap();
            assert!(n > 0);
            socket.write_all(reply.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
        }
    };
    (address, serve)
}

fn behind(address: std::net::SocketAddr) -> v1::ArtifactFile {
    v1::ArtifactFile {
        name: "a.bin".to_owned(),
        size_bytes: 3,
        sha256: String::new(),
        segments: ["a", "bc"].map(segment).to_vec(),
        download_url: format!("http://{address}/a.bin?signature=secret"),
    }
}

#[tokio::test]
async fn downloads_over_http_are_checked_too() {
    let (address, serve) = answering(&[
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        "HTTP/1.1 403 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    ])
    .await;
    let file = behind(address);
    let to = tempfile::tempdir().unwrap();
    let fetch_twice = async {
        try_export(std::slice::from_ref(&file), to.path(), Existing::Refuse).await.unwrap();
        try_export(std::slice::from_ref(&file), to.path(), Existing::Replace).await.unwrap_err()
    };
    let ((), refused) = tokio::join!(serve, fetch_twice);
    assert_eq!(std::fs::read_to_string(to.path().join("a.bin")).unwrap(), "abc");
    assert!(refused.contains("403") && !refused.contains("secret"), "{refused}");
}

/// S11: a server that impersonates the store could redirect the client to any host it can reach.
#[tokio::test]
async fn s11_downloads_follow_no_redirects() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = elsewhere.local_addr().unwrap();
    let reply =
        format!("HTTP/1.1 302 Found\r\nlocation: http://{location}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let replies = [reply.as_str()];
    let (address, serve) = answering(&replies).await;
    let file = behind(address);
    let to = tempfile::tempdir().unwrap();
    let fetch = try_export(std::slice::from_ref(&file), to.path(), Existing::Refuse);
    let ((), refused) = tokio::join!(serve, fetch);
    let refused = refused.unwrap_err();
    assert!(refused.contains("302") && refused.contains("redirects are not followed"), "{refused}");
    assert!(!to.path().join("a.bin").exists());
    let asked = tokio::time::timeout(std::time::Duration::from_millis(50), elsewhere.accept()).await;
    assert!(asked.is_err(), "the client followed the redirect");
}
