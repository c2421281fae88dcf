//! Summarizes the local sources of a corpus in the words of the server. The kind of a file follows
//! from its first bytes. Rows are counted up to a limit, to keep the check fast.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inheritune_data::kind::{self, Content, HEAD_BYTES, Head, Kind};
use inheritune_data::{Documents, ReadAs, Tally, folder, row_count};
use inheritune_domain::spec::{CorpusFacts, CorpusSpec, FilesLeftOut, FilesOfKind, defaults};
use inheritune_domain::violation::Violations;
use url::Url;

/// Maximum amount of text that is read to count documents.
const MAX_READ_BYTES: usize = 64 << 20;
/// Maximum number of files that are listed in a folder.
const MAX_FILES: usize = 10_000;
/// Maximum depth of nested folders.
const MAX_DEPTH: usize = 32;
/// Number of example file names that are kept per kind.
const NAMES_SHOWN: usize = 3;

/// Describes the contents of each source of `spec` that is on this machine, one line per source.
///
/// # Errors
/// Sources that the tokenize job would reject.
pub fn describe(spec: &CorpusSpec) -> Result<Vec<String>, Violations> {
    let (mut lines, mut violations) = (Vec::new(), Violations::default());
    let column: Arc<str> = spec.text_column.as_deref().unwrap_or(defaults::text_column()).into();
    let mut left = MAX_READ_BYTES;
    for (number, source) in spec.sources.iter().enumerate() {
        let Some(path) = Url::parse(source).ok().and_then(|url| url.to_file_path().ok()).filter(|path| path.exists())
        else {
            continue;
        };
        let read_as = ReadAs { text_column: column.clone(), max_bad_rows: spec.max_bad_rows, tally: Arc::default() };
        match LocalSource::open(&path, &column).and_then(|found| found.count(read_as, &mut left)) {
            Ok(line) => lines.push(format!("corpus.sources[{number}]: {line}")),
            Err(problem) => violations.add(format!("corpus.sources[{number}]"), problem),
        }
    }
    violations.into_result().map(|()| lines)
}

struct LocalSource {
    files: Vec<(PathBuf, String, Kind)>,
    left_out: BTreeMap<&'static str, FilesLeftOut>,
    /// Whether all files were listed.
    is_all: bool,
}

