//! Validation of the file names of an artifact.

use super::super::MANIFEST_FILE;
use super::super::journal::JOURNAL_FILE;

/// Longest file name in bytes.
const MAX_NAME_BYTES: usize = 512;
/// Most files of one artifact.
const MAX_FILES: usize = 10_000;

/// Checks that every kind of store supports the name. A local folder cannot contain both `a` and
/// `a/b`, and some servers mangle characters other than plain ASCII.
pub(super) fn check_name(name: &str, taken: &[String]) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '=' | ' ');
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("has more than {MAX_NAME_BYTES} bytes"));
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("must be relative, with no empty part and no `..`".to_owned());
    }
    if let Some(odd) = name.chars().find(|c| !plain(*c) && *c != '/') {
        return Err(format!("contains {odd:?}; letters, digits, space and . _ - + = / are allowed"));
    }
    if name == MANIFEST_FILE {
        return Err("is the name of the manifest itself".to_owned());
    }
    if name == JOURNAL_FILE {
        return Err("is the name of the journal of unfinished files".to_owned());
    }
    if taken.len() >= MAX_FILES {
        return Err(format!("exceeds the limit of {MAX_FILES} files per artifact"));
    }
    let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    for other in taken.iter().map(String::as_str).chain([MANIFEST_FILE, JOURNAL_FILE]) {
        if other == name {
            return Err("already exists; a file is written only once".to_owned());
        }
        if inside(other, name) || inside(name, other) {
            return Err(format!("conflicts with `{other}`: one of them would be both a file and a folder"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_such_that_every_store_can_keep_them() {
        let taken = ["weights/a.bin".to_owned(), "b".to_owned()];
        for good in
            ["a", "weights/b.bin", "weights/a.bin2", "model-00001-of-00002.safetensors", "x y+z=1_2", "..a", "bb"]
        {
            assert_eq!(check_name(good, &taken), Ok(()), "{good}");
        }
        let long = "a".repeat(513);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            ".",
            "./a",
            "a\\b",
            "a\0",
            "ä",
            "a#1",
            "a%2f",
            "manifest.json",
            "manifest.json/a",
            "b",
            "b/c",
            "weights",
            "weights/a.bin/c",
            &long,
        ] {
            assert!(check_name(bad, &taken).is_err(), "{bad}");
        }
    }
}
