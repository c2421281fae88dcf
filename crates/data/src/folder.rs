//! Selects the files of a source: which ones to inspect, which of those to read, and why the others
//! are left out. This module is pure: between the two steps the caller fetches the first bytes of
//! each file.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::kind::{Content, Kind};
use crate::names;

/// Maximum number of files named in a message.
const NAMES_SHOWN: usize = 3;

/// The files of a source, as indices into the list of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    /// Files whose first bytes must be inspected.
    pub files: Vec<usize>,
    /// Files that are left out, and why.
    pub left_out: Vec<(usize, &'static str)>,
}

/// A file to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFile {
    /// Index in the list of names.
    pub place: usize,
    /// The kind of the file.
    pub kind: Kind,
    /// Whether its tokens are held out for validation.
    pub held_out: bool,
}

/// Selects the files of `names` to inspect. If the source is a single file, named directly, it is
/// always selected.
pub fn candidates(names: &[&str], is_one_file: bool) -> Candidates {
    if is_one_file {
        return Candidates { files: (0..names.len()).collect(), left_out: Vec::new() };
    }
    let (mut files, mut left_out, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let all: HashSet<&str> = names.iter().copied().collect();
    for (place, name) in names.iter().enumerate() {
        match (names::why_left_out(name).or_else(|| why_twice(name, &all)), names::ending(name)) {
            (Some(reason), _) => left_out.push((place, reason)),
            (None, "bin") if matches!(split_of(name), None | Some(Split::Test)) => {
                unknown.push((place, "token files without train or val in the name"))
            }
            (None, ending) if names::is_data(ending) => files.push(place),
            (None, _) => unknown.push((place, "unsupported extension")),
        }
    }
    match unknown.as_slice() {
        // A lone file must be the one that is meant, whatever its name.
        [(only, _)] if files.is_empty() => files.push(*only),
        _ => left_out.append(&mut unknown),
    }
    Candidates { files, left_out }
}

/// Returns a reason if the file `name` duplicates another file of `all`.
fn why_twice(name: &str, all: &HashSet<&str>) -> Option<&'static str> {
    // The hub's cache stores each file in `blobs`, with a link to it under its own name in
    // `snapshots`.
    let blobs = name.split_once("blobs/").filter(|(cache, _)| cache.is_empty() || cache.ends_with('/'));
    if let Some((cache, _)) = blobs
        && all.iter().any(|other| other.strip_prefix(cache).is_some_and(|rest| rest.starts_with("snapshots/")))
    {
        return Some("also in the snapshots of the hub cache");
    }
    let unpacked = name.rsplit_once('.').filter(|_| names::is_packed(name))?.0;
    all.contains(unpacked).then_some("compressed copies of other files")
}

/// Returns whether a file named `name` in a folder is inspected regardless of the other files.
pub fn is_data(name: &str) -> bool {
    let ending = names::ending(name);
    names::why_left_out(name).is_none() && !ending.is_empty() && names::is_data(ending)
}