impl LocalSource {
    fn open(path: &Path, text_column: &str) -> Result<Self, String> {
        let (base, mut names, mut is_all) = (path.to_owned(), Vec::new(), true);
        let is_one_file = path.is_file();
        if is_one_file {
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        } else {
            let mut found = Listing::default();
            found.add(path, "", 0)?;
            (names, is_all) = (found.names, !found.is_cut);
            names.sort();
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let place = |place: usize| if is_one_file { base.clone() } else { base.join(all[place]) };
        let mut candidates = folder::candidates(&all, is_one_file);
        let mut told = Vec::with_capacity(candidates.files.len());
        for at in &candidates.files {
            told.push(tell(&place(*at), all[*at], text_column)?);
        }
        let files = folder::files(&all, &mut candidates, told, is_one_file).map_err(|(at, problem)| {
            let shown = at.map_or_else(|| base.clone(), place);
            format!("{}: {problem}", shown.display())
        })?;
        let mut left_out: BTreeMap<&'static str, FilesLeftOut> = BTreeMap::new();
        for (at, reason) in &candidates.left_out {
            let new = || FilesLeftOut { reason: (*reason).to_owned(), files: 0, names: Vec::new() };
            let files = left_out.entry(reason).or_insert_with(new);
            files.files += 1;
            if files.names.len() < NAMES_SHOWN {
                files.names.push(all[*at].to_owned());
            }
        }
        let files = files.into_iter().map(|file| (place(file.place), all[file.place].to_owned(), file.kind)).collect();
        Ok(Self { files, left_out, is_all })
    }

    /// Counts documents and returns the summary. Reads at most `left` bytes of text and reduces
    /// `left` accordingly.
    fn count(self, read_as: ReadAs, left: &mut usize) -> Result<String, String> {
        let tally: Arc<Tally> = read_as.tally.clone();
        let (mut documents, mut is_whole) = (0, self.is_all);
        let has_tokens = self.files.iter().any(|(.., kind)| kind.content == Content::Tokens);
        let mut kinds: BTreeMap<Kind, FilesOfKind> = BTreeMap::new();
        for (path, name, kind) in &self.files {
            let new = || FilesOfKind { kind: kind.to_string(), files: 0, names: Vec::new() };
            let of_kind = kinds.entry(*kind).or_insert_with(new);
            of_kind.files += 1;
            if of_kind.names.len() < NAMES_SHOWN {
                of_kind.names.push(name.clone());
            }
            let shown = path.display().to_string();
            let open = || File::open(path).map_err(|e| format!("{shown}: {e}"));
            match kind.content {
                Content::Parquet => {
                    documents += row_count(open()?, &shown, &read_as.text_column).map_err(|e| e.to_string())?;
                }
                Content::Text | Content::JsonLines | Content::JsonArray => {
                    let failed = |error: inheritune_data::DataError| match error {
                        inheritune_data::DataError::Io(error) => format!("{shown}: {error}"),
                        error @ inheritune_data::DataError::Bad { .. } => error.to_string(),
                    };
                    let mut reader = Documents::open(open()?, *kind, &shown, read_as.clone()).map_err(failed)?;
                    let mut is_read = false;
                    while *left > 0 && !is_read {
                        match reader.next_part().map_err(failed)? {
                            Some(part) => {
                                *left = left.saturating_sub(part.text.len());
                                documents += u64::from(part.ends_document);
                            }
                            None => is_read = true,
                        }
                    }
                    if !is_read {
                        is_whole = false;
                        documents += u64::from(kind.content == Content::Text);
                    }
                }
                Content::Tokens | Content::Empty => {}
            }
        }
        let facts = CorpusFacts {
            files: kinds.into_values().collect(),
            left_out: self.left_out.into_values().collect(),
            rows_without_text: tally.rows_without_text(),
            bad_rows: tally.bad_rows(),
            first_bad_row: tally.first_bad_row(),
            forced_cuts: 0,
        };
        let summary = facts.summary(documents);
        if is_whole && documents == 0 && !has_tokens {
            return Err(format!("contains no text to train on: {summary}"));
        }
        Ok(if is_whole { summary } else { format!("at least {summary}; not read to the end") })
    }
}

/// The files below a folder.
#[derive(Default)]
struct Listing {
    names: Vec<String>,
    /// Canonical paths of visited folders, because links may form a cycle.
    seen: HashSet<PathBuf>,
    /// Whether the listing is incomplete.
    is_cut: bool,
}

impl Listing {
    fn add(&mut self, dir: &Path, prefix: &str, depth: usize) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        if !self.seen.insert(std::fs::canonicalize(dir).map_err(failed)?) {
            return Ok(());
        }
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if self.names.len() >= MAX_FILES || depth >= MAX_DEPTH {
                self.is_cut = true;
                return Ok(());
            }
            if metadata.is_dir() {
                self.add(&entry.path(), &format!("{name}/"), depth + 1)?;
            } else if metadata.is_file() {
                self.names.push(name);
            }
        }
        Ok(())
    }
}

fn tell(path: &Path, name: &str, text_column: &str) -> Result<Result<Kind, String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(failed)?;
    Ok(kind::tell(name, Head { bytes: &head, is_whole: head.len() as u64 == size_bytes }, text_column))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(dir: &Path, source: &str) -> Result<String, String> {
        let source = Url::from_file_path(dir.join(source)).unwrap().to_string();
        let spec: CorpusSpec = serde_json::from_value(serde_json::json!({ "sources": [source] })).unwrap();
        describe(&spec).map(|lines| lines.concat()).map_err(|violations| violations.0[0].description.clone())
    }

    #[test]
    fn d1_a_check_says_what_local_sources_hold() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        write("folder/README.md", "# card");
        write("folder/a.json", "{\"text\": \"one\"}\n{\"text\": null}\n{\"text\": \"two\"}\n");
        write("folder/b.txt", "words");
        write("c.csv", "text\n\"one\"\n");
        write("d.jsonl", "{\"body\": \"one\"}\n");
        assert_eq!(
            check(dir.path(), "folder").unwrap(),
            "corpus.sources[0]: 3 documents from 2 files (1 text, 1 JSON lines); files left out: 1 documentation (README.md); \
             1 row without text"
        );
        assert!(check(dir.path(), "c.csv").unwrap_err().contains("CSV or TSV table, which is not supported"));
        assert!(check(dir.path(), "d.jsonl").unwrap_err().contains("has no column `text` (found: body)"));
        std::fs::write(dir.path().join("latin1.txt"), b"caf\xe9 au lait\n").unwrap();
        assert!(check(dir.path(), "latin1.txt").unwrap_err().contains("not valid UTF-8"));
        write("null.jsonl", "{\"text\": null}\n");
        assert!(check(dir.path(), "null.jsonl").unwrap_err().starts_with("contains no text to train on: 0 documents"));
        assert_eq!(check(dir.path(), "elsewhere").unwrap(), "", "the server may have it");
    }
}
