//! What the files of a source are: which are looked at, which of those are read, and why the others are not. Pure; whoever
//! calls fetches the first bytes in between.

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
    for (place, name) in names.iter().enumerate() {
        match (names::why_left_out(name), names::ending(name)) {
            (Some(reason), _) => left_out.push((place, reason)),
            (None, "bin") if split_of(name).is_none() => unknown.push((place, "tokens neither train nor val by name")),
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
}

/// Which split the name of a token file says.
fn split_of(name: &str) -> Option<Split> {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let says = |words: &[&str]| file.split(|c: char| !c.is_alphanumeric()).any(|word| words.contains(&word));
    if says(&["val", "validation", "valid"]) {
        Some(Split::Validation)
    } else {
        says(&["train", "training"]).then_some(Split::Train)
    }
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