/// Selects the files of `names` to read, validation files last. `told` has the kind of each file of
/// `candidates`. Files that are not read are added to `candidates.left_out`.
///
/// # Errors
/// No file is selected, a file cannot be read as its kind, or there are both text and tokens. The
/// message names the file.
pub fn files(
    names: &[&str],
    candidates: &mut Candidates,
    told: Vec<Result<Kind, String>>,
    is_one_file: bool,
) -> Result<Vec<DataFile>, (Option<usize>, String)> {
    let alone = candidates.files.len() == 1;
    if !is_one_file {
        refuse_whole(names)?;
    }
    let (mut files, mut unread) = (Vec::new(), Vec::new());
    for (&place, told) in candidates.files.iter().zip(told) {
        let ending = names::ending(names[place]);
        match told {
            Err(problem) if alone => return Err((Some(place), problem)),
            Err(_) if matches!(ending, "csv" | "tsv") => unread.push((place, "CSV or TSV tables")),
            Err(_) if ending.is_empty() => unread.push((place, "no extension")),
            Err(problem) => return Err((Some(place), problem)),
            // A name with a compression extension is a data file's name.
            Ok(Kind { content: Content::Text, .. })
                if ending.is_empty() && !alone && !names::is_packed(names[place]) =>
            {
                unread.push((place, "no extension"));
            }
            Ok(kind) => {
                let held_out = kind.content == Content::Tokens && split_of(names[place]) == Some(Split::Validation);
                files.push(DataFile { place, kind, held_out });
            }
        }
    }
    // Next to rows or tokens, Markdown files are documentation.
    if !is_one_file && files.iter().any(|file| !matches!(file.kind.content, Content::Text | Content::Empty)) {
        files.retain(|file| {
            let describes = names::ending(names[file.place]) == "md" && file.kind.content == Content::Text;
            if describes {
                candidates.left_out.push((file.place, "documentation"));
            }
            !describes
        });
    }
    if files.is_empty() {
        return Err((None, holds_nothing(names, unread.first().map(|(_, reason)| *reason))));
    }
    candidates.left_out.append(&mut unread);
    if !is_one_file {
        by_split(names, &mut files, candidates);
        refuse_other_forms(names, &files)?;
    }
    let tokens = files.iter().find(|file| file.kind.content == Content::Tokens);
    let text = files.iter().find(|file| !matches!(file.kind.content, Content::Tokens | Content::Empty));
    if let (Some(tokens), Some(text)) = (tokens, text) {
        let (tokens, text, kind) = (names[tokens.place], names[text.place], text.kind);
        let problem = format!(
            "contains both tokens ({tokens}) and text ({text}, {kind}), and one may be derived from the other; specify \
             one of them as the source"
        );
        return Err((None, problem));
    }
    // Held-out files must come last. A source with nothing but held-out files is trained on.
    files.sort_by_key(|file| file.held_out);
    if files.iter().all(|file| file.held_out) {
        files.iter_mut().for_each(|file| file.held_out = false);
    }
    Ok(files)
}

/// Rejects folders in a format that is not supported as a whole.
fn refuse_whole(names: &[&str]) -> Result<(), (Option<usize>, String)> {
    let file = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_chunk = |name: &&str| file(name).starts_with("chunk-") && names::ending(name) == "bin";
    if names.iter().any(|name| file(name) == "index.json") && names.iter().any(is_chunk) {
        let problem = "is a litdata dataset (chunk-*.bin with index.json), which is not supported; convert its tokens to \
                       nanoGPT's train.bin";
        return Err((None, problem.to_owned()));
    }
    let revision = |name: &&str| {
        let (cache, rest) = name.split_once("snapshots/")?;
        let (revision, _) = rest.split_once('/')?;
        (cache.is_empty() || cache.ends_with('/')).then(|| format!("{cache}snapshots/{revision}"))
    };
    let revisions: BTreeSet<String> = names.iter().filter_map(revision).collect();
    let caches: BTreeSet<&str> = revisions.iter().filter_map(|r| Some(r.split_once("snapshots/")?.0)).collect();
    if revisions.len() > caches.len() {
        let shown = revisions.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let problem = format!("is a hub cache with several revisions of one dataset; specify one of them: {shown}");
        return Err((None, problem));
    }
    Ok(())
}

/// If file names of rows and texts contain splits, trains on the training split, holds out the
/// validation split, and leaves out the test split.
fn by_split(names: &[&str], files: &mut Vec<DataFile>, candidates: &mut Candidates) {
    // A page called `testing.md` is about tests.
    let tells = |file: &DataFile| {
        !matches!(file.kind.content, Content::Tokens | Content::Empty) && names::ending(names[file.place]) != "md"
    };
    let split = |file: &DataFile| split_in_path(names[file.place]).filter(|_| tells(file));
    if !files.iter().any(|file| split(file) == Some(Split::Train)) {
        return;
    }
    files.retain(|file| {
        let is_test = split(file) == Some(Split::Test);
        if is_test {
            candidates.left_out.push((file.place, "test split by name"));
        }
        !is_test
    });
    for file in files {
        file.held_out |= split(file) == Some(Split::Validation);
    }
}

