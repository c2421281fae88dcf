//! An object in a local folder: several threads each write a segment where it belongs, so that copying and hashing fill
//! the machine, and every byte is still in the processor's cache when it is hashed.

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

use super::super::folder::Stretch;
use super::super::on_disk;
use super::super::source::open_local;
use super::{Chunk, Digesting, Making, Segment, WrittenBytes};
use crate::ObjectError;
use crate::error::corrupt;

/// Bytes read, hashed and written at once: they fit into a core's cache.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes of one read from another store.
const REMOTE_BYTES: u64 = 4 << 20;
/// Threads at most; beyond it the disk is what is slow.
const MAX_THREADS: usize = 8;
/// Threads where bytes come over a network: more than cores, since they mostly wait.
const REMOTE_THREADS: usize = 6;
/// Bytes after which what is written is sent to the disk, and the wait before they are counted again.
const SYNC_BYTES: u64 = 64 << 20;
const SYNC_WAIT: Duration = Duration::from_millis(5);
/// Permissions of an object, before the umask.
const MODE: u32 = 0o666;
/// Tries to make a file in a folder that others may be removing.
const CREATE_TRIES: u32 = 5;

/// A file to be made.
pub struct LocalFile {
    /// Where it will be.
    pub path: PathBuf,
    /// Whether it must be on disk before it is there.
    pub durable: bool,
}

impl LocalFile {
    /// Makes it of `segments`; says their digests. It is there when it is whole.
    ///
    /// # Errors
    /// A source's; [`ObjectError::File`].
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
        // Threads cannot be aborted: whoever gives up on this future tells them.
        let stop = StopOnDrop(work.clone());
        let mut workers = JoinSet::new();
        for _ in 0..threads {
            let work = work.clone();
            workers.spawn_blocking(move || work.run());
        }
        if durable {
            let work = work.clone();
            // Its errors come again when the whole file is synced.
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
    /// Shortest first: the longest are taken first, so that all threads end together.
    left: Mutex<Vec<Placed>>,
    /// Held by whoever makes a large tensor: one is in memory at a time.
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

    /// Sends what is written to the disk meanwhile, so that the disk works while bytes are copied and hashed.
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

    /// Writes segments until none is left; says their digests by number.
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
                // The others need not go on.
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
            Chunk::Copied(stretch) => match stretch.source.local_path() {
                Some(path) => self.copy(&path, &stretch, buffer),
                None => stretch.pieces(REMOTE_BYTES, 0).try_for_each(|piece| {
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

    fn copy(&mut self, path: &Path, stretch: &Stretch, buffer: &mut [u8]) -> Result<(), ObjectError> {
        let failed = |error| stretch.expected.io_error(path, error);
        let file = open_local(path, &stretch.expected)?;
        let (mut from, end) = (stretch.range.start, stretch.range.end);
        while from < end {
            let length = usize::try_from(end - from).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..length];
            file.read_exact_at(piece, from).map_err(failed)?;
            self.write(piece)?;
            from += length as u64;
        }
        // What was written to it meanwhile may be among the bytes.
        stretch.expected.check_file(&file.metadata().map_err(failed)?)
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

/// The file in the making, under a name of its own; gone when dropped.
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
                // Whoever removes what another attempt left there takes folders that look empty along.
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

    /// Gives the file its name; where it is to be durable, once it is on disk.
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

/// Makes `dir` and those above it that are not there, so that they stay.
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
