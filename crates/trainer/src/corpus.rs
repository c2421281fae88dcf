//! Reads the text of a corpus source by source and file by file, in pieces that fit in memory.
//!
//! The first bytes of a file determine its kind ([`inheritune_data::kind`]). In a folder, hidden
//! files, documentation, files with an unknown extension, and token files whose names contain
//! neither `train` nor `val` are skipped ([`inheritune_data::folder`]). A location that is a single
//! file is always read, regardless of its name. Long documents are cut where a cut does not change
//! any token ([`cutting`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt, StreamExt, TryStreamExt};
use inheritune_data::folder::{self, DataFile};
use inheritune_data::kind::{self, Content, HEAD_BYTES, Head, Kind};
use inheritune_data::{DataError, Tally};
use inheritune_domain::artifact::Location;
use inheritune_domain::spec::{CorpusFacts, FilesLeftOut, FilesOfKind};
use inheritune_objects::{Folder, FolderFile};
use inheritune_runtime::worker::{JobError, StopSignal};
use inheritune_store::{Store, StoreError};
use tokio::runtime::Handle;

pub mod cutting;
mod pieces;
mod stored;

pub use pieces::{Piece, Pieces, Reading};

/// Maximum number of files that a message names.
const NAMES_SHOWN: usize = 3;
/// Number of files whose first bytes are fetched concurrently.
const HEADS_AT_ONCE: usize = 16;

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The store cannot provide the file.
    #[error("{file}: {source}")]
    Store {
        /// The file.
        file: String,
        /// The store's error.
        source: StoreError,
    },
    /// The content of the file cannot be used.
    #[error("{file}: {problem}")]
    Bad {
        /// The file.
        file: String,
        /// What is wrong, where, and how to fix it.
        problem: String,
    },
    /// The job was asked to stop.
    #[error("stopped")]
    Stopped,
}

impl From<CorpusError> for JobError {
    fn from(error: CorpusError) -> Self {
        match &error {
            CorpusError::Stopped => Self::Stopped,
            CorpusError::Store { source, .. } => Self::new(source.class(), error.to_string()),
            CorpusError::Bad { .. } => Self::Permanent(error.to_string()),
        }
    }
}

impl CorpusError {
    /// Converts an error from reading `file`.
    fn of(file: &str, error: DataError) -> Self {
        match error {
            DataError::Bad { file, problem } => Self::Bad { file, problem },
            DataError::Io(error) => match stored::cause(error) {
                Ok(stored::Cause::Store(source)) => Self::Store { file: file.to_owned(), source: source.into() },
                Ok(stored::Cause::Stopped) => Self::Stopped,
                Err(error) => Self::Bad {
                    file: file.to_owned(),
                    problem: format!("cannot be unpacked: {error}; if the file is truncated, download it again"),
                },
            },
        }
    }
}

/// The files of a corpus, in order.
pub struct Corpus {
    files: Vec<CorpusFile>,
    left_out: LeftOut,
    bytes_read: Arc<AtomicU64>,
    stop: StopSignal,
}

#[derive(Clone)]
struct CorpusFile {
    folder: Arc<Folder>,
    name: String,
    size_bytes: u64,
    /// Number of the source it belongs to, from 0.
    source: usize,
    /// Its name in messages.
    shown: String,
    kind: Kind,
    /// Whether its tokens are for validation.
    held_out: bool,
}