/// Files of one name in several formats, as `a.jsonl` and `a.parquet`, may hold the same documents.
fn refuse_other_forms(names: &[&str], files: &[DataFile]) -> Result<(), (Option<usize>, String)> {
    let mut by_stem: BTreeMap<&str, DataFile> = BTreeMap::new();
    for file in files.iter().filter(|file| !matches!(file.kind.content, Content::Tokens | Content::Empty)) {
        let Some(other) = by_stem.insert(names::stem(names[file.place]), *file) else { continue };
        if (other.kind.content, file.kind.content) == (Content::Text, Content::Text) {
            continue;
        }
        let problem = format!(
            "holds {} ({}) and {} ({}): one may be derived from the other; name one of them as the source, or both if they \
             differ",
            names[other.place], other.kind, names[file.place], file.kind
        );
        return Err((None, problem));
    }
    Ok(())
}

fn holds_nothing(names: &[&str], reason: Option<&str>) -> String {
    let what = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    let shown = match names {
        [] => "nothing".to_owned(),
        names => names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", "),
    };
    let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
    format!(
        "contains no supported file{what}, found: {shown}{more}; text files end in .txt, .text or .md, rows in .jsonl, \
         .ndjson or .json (optionally followed by .gz or .zst) or .parquet, token files in .bin with train or val in the \
         name; to read a file with another name, specify the file itself"
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    Validation,
    Test,
}

/// Returns the split in the name of a file or of its folder: `data/train-00000.parquet`,
/// `test/0.jsonl`.
fn split_in_path(name: &str) -> Option<Split> {
    let (folder, _) = name.rsplit_once('/').unwrap_or_default();
    split_of(name).or_else(|| split_of(folder))
}

