//! Copies an artifact's files to a folder.
//!
//! All files are fetched into a staging folder inside the destination and verified there before
//! they are moved into place. A reader never sees a partial file, and a failed export leaves the
//! destination as it was.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use indicatif::ProgressBar;
use inheritune_api::convert::artifact::file_digest;
use inheritune_api::v1;
use inheritune_domain::artifact::{Damage, DigestCheck, FileDigest};
use inheritune_domain::model_card::{self, Measured};
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

use crate::failure::Failure;

/// The model card, which [`add_results`] extends.
const CARD_FILE: &str = "README.md";
/// The staging folder, for files that are not complete yet.
pub const STAGING: &str = ".inheritune-partial";
/// Size of a read.
const CHUNK_BYTES: usize = 1 << 20;
/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a download that receives no data.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do with a folder that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Reject it.
    Refuse,
    /// Write into it and replace files of the same name.
    Replace,
}

/// Copies `files` into `to` and returns the paths.
///
/// # Errors
/// A name that leaves the folder, a folder that is not empty, a failed download, or a wrong digest.
/// The folder is then as it was.
pub async fn export(
    files: &[v1::ArtifactFile],
    to: &Path,
    existing: Existing,
    progress: &ProgressBar,
) -> Result<Vec<PathBuf>, Failure> {
    let names = safe_names(files)?;
    fs::create_dir_all(to).await.map_err(|e| Failure::local(to, e))?;
    if existing == Existing::Refuse && !is_empty(to).await? {
        if is_there_already(files, &names, to).await {
            return Ok(names.iter().map(|name| to.join(name)).collect());
        }
        return Err(Failure::local(to, "is not empty; choose another folder, or add --force"));
    }
    let staging = to.join(STAGING);
    let fetched = fetch_all(files, &names, &staging, progress).await;
    let moved = match fetched {
        Ok(()) => move_all(&names, &staging, to).await,
        Err(failure) => Err(failure),
    };
    // Best effort: the next export removes what remains.
    drop(fs::remove_dir_all(&staging).await);
    moved
}

/// Adds the scores of an exported model and its training data sets to the model card, where the hub
/// reads them. A card that was not written by Inheritune, or already has them, stays unchanged.
///
/// # Errors
/// The card cannot be read or written.
pub async fn add_results(dir: &Path, measured: &[Measured], datasets: &[String]) -> Result<(), Failure> {
    let path = dir.join(CARD_FILE);
    let card = match fs::read_to_string(&path).await {
        Ok(card) => card,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.kind() == std::io::ErrorKind::InvalidData => {
            return Ok(());
        }
        Err(e) => return Err(Failure::local(&path, e)),
    };
    let name = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let name = name.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let Some(card) = model_card::with_results(&card, &name, measured, datasets) else { return Ok(()) };
    let part = dir.join(format!(".{CARD_FILE}.part"));
    fs::write(&part, card).await.map_err(|e| Failure::local(&part, e))?;
    fs::rename(&part, &path).await.map_err(|e| Failure::local(&path, e))
}

async fn is_empty(dir: &Path) -> Result<bool, Failure> {
    let mut entries = fs::read_dir(dir).await.map_err(|e| Failure::local(dir, e))?;
    while let Some(entry) = entries.next_entry().await.map_err(|e| Failure::local(dir, e))? {
        if entry.file_name() != STAGING {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether `to` already has these files from an earlier export. Only true if every digest is known.
async fn is_there_already(files: &[v1::ArtifactFile], names: &[PathBuf], to: &Path) -> bool {
    for (file, name) in files.iter().zip(names) {
        // An export adds scores to the card, so its digest changes.
        if file.name == CARD_FILE && to.join(name).is_file() {
            continue;
        }
        let Ok(Some(digest)) = file_digest(file) else { return false };
        if !matches!(has_digest(&to.join(name), (file.size_bytes, digest)).await, Ok(true)) {
            return false;
        }
    }
    true
}

async fn has_digest(path: &Path, (size_bytes, digest): (u64, FileDigest)) -> std::io::Result<bool> {
    let mut opened = fs::File::open(path).await?;
    if opened.metadata().await?.len() != size_bytes {
        return Ok(false);
    }
    let mut check = DigestCheck::new(digest);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match opened.read(&mut chunk).await? {
            0 => return Ok(check.finish().is_ok()),
            n if check.update(&chunk[..n]).is_err() => return Ok(false),
            _ => {}
        }
    }
}

/// The file names as relative paths. The server is not trusted, so a name must not leave the
/// folder.
fn safe_names(files: &[v1::ArtifactFile]) -> Result<Vec<PathBuf>, Failure> {
    let mut seen = HashSet::new();
    files
        .iter()
        .map(|file| {
            let path = PathBuf::from(&file.name);
            let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
            let plain =
                !file.name.is_empty() && !file.name.contains(['\\', ':']) && !file.name.chars().any(char::is_control);
            let ours = path.components().next().is_none_or(|first| first.as_os_str() != STAGING);
            if !(inside && plain && ours) {
                return Err(Failure::Server(format!("the server sent an unsafe file name {:?}", file.name)));
            }
            if !seen.insert(path.clone()) {
                return Err(Failure::Server(format!("the server sent the file name {:?} twice", file.name)));
            }
            Ok(path)
        })
        .collect()
}

async fn fetch_all(
    files: &[v1::ArtifactFile],
    names: &[PathBuf],
    staging: &Path,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    if fs::try_exists(staging).await.map_err(|e| Failure::local(staging, e))? {
        fs::remove_dir_all(staging).await.map_err(|e| Failure::local(staging, e))?;
    }
    fs::create_dir(staging).await.map_err(|e| Failure::local(staging, e))?;
    for (file, name) in files.iter().zip(names) {
        let path = staging.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await.map_err(|e| Failure::local(parent, e))?;
        }
        fetch(file, &path, progress).await?;
    }
    Ok(())
}

async fn move_all(names: &[PathBuf], staging: &Path, to: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut written = Vec::with_capacity(names.len());
    for name in names {
        let path = to.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await.map_err(|e| Failure::local(parent, e))?;
        }
        fs::rename(staging.join(name), &path).await.map_err(|e| Failure::local(&path, e))?;
        written.push(path);
    }
    Ok(written)
}

