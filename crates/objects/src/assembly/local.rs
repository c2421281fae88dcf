//! Assembly of an object in a local folder. Each of several threads writes whole segments at their
//! offsets, so that copying and hashing use all cores. Buffers are small enough that bytes are
//! still in the CPU cache when they are hashed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use inheritune_domain::artifact::SegmentDigest;
use tempfile::NamedTempFile;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::super::folder::ObjectRange;
use super::super::on_disk;
use super::super::source::open_local;
use super::{Chunk, Digesting, Making, Segment, WrittenBytes};
use crate::ObjectError;
use crate::error::corrupt;

/// Bytes that are read, hashed and written together; they fit into the cache of one core.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes per read from a remote store.
const REMOTE_BYTES: u64 = 4 << 20;
/// Most threads; with more, the disk is the bottleneck.
const MAX_THREADS: usize = 8;
/// Threads if bytes come over a network. This may exceed the number of cores, because the threads
/// mostly wait.
const REMOTE_THREADS: usize = 6;
/// Written bytes after which the file is synced to disk.
const SYNC_BYTES: u64 = 64 << 20;
/// Time between two checks of the number of written bytes.
const SYNC_WAIT: Duration = Duration::from_millis(5);
/// Permissions of an object, before the umask.
const MODE: u32 = 0o666;
/// Retries of creating a file in a folder that other processes may be removing.
const CREATE_TRIES: u32 = 5;

/// A local file to be assembled.
pub struct LocalFile {
    /// Where it will be.
    pub path: PathBuf,
    /// Whether the file is synced to disk before it appears under its name.
    pub durable: bool,
}

impl LocalFile {
    /// Writes the file from `segments` and returns their digests. The file appears under its name
    /// when it is complete.
    ///
    /// # Errors
    /// Errors of a source; [`ObjectError::File`].
    pub async fn assemble(
        self,
        segments: Vec<Segment>,
        written: &WrittenBytes,
    ) -> Result<Vec<SegmentDigest>, ObjectError> {
        let Self { path, durable } = self;
        let remote = segments.iter().any(|segment| segment.chunks.is_remote);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if remote { REMOTE_THREADS } else { cores.min(MAX_THREADS) };
        let target = path.clone();
        let file = on_disk(&path, move || Target::create(target, durable)).await?;
        let work = Arc::new(Work::new(file, segments, written.clone()));
        // Threads cannot be aborted. If this future is dropped, the guard tells them to stop.
        let stop = StopOnDrop(work.clone());
        let mut workers = JoinSet::new();
        for _ in 0..threads {
            let work = work.clone();
            workers.spawn_blocking(move || work.run());
        }
        if durable {
            let work = work.clone();
            // Errors are ignored, because they recur when the whole file is synced.
            drop(tokio::task::spawn_blocking(move || work.sync_along()));
        }
        let mut digests = BTreeMap::new();
        while let Some(done) = workers.join_next().await {
            digests.extend(done.unwrap_or_else(|panicked| Err(corrupt("writing thread", panicked)))?);
        }
        drop(stop);
        on_disk(&path, move || work.target.keep()).await?;
        Ok(digests.into_values().collect())
    }
}

struct Work {
    target: Target,
    /// Segments to be written, shortest first. Threads take the longest ones first from the end, so
    /// that they all finish at about the same time.
    left: Mutex<Vec<Placed>>,
    /// Held while a large tensor is computed, so that only one is in memory at a time.
    large: Mutex<()>,
    stopped: AtomicBool,
    written: WrittenBytes,
    runtime: Handle,
}

struct Placed {
    number: usize,
    start: u64,
    segment: Segment,
}

struct StopOnDrop(Arc<Work>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

impl Work {
    fn new(target: Target, segments: Vec<Segment>, written: WrittenBytes) -> Self {
        let mut at = 0;
        let mut left: Vec<Placed> = Vec::with_capacity(segments.len());
        for (number, segment) in segments.into_iter().enumerate() {
            let start = at;
            at += segment.size_bytes();
            left.push(Placed { number, start, segment });
        }
        left.sort_by_key(|placed| placed.segment.size_bytes());
        let (left, large, stopped) = (Mutex::new(left), Mutex::new(()), AtomicBool::new(false));
        Self { target, left, large, stopped, written, runtime: Handle::current() }
    }

    /// Syncs the file to disk at intervals, in parallel with copying and hashing.
    fn sync_along(&self) {
        let mut synced = self.written.get();
        while !self.stopped.load(Ordering::Relaxed) {
            let written = self.written.get();
            if written - synced < SYNC_BYTES {
                std::thread::sleep(SYNC_WAIT);
                continue;
            }
            synced = written;
            if self.target.file().sync_data().is_err() {
                return;
            }
        }
    }

    /// Writes segments until none is left. Returns their digests with the numbers of the segments.
    fn run(&self) -> Result<Vec<(usize, SegmentDigest)>, ObjectError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut digests = Vec::new();
        loop {
            let next = self.left.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(Placed { number, start, segment }) = next else { return Ok(digests) };
            let size_bytes = segment.size_bytes();
            let mut writer = SegmentWriter { work: self, at: start, digesting: Digesting::of(&segment) };
            let mut in_order = segment.chunks.in_order;
            let written = in_order.try_for_each(|chunk| writer.chunk(chunk, &mut buffer));
            if let Err(error) = written {
                // Stop the other threads.
                self.stopped.store(true, Ordering::Relaxed);
                return Err(error);
            }
            digests.push((number, SegmentDigest { size_bytes, sha256: writer.digesting.finish() }));
        }
    }
}