/// Returns the split in a file's name.
fn split_of(name: &str) -> Option<Split> {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let says = |words: &[&str]| file.split(|c: char| !c.is_alphanumeric()).any(|word| words.contains(&word));
    if says(&["val", "validation", "valid", "dev"]) {
        return Some(Split::Validation);
    }
    if says(&["train", "training"]) {
        return Some(Split::Train);
    }
    says(&["test", "testing"]).then_some(Split::Test)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::kind::{Head, tell};

    /// Returns the files to read from this folder, and the reasons why the others are left out.
    fn read(folder: &[(&str, &[u8])]) -> Result<(Vec<String>, Vec<String>), String> {
        let names: Vec<&str> = folder.iter().map(|(name, _)| *name).collect();
        let mut candidates = candidates(&names, false);
        let tell = |place: &usize| tell(names[*place], Head { bytes: folder[*place].1, is_whole: true }, "text");
        let told = candidates.files.iter().map(tell).collect();
        let files = files(&names, &mut candidates, told, false).map_err(|(_, problem)| problem)?;
        let shown = |file: &DataFile| format!("{}: {}", names[file.place], file.kind);
        let mut left_out: Vec<String> =
            candidates.left_out.iter().map(|(place, reason)| format!("{}: {reason}", names[*place])).collect();
        left_out.sort();
        Ok((files.iter().map(shown).collect(), left_out))
    }

    const ROW: &[u8] = b"{\"text\": \"a\"}\n";
    const IDS: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn d2_what_describes_data_is_left_out_and_said() {
        let (read_files, left_out) = read(&[
            (".gitattributes", b"*"),
            ("LICENSE.txt", b"MIT"),
            ("README.md", b"# card"),
            ("card.md", b"# more"),
            ("data/train-00000.jsonl", ROW),
            ("notes.pdf", b"%PDF"),
            ("part-0", ROW),
            ("state.json", b"{}"),
            ("table.csv", b"text\n"),
            ("words", b"words"),
        ])
        .unwrap();
        assert_eq!(read_files, ["data/train-00000.jsonl: JSON lines", "part-0: JSON lines"]);
        assert_eq!(
            left_out,
            [
                ".gitattributes: hidden",
                "LICENSE.txt: documentation",
                "README.md: documentation",
                "card.md: documentation",
                "notes.pdf: unsupported extension",
                "state.json: settings",
                "table.csv: CSV or TSV tables",
                "words: no extension",
            ]
        );
        // On its own, Markdown is the text.
        assert_eq!(read(&[("a.md", b"# one"), ("b.md", b"# two")]).unwrap().0, ["a.md: text", "b.md: text"]);
        assert_eq!(read(&[("book", b"words")]).unwrap().0, ["book: text"]);
    }

    #[test]
    fn d2_what_cannot_be_meant_is_refused() {
        type Folder = &'static [(&'static str, &'static [u8])];
        let cases: [(Folder, &str); 7] = [
            (&[("a.txt", b"text"), ("train.bin", IDS)], "contains both tokens (train.bin) and text (a.txt, text)"),
            (&[("README.md", b"# card")], "contains no supported file, found: README.md"),
            (&[("a.csv", b"text\n"), ("b.csv", b"text\n")], "CSV or TSV tables"),
            (&[("a.csv", b"text\n")], "CSV or TSV table, which is not supported"),
            (&[("a.json", b"{\n \"a\": 1\n}"), ("b.jsonl", ROW)], "one JSON object over several lines"),
            (&[("data.arrow", b"ARROW1\0\0")], "Arrow IPC"),
            (&[], "found: nothing"),
        ];
        for (folder, words) in cases {
            let problem = read(folder).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        let (files, left_out) =
            read(&[("meta.pkl", b"\x80\x04"), ("train.bin", IDS), ("val.bin", IDS), ("x.bin", IDS)]).unwrap();
        assert_eq!(files, ["train.bin: tokens", "val.bin: tokens"]);
        assert_eq!(left_out.len(), 2, "{left_out:?}");
    }

    #[test]
    fn d2_no_document_is_read_twice_and_no_test_is_trained_on() {
        let (files, left_out) = read(&[
            ("dev.jsonl", ROW),
            ("other.jsonl", ROW),
            ("test/0.jsonl", ROW),
            ("train-00000.jsonl", ROW),
            ("train-00000.jsonl.gz", b"\x1f\x8b\x08"),
        ])
        .unwrap();
        assert_eq!(files, ["other.jsonl: JSON lines", "train-00000.jsonl: JSON lines", "dev.jsonl: JSON lines"]);
        let twice = "train-00000.jsonl.gz: compressed copies of other files";
        assert_eq!(left_out, ["test/0.jsonl: test split by name", twice]);
        // Without a training split, the other split names have no meaning.
        assert_eq!(read(&[("dev.jsonl", ROW), ("test.jsonl", ROW)]).unwrap().0.len(), 2);
        let cache = [("d/blobs/abc", ROW), ("d/refs/main", b"a"), ("d/snapshots/a/x.jsonl", ROW)];
        assert_eq!(read(&cache).unwrap().0, ["d/snapshots/a/x.jsonl: JSON lines"]);
        let revisions = read(&[("snapshots/a/x.jsonl", ROW), ("snapshots/b/x.jsonl", ROW)]).unwrap_err();
        assert!(revisions.contains("specify one of them: snapshots/a, snapshots/b"), "{revisions}");
        let pages: [(&str, &[u8]); 3] = [("testing.md", b"# a"), ("training.md", b"# b"), ("validation.md", b"# c")];
        assert_eq!(read(&pages).unwrap().1, [""; 0]);
        let forms = read(&[("a.jsonl", ROW), ("a.parquet", b"PAR1")]).unwrap_err();
        assert!(forms.contains("a.jsonl (JSON lines) and a.parquet (Parquet): one may be derived from"), "{forms}");
        assert_eq!(
            read(&[("a/0.jsonl", ROW), ("b/0.parquet", b"PAR1"), ("0.txt", b"a"), ("0.md.gz", b"b")]).unwrap().0.len(),
            3
        );
        let litdata = read(&[("train/chunk-0-0.bin", IDS), ("train/index.json", b"{}")]).unwrap_err();
        assert!(litdata.contains("litdata"), "{litdata}");
    }

    #[test]
    fn a_name_tells_the_split_of_tokens() {
        for (name, split) in [
            ("data/train.bin", Some(Split::Train)),
            ("fineweb_val_000000.bin", Some(Split::Validation)),
            ("pytorch_model.bin", None),
            ("training_set.bin.zst", Some(Split::Train)),
        ] {
            assert_eq!(split_of(name), split, "{name}");
        }
    }
}
