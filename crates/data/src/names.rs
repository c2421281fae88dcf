//! Recognizes by name which files of a folder are not data. A file that a user specifies directly
//! is read whatever its name.

/// Lower-case prefixes of the names of files that describe data. A dot, a dash or the end of the
/// name must follow.
const DESCRIPTIONS: [&str; 18] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "citation",
    "changelog",
    "contributing",
    "code_of_conduct",
    "security",
    "authors",
    "acknowledgements",
    "dataset_card",
    "datasheet",
    "sources",
    "credits",
    "unlicense",
    "requirements",
];
/// Lower-case names of files that contain metadata or a tokenizer.
const SETTINGS: [&str; 22] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "metadata.json",
    "manifest.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.json",
    "package.json",
    "index.json",
    "stats.json",
    "cmakelists.txt",
    "croissant.json",
];
/// Extensions of auxiliary files that programs leave next to data.
const LEAVINGS: [&str; 9] = ["crc", "lock", "metadata", "md5", "sha256", "sha1", "incomplete", "tmp", "part"];
/// Words in the names of checksum lists.
const DIGESTS: [&str; 5] = ["checksum", "sha256sum", "sha1sum", "md5sum", "sha512sum"];
/// Folders that contain no data.
const FOLDERS: [&str; 3] = ["__macosx", "__pycache__", "checkpoints"];

/// Returns the reason why the file `name`, a path relative to the source's folder, is not data.
pub fn why_left_out(name: &str) -> Option<&'static str> {
    let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
    let is_hidden = |part: &str| part.starts_with(['.', '_']);
    if folders.split('/').any(|part| FOLDERS.contains(&part.to_lowercase().as_str())) {
        return Some("in folders without data");
    }
    if folders.split('/').any(is_hidden) || is_hidden(file) {
        return Some("hidden");
    }
    let file = file.to_lowercase();
    let describes = DESCRIPTIONS.iter().any(|word| {
        file.strip_prefix(word).is_some_and(|rest| {
            rest.is_empty()
                || rest.starts_with(['.', '-'])
                    && matches!(
                        ending(&file),
                        "" | "txt" | "md" | "rst" | "text" | "html" | "cff" | "mit" | "apache" | "bib"
                    )
        })
    });
    if describes {
        return Some("documentation");
    }
    if SETTINGS.contains(&file.as_str()) {
        return Some("settings");
    }
    let outer = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    if LEAVINGS.contains(&outer) || DIGESTS.iter().any(|word| file.contains(word)) || file.ends_with('~') {
        return Some("auxiliary files");
    }
    None
}

/// Returns the extension that describes the content of a file, in lower case and without a
/// compression extension. Returns `?` for an unknown extension, and an empty string if there is
/// none.
pub fn ending(name: &str) -> &str {
    let file = unpacked(name.rsplit('/').next().unwrap_or(name));
    let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    KNOWN_ENDINGS.iter().find(|known| known.eq_ignore_ascii_case(ending)).copied().unwrap_or(if ending.is_empty() {
        ""
    } else {
        "?"
    })
}

/// Returns the path `name` without the extensions of its format: `en/a` for `en/a.jsonl.gz`.
pub fn stem(name: &str) -> &str {
    let unpacked = unpacked(name);
    match unpacked.rsplit_once('.') {
        Some((stem, ending)) if KNOWN_ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending)) => stem,
        Some(_) | None => unpacked,
    }
}

/// Returns whether a name has a compression extension.
pub fn is_packed(name: &str) -> bool {
    unpacked(name).len() < name.len()
}

/// `name` without the ending that says how the file is packed.
fn unpacked(name: &str) -> &str {
    let lower = name.to_ascii_lowercase();
    let packing = PACKINGS.iter().find(|end| lower.ends_with(**end));
    packing.map_or(name, |end| &name[..name.len() - end.len()])
}

/// Returns whether a file with this extension may be data.
pub fn is_data(ending: &str) -> bool {
    matches!(
        ending,
        "" | "txt"
            | "text"
            | "md"
            | "json"
            | "jsonl"
            | "ndjson"
            | "jsonlines"
            | "jl"
            | "csv"
            | "tsv"
            | "parquet"
            | "bin"
    )
}

/// Extensions of compressed files.
const PACKINGS: [&str; 4] = [".gz", ".gzip", ".zst", ".zstd"];
/// Extensions with a meaning here.
const KNOWN_ENDINGS: [&str; 20] = [
    "txt",
    "text",
    "md",
    "json",
    "jsonl",
    "ndjson",
    "jsonlines",
    "jl",
    "csv",
    "tsv",
    "parquet",
    "bin",
    "rst",
    "html",
    "cff",
    "mit",
    "apache",
    "bib",
    "arrow",
    "npy",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_what_is_no_data_is_told_by_its_name() {
        for (name, why) in [
            ("README.md", "documentation"),
            ("en/README.txt", "documentation"),
            ("LICENSE", "documentation"),
            ("LICENSE-MIT.txt", "documentation"),
            ("CITATION.cff", "documentation"),
            (".gitattributes", "hidden"),
            (".cache/huggingface/download/a.jsonl.metadata", "hidden"),
            (".ipynb_checkpoints/a-checkpoint.jsonl", "hidden"),
            ("_SUCCESS", "hidden"),
            ("_temporary/0/part-0.json", "hidden"),
            ("._a.jsonl", "hidden"),
            ("__MACOSX/a.jsonl", "in folders without data"),
            ("checkpoints/a.jsonl", "in folders without data"),
            ("dataset_infos.json", "settings"),
            ("merges.txt", "settings"),
            ("a.jsonl.lock", "auxiliary files"),
            ("a.jsonl.crc", "auxiliary files"),
            ("sha256sums.txt", "auxiliary files"),
            ("a.txt~", "auxiliary files"),
        ] {
            assert_eq!(why_left_out(name), Some(why), "{name}");
        }
        for name in [
            "a.jsonl",
            "readme_dataset.jsonl",
            "security-logs.jsonl",
            "notes.txt",
            "book.md",
            "data/part-0",
            "licenses.parquet",
        ] {
            assert_eq!(why_left_out(name), None, "{name}");
        }
    }

    #[test]
    fn an_ending_is_what_stands_before_the_packing() {
        for (name, expected) in
            [("a.JSONL.GZ", "jsonl"), ("x/b.txt", "txt"), ("c", ""), ("d.gz", ""), ("e.pdf", "?"), ("f.bin.zst", "bin")]
        {
            assert_eq!(ending(name), expected, "{name}");
        }
    }
}