/// Writes one segment from its start to its end.
struct SegmentWriter<'a> {
    work: &'a Work,
    at: u64,
    digesting: Digesting,
}

impl SegmentWriter<'_> {
    fn chunk(&mut self, chunk: Chunk, buffer: &mut [u8]) -> Result<(), ObjectError> {
        match chunk {
            Chunk::Bytes(bytes) => self.write(&bytes),
            Chunk::Made(making) => self.make(making),
            Chunk::Copied(object_range) => match object_range.source.local_path() {
                Some(path) => self.copy(&path, &object_range, buffer),
                None => object_range.pieces(REMOTE_BYTES, 0).try_for_each(|piece| {
                    let bytes = self.work.runtime.block_on(piece.read())?;
                    self.write(&bytes)
                }),
            },
        }
    }

    fn make(&mut self, making: Making) -> Result<(), ObjectError> {
        let large = making.size_bytes > super::MAX_MADE_AHEAD_BYTES;
        let _alone = large.then(|| self.work.large.lock().unwrap_or_else(PoisonError::into_inner));
        let bytes = self.work.runtime.block_on(making.bytes())?;
        bytes.chunks(BUFFER_BYTES).try_for_each(|piece| self.write(piece))
    }

    fn copy(&mut self, path: &Path, object_range: &ObjectRange, buffer: &mut [u8]) -> Result<(), ObjectError> {
        let failed = |error| object_range.expected.io_error(path, error);
        let file = open_local(path, &object_range.expected)?;
        let (mut from, end) = (object_range.range.start, object_range.range.end);
        while from < end {
            let length = usize::try_from(end - from).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..length];
            file.read_exact_at(piece, from).map_err(failed)?;
            self.write(piece)?;
            from += length as u64;
        }
        // The copied bytes may include modifications made during the copy.
        object_range.expected.check_file(&file.metadata().map_err(failed)?)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        let work = self.work;
        if work.stopped.load(Ordering::Relaxed) {
            return Err(ObjectError::GivenUp(format!("{} was given up", work.target.path.display())));
        }
        self.digesting.update(bytes);
        work.target.file().write_all_at(bytes, self.at).map_err(|source| work.target.error(source))?;
        self.at += bytes.len() as u64;
        work.written.add(bytes.len() as u64);
        Ok(())
    }
}

/// The unfinished file under a temporary name. Dropping it removes the file.
struct Target {
    path: PathBuf,
    durable: bool,
    file: NamedTempFile,
}

impl Target {
    fn create(path: PathBuf, durable: bool) -> io::Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("."));
        let mut tries = 0;
        loop {
            if durable {
                create_dirs_durably(parent)?;
            } else {
                fs::create_dir_all(parent)?;
            }
            let file = tempfile::Builder::new()
                .prefix(path.file_name().unwrap_or_default())
                .suffix(".partial")
                .permissions(fs::Permissions::from_mode(MODE))
                .tempfile_in(parent);
            match file {
                // Cleanup of another attempt also removes folders that look empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES => tries += 1,
                file => return Ok(Self { file: file?, path, durable }),
            }
        }
    }

    fn file(&self) -> &File {
        self.file.as_file()
    }

    fn error(&self, source: io::Error) -> ObjectError {
        ObjectError::File { path: self.path.display().to_string(), source }
    }

    /// Renames the file to its final name. Syncs a durable file to disk first.
    fn keep(&self) -> io::Result<()> {
        if self.durable {
            self.file().sync_all()?;
        }
        fs::rename(self.file.path(), &self.path)?;
        if self.durable {
            sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }
}

/// Creates `dir` and its missing parents, and syncs each of them to disk.
fn create_dirs_durably(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().unwrap_or(Path::new("."));
    create_dirs_durably(above)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => sync_dir(above),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