async fn fetch(file: &v1::ArtifactFile, path: &Path, progress: &ProgressBar) -> Result<(), Failure> {
    let broken = |problem: String| Failure::Local(format!("{}: {problem}", file.name));
    let url = Url::parse(&file.download_url).map_err(|e| broken(format!("invalid URL: {e}")))?;
    match url.scheme() {
        "file" => {
            let source = url.to_file_path().map_err(|()| broken(format!("{url} is not a path on this machine")))?;
            let opened = fs::File::open(&source).await.map_err(|e| {
                broken(format!(
                    "{}: {e}; a file:// store can only be exported on the server's machine",
                    source.display()
                ))
            })?;
            let chunks = futures::stream::unfold(opened, |mut opened| async {
                let mut chunk = vec![0; CHUNK_BYTES];
                match opened.read(&mut chunk).await {
                    Ok(0) => None,
                    Ok(n) => {
                        chunk.truncate(n);
                        Some((Ok(chunk), opened))
                    }
                    Err(e) => Some((Err(e.to_string()), opened)),
                }
            });
            save(file, path, chunks, progress).await
        }
        "http" | "https" => {
            let client = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                // Only the server decides where to download from, so redirects are not followed.
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|e| broken(e.to_string()))?;
            // The URL is signed and must not appear in messages.
            let reply = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
            let reply = reply.map_err(|e| broken(e.without_url().to_string()))?;
            if reply.status().is_redirection() {
                return Err(broken(format!("the store answered {}: redirects are not followed", reply.status())));
            }
            let chunks = reply.bytes_stream().map(|chunk| chunk.map_err(|e| e.without_url().to_string()));
            save(file, path, chunks, progress).await
        }
        scheme => Err(broken(format!("cannot be downloaded from a {scheme}:// URL"))),
    }
}

async fn save<B: AsRef<[u8]>>(
    file: &v1::ArtifactFile,
    path: &Path,
    chunks: impl Stream<Item = Result<B, String>>,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let mut chunks = std::pin::pin!(chunks);
    let mut out = fs::File::create(path).await.map_err(|e| Failure::local(path, e))?;
    let damaged = |damage: Damage| Failure::Local(format!("{} {damage}; no files were kept", file.name));
    let mut check = file_digest(file).map_err(Failure::Server)?.map(DigestCheck::new);
    let mut size_bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Failure::Local(format!("{}: {e}", file.name)))?;
        let chunk = chunk.as_ref();
        size_bytes += chunk.len() as u64;
        if size_bytes > file.size_bytes {
            break;
        }
        if let Some(check) = &mut check {
            check.update(chunk).map_err(damaged)?;
        }
        out.write_all(chunk).await.map_err(|e| Failure::local(path, e))?;
        progress.inc(chunk.len() as u64);
    }
    out.flush().await.map_err(|e| Failure::local(path, e))?;
    if size_bytes != file.size_bytes {
        let than = if size_bytes > file.size_bytes { "longer" } else { "shorter" };
        return Err(Failure::Local(format!("{}: is {than} than the expected {} bytes", file.name, file.size_bytes)));
    }
    if let Some(check) = check {
        check.finish().map_err(damaged)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
