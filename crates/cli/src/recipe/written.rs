//! Locations as users write them: made absolute, or rejected if they rely on shell expansion.

use std::path::{Component, Path, PathBuf};

use url::Url;

/// Wildcards that a shell expands to file names.
const WILDCARDS: [char; 4] = ['*', '?', '[', '{'];

/// Makes a location absolute: URIs stay, paths become `file://` URIs.
pub fn absolute_location(text: &str, base: &Path) -> String {
    match path_of(text) {
        None => text.to_owned(),
        Some(path) => {
            let path = normal(&base.join(path));
            Url::from_file_path(&path).map_or_else(|()| text.to_owned(), |url| url.to_string())
        }
    }
}

/// Explains why `text` is not a usable location: it relies on shell expansion, or its scheme is
/// incomplete. A file that exists under exactly this name is always accepted.
pub fn problem(text: &str, base: &Path) -> Option<String> {
    if text.trim().is_empty() {
        return Some("must not be blank; use a file, a folder, s3://bucket/key or artifact://ID".to_owned());
    }
    if text.trim() != text {
        return Some(format!("`{text}` starts or ends with whitespace"));
    }
    let path = path_of(text).unwrap_or_else(|| text.strip_prefix("file://").unwrap_or(text));
    if base.join(path).exists() {
        return None;
    }
    if path.starts_with('~') {
        return Some(format!("`{text}`: `~` is not expanded here; write the full path, such as /home/…"));
    }
    let names_variable =
        |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '{' | '('));
    if path.match_indices('$').any(|(at, _)| names_variable(&path[at + 1..])) {
        return Some(format!("`{text}`: variables are not expanded here; write the full path"));
    }
    if let Some(at) = path.find(WILDCARDS) {
        let folder = path[..at].rsplit_once('/').map_or(".", |(folder, _)| folder);
        return Some(format!(
            "`{text}`: `{}` is not expanded here; name the folder `{folder}` to read all its files, or list the files \
             one by one",
            &path[at..=at]
        ));
    }
    let drive = matches!(path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if path.contains('\\') || drive {
        return Some(format!("`{text}`: use / between folders, as in /data/corpus.jsonl"));
    }
    let scheme = text.split_once(':').filter(|(scheme, _)| !scheme.is_empty() && !scheme.contains(['/', ' ', '.']));
    match scheme {
        Some((scheme, rest)) if scheme != "file" && !rest.starts_with("//") => {
            Some(format!("`{text}`: write {scheme}://… for a URI, or ./{text} for a file with this name"))
        }
        _ => None,
    }
}

/// The local path of an absolute location; `None` for other schemes than `file`.
pub fn local_path(location: &str) -> Option<PathBuf> {
    Url::parse(location).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// The path in `text`; `None` for a URI.
fn path_of(text: &str) -> Option<&str> {
    match text.strip_prefix("file:") {
        Some(rest) if rest.starts_with("//") => None,
        Some(rest) => Some(rest),
        None if has_scheme(text) || text.is_empty() => None,
        None => Some(text),
    }
}

fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

/// Removes `.` and `..` lexically, without access to the file system.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => out.push(part),
        }
    }
    out
}
