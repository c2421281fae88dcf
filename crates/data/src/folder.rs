//! What the files of a source are: which are looked at, which of those are read, and why the others are not. Pure; whoever
//! calls fetches the first bytes in between.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::kind::{Content, Kind};
use crate::names;

/// Files that a message names at most.
const NAMES_SHOWN: usize = 3;

/// The files of a source by their places in the list of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    /// Those whose first bytes are to be looked at.
    pub files: Vec<usize>,
    /// Those that are left out, and why.
    pub left_out: Vec<(usize, &'static str)>,
}

/// A file that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFile {
    /// Its place in the list of names.
    pub place: usize,
    /// What it is.
    pub kind: Kind,
    /// Its tokens are for validation.
    pub held_out: bool,
}

/// Which of the files called `names` are looked at. Of a source that is one file, named itself, it is that file.
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
                unknown.push((place, "tokens neither train nor val by name"))
            }
            (None, ending) if names::is_data(ending) => files.push(place),
            (None, _) => unknown.push((place, "of another ending")),
        }
    }
    match unknown.as_slice() {
        // The only file there is is meant, whatever its name.
        [(only, _)] if files.is_empty() => files.push(*only),
        _ => left_out.append(&mut unknown),
    }
    Candidates { files, left_out }
}

/// Why the file called `name` is one of `all` that is there under another name.
fn why_twice(name: &str, all: &HashSet<&str>) -> Option<&'static str> {
    // The hub's cache has each file in `blobs`, and in `snapshots` a link to it under its own name.
    let blobs = name.split_once("blobs/").filter(|(cache, _)| cache.is_empty() || cache.ends_with('/'));
    if let Some((cache, _)) = blobs
        && all.iter().any(|other| other.strip_prefix(cache).is_some_and(|rest| rest.starts_with("snapshots/")))
    {
        return Some("in a cache of the hub under their own names as well");
    }
    let unpacked = name.rsplit_once('.').filter(|_| names::is_packed(name))?.0;
    all.contains(unpacked).then_some("packed copies of files that are there")
}

/// Whether a file of a folder called `name` is looked at whatever else is there.
pub fn is_data(name: &str) -> bool {
    let ending = names::ending(name);
    names::why_left_out(name).is_none() && !ending.is_empty() && names::is_data(ending)
}

/// What is read of the files called `names`, of which those at `candidates` are of the kinds `told`: what is held out last.
/// Adds to `candidates.left_out`.
///
/// # Errors
/// Nothing is, or a file cannot be read as what it is, or there is text beside tokens; the message names the file.
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
            Err(_) if matches!(ending, "csv" | "tsv") => unread.push((place, "tables in CSV or TSV")),
            Err(_) if ending.is_empty() => unread.push((place, "without an ending")),
            Err(problem) => return Err((Some(place), problem)),
            // A name that says how its text is packed is a name for data.
            Ok(Kind { content: Content::Text, .. })
                if ending.is_empty() && !alone && !names::is_packed(names[place]) =>
            {
                unread.push((place, "without an ending"));
            }
            Ok(kind) => {
                let held_out = kind.content == Content::Tokens && split_of(names[place]) == Some(Split::Validation);
                files.push(DataFile { place, kind, held_out });
            }
        }
    }
    // Beside rows or tokens, Markdown describes them.
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
            "holds tokens ({tokens}) and text ({text}, {kind}): the one may be made of the other; name one of them as the \
             source"
        );
        return Err((None, problem));
    }
    // What is held out has to come last; a source that has nothing else has to be trained on.
    files.sort_by_key(|file| file.held_out);
    if files.iter().all(|file| file.held_out) {
        files.iter_mut().for_each(|file| file.held_out = false);
    }
    Ok(files)
}