/// Counts and names of the skipped files, by reason.
#[derive(Debug, Default)]
struct LeftOut(BTreeMap<&'static str, (u64, Vec<String>)>);

impl LeftOut {
    fn add(&mut self, reason: &'static str, name: &str) {
        tracing::info!(file = name, reason, "file skipped");
        let (files, names) = self.0.entry(reason).or_default();
        *files += 1;
        if names.len() < NAMES_SHOWN {
            names.push(name.to_owned());
        }
    }
}

impl Corpus {
    /// Lists the files of `sources`, in this order, and detects the kind of each.
    ///
    /// # Errors
    /// - A source does not exist or may not be read.
    /// - A folder contains no readable file, or both text and tokens.
    /// - A file is not of the kind that its name says, and its actual kind is unsupported.
    pub async fn open(
        store: &Store,
        sources: &[Location],
        text_column: &str,
        stop: &StopSignal,
    ) -> Result<Self, JobError> {
        let (mut files, mut left_out) = (Vec::new(), LeftOut::default());
        for (number, source) in sources.iter().enumerate() {
            let folder = Arc::new(store.open(source).await?);
            if let Some(link) = folder.dangling_links().iter().find(|link| folder::is_data(link)) {
                return Err(JobError::Permanent(format!("{source}: {link} is a dangling symbolic link")));
            }
            let one_source = Source { folder, number, shown: source.to_string(), text_column };
            tokio::select! {
                found = one_source.files(&mut left_out) => files.extend(found?),
                _ = stop.wait() => return Err(JobError::Stopped),
            }
        }
        Ok(Self { files, left_out, bytes_read: Arc::default(), stop: stop.clone() })
    }

    /// Total stored size of all files in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// The names of the first few files, for messages.
    pub fn names(&self) -> String {
        let shown: Vec<&str> = self.files.iter().take(NAMES_SHOWN).map(|file| file.shown.as_str()).collect();
        match self.files.len().saturating_sub(NAMES_SHOWN) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    /// Number of stored bytes read so far, over all passes.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// The number of sources.
    pub fn sources(&self) -> usize {
        self.files.last().map_or(0, |file| file.source + 1)
    }

    /// Whether any of its files contains tokens.
    pub fn has_tokens(&self) -> bool {
        self.files.iter().any(|file| file.kind.content == Content::Tokens)
    }

    /// Summarizes how the corpus was read, after a pass that counted into `tally`.
    pub fn facts(&self, tally: &Tally, forced_cuts: u64) -> CorpusFacts {
        let mut kinds: BTreeMap<Kind, FilesOfKind> = BTreeMap::new();
        for file in &self.files {
            let new = || FilesOfKind { kind: file.kind.to_string(), files: 0, names: Vec::new() };
            let of_kind = kinds.entry(file.kind).or_insert_with(new);
            of_kind.files += 1;
            if of_kind.names.len() < NAMES_SHOWN {
                of_kind.names.push(file.name.clone());
            }
        }
        let left_out = self.left_out.0.iter().map(|(reason, (files, names))| FilesLeftOut {
            reason: (*reason).to_owned(),
            files: *files,
            names: names.clone(),
        });
        CorpusFacts {
            files: kinds.into_values().collect(),
            left_out: left_out.collect(),
            rows_without_text: tally.rows_without_text(),
            bad_rows: tally.bad_rows(),
            first_bad_row: tally.first_bad_row(),
            forced_cuts,
        }
    }

    /// Starts a pass over all documents of one source. Iterate on a thread that does not belong to
    /// `runtime`.
    pub fn pieces<'a>(&self, source: usize, reading: Reading<'a>, runtime: &Handle) -> Pieces<'a> {
        let files = self.files.iter().filter(|file| file.source == source).cloned().collect();
        let reader =
            stored::Reader { bytes_read: self.bytes_read.clone(), runtime: runtime.clone(), stop: self.stop.clone() };
        Pieces::new(files, reading, reader)
    }
}

/// One source whose files have not been identified yet.
struct Source<'a> {
    folder: Arc<Folder>,
    number: usize,
    shown: String,
    text_column: &'a str,
}

impl Source<'_> {
    async fn files(&self, left_out: &mut LeftOut) -> Result<Vec<CorpusFile>, JobError> {
        let all = self.folder.files();
        let names: Vec<&str> = all.iter().map(|file| file.name.as_str()).collect();
        let is_one_file = self.folder.is_one_file();
        let mut candidates = folder::candidates(&names, is_one_file);
        let mut heads = Vec::with_capacity(candidates.files.len());
        for place in &candidates.files {
            heads.push(self.tell(&all[*place]).boxed());
        }
        let told: Vec<_> = futures::stream::iter(heads).buffered(HEADS_AT_ONCE).try_collect().await?;
        let files = folder::files(&names, &mut candidates, told, is_one_file);
        let files = files.map_err(|(place, problem)| {
            let shown = place.map_or_else(|| self.shown.clone(), |place| self.shown_file(names[place]));
            JobError::Permanent(format!("{shown}: {problem}"))
        })?;
        candidates.left_out.iter().for_each(|(place, reason)| left_out.add(reason, names[*place]));
        Ok(files.into_iter().map(|file| self.file(&all[file.place], file)).collect())
    }

    async fn tell(&self, file: &FolderFile) -> Result<Result<Kind, String>, JobError> {
        let end = file.size_bytes.min(HEAD_BYTES);
        let bytes = self.folder.read_range(&file.name, 0..end).await?;
        let head = Head { bytes: &bytes, is_whole: end == file.size_bytes };
        Ok(kind::tell(&file.name, head, self.text_column))
    }

    fn file(&self, file: &FolderFile, found: DataFile) -> CorpusFile {
        CorpusFile {
            folder: self.folder.clone(),
            name: file.name.clone(),
            size_bytes: file.size_bytes,
            source: self.number,
            shown: self.shown_file(&file.name),
            kind: found.kind,
            held_out: found.held_out,
        }
    }

    fn shown_file(&self, name: &str) -> String {
        if self.folder.is_one_file() {
            self.shown.clone()
        } else {
            format!("{}/{name}", self.shown.trim_end_matches('/'))
        }
    }
}