/// Folders that are something else as a whole.
fn refuse_whole(names: &[&str]) -> Result<(), (Option<usize>, String)> {
    let file = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_chunk = |name: &&str| file(name).starts_with("chunk-") && names::ending(name) == "bin";
    if names.iter().any(|name| file(name) == "index.json") && names.iter().any(is_chunk) {
        let problem = "is a data set of litdata (chunk-*.bin beside index.json), which is not read; convert its tokens to \
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
        let problem =
            format!("is a cache of the hub with several revisions of one data set: name one of them, {shown}");
        return Err((None, problem));
    }
    Ok(())
}

/// Of rows and texts whose names tell splits, the training split is trained on, the validation split held out, and the test
/// split left out.
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
            candidates.left_out.push((file.place, "for tests, by their names"));
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
            "holds {} ({}) and {} ({}): the one may be made of the other; name one of them as the source, or both if they \
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
        "holds no file that is read{what} but {shown}{more}; text ends in .txt, .text or .md, rows in .jsonl, .ndjson or .json \
         (each also with .gz or .zst) or .parquet, tokens in .bin with train or val in the name; a file of any name can be \
         named itself"
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    Validation,
    Test,
}

/// Which split the name of a file, or of the folder that it is in, says: `data/train-00000.parquet`, `test/0.jsonl`.
fn split_in_path(name: &str) -> Option<Split> {
    let (folder, _) = name.rsplit_once('/').unwrap_or_default();
    split_of(name).or_else(|| split_of(folder))
}

/// Which split a file's name says.
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

    /// The names of the files that are read and why the others are not, of files with this content.
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
                "notes.pdf: of another ending",
                "state.json: settings",
                "table.csv: tables in CSV or TSV",
                "words: without an ending",
            ]
        );
        // Markdown alone is the text.
        assert_eq!(read(&[("a.md", b"# one"), ("b.md", b"# two")]).unwrap().0, ["a.md: text", "b.md: text"]);
        assert_eq!(read(&[("book", b"words")]).unwrap().0, ["book: text"]);
    }

    #[test]
    fn d2_what_cannot_be_meant_is_refused() {
        type Folder = &'static [(&'static str, &'static [u8])];
        let cases: [(Folder, &str); 7] = [
            (&[("a.txt", b"text"), ("train.bin", IDS)], "holds tokens (train.bin) and text (a.txt, text)"),
            (&[("README.md", b"# card")], "holds no file that is read but README.md"),
            (&[("a.csv", b"text\n"), ("b.csv", b"text\n")], "tables in CSV or TSV"),
            (&[("a.csv", b"text\n")], "CSV or TSV, which is not read"),
            (&[("a.json", b"{\n \"a\": 1\n}"), ("b.jsonl", ROW)], "one JSON object over several lines"),
            (&[("data.arrow", b"ARROW1\0\0")], "Arrow IPC"),
            (&[], "but nothing"),
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
        let twice = "train-00000.jsonl.gz: packed copies of files that are there";
        assert_eq!(left_out, ["test/0.jsonl: for tests, by their names", twice]);
        // Without a training split the words mean nothing.
        assert_eq!(read(&[("dev.jsonl", ROW), ("test.jsonl", ROW)]).unwrap().0.len(), 2);
        let cache = [("d/blobs/abc", ROW), ("d/refs/main", b"a"), ("d/snapshots/a/x.jsonl", ROW)];
        assert_eq!(read(&cache).unwrap().0, ["d/snapshots/a/x.jsonl: JSON lines"]);
        let revisions = read(&[("snapshots/a/x.jsonl", ROW), ("snapshots/b/x.jsonl", ROW)]).unwrap_err();
        assert!(revisions.contains("name one of them, snapshots/a, snapshots/b"), "{revisions}");
        let pages: [(&str, &[u8]); 3] = [("testing.md", b"# a"), ("training.md", b"# b"), ("validation.md", b"# c")];
        assert_eq!(read(&pages).unwrap().1, [""; 0]);
        let forms = read(&[("a.jsonl", ROW), ("a.parquet", b"PAR1")]).unwrap_err();
        assert!(forms.contains("a.jsonl (JSON lines) and a.parquet (Parquet): the one may be made of"), "{forms}");
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
