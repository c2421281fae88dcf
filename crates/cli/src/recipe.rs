//! Recipe files: reading, checking offline, and saying what they will do.
//!
//! A recipe is a [`RunSpec`] in TOML. Paths in it may be relative: `file:demo/corpus.txt`, or just
//! `demo/corpus.txt`, is taken from the folder the command runs in and becomes an absolute `file://` URI before it is
//! validated and sent, because the server knows nothing of the client's folder.

pub mod corpus_files;
mod explain;
mod lenient;

use std::path::{Component, Path, PathBuf};

use inheritune_domain::spec::{RunSpec, TokenizerSpec};
use inheritune_domain::violation::Violations;
use url::Url;

pub use explain::{Plan, explain};

/// The recipe in `text`, its relative paths taken from `base`.
///
/// # Errors
/// Every bad field at once: unknown and missing ones, wrong types, and what [`RunSpec::validate`] finds.
pub fn parse(text: &str, base: &Path) -> Result<RunSpec, Violations> {
    parse_with_corpus(text, &[], base)
}

/// As [`parse`], with `corpus` in the place of the recipe's sources where it names any.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_with_corpus(text: &str, corpus: &[String], base: &Path) -> Result<RunSpec, Violations> {
    let (spec, mut violations) = lenient::parse(text);
    let Some(mut spec) = spec else { return Err(violations) };
    if !corpus.is_empty() {
        spec.corpus.sources = corpus.to_vec();
    }
    make_absolute(&mut spec, base);
    if let Err(found) = spec.validate() {
        // A field that could not be read stands at a stand-in value: what follows from it says nothing.
        let known: Vec<String> = violations.0.iter().map(|v| v.field.clone()).collect();
        let follows = |field: &str| {
            known
                .iter()
                .any(|k| field == k || field.strip_prefix(k.as_str()).is_some_and(|rest| rest.starts_with(['.', '['])))
        };
        violations.0.extend(found.0.into_iter().filter(|v| !follows(&v.field)));
    }
    violations.into_result().map(|()| spec)
}

/// A location as people write it, made absolute: URIs stay, paths become `file://` URIs.
pub fn absolute_location(text: &str, base: &Path) -> String {
    let path = match text.strip_prefix("file:") {
        Some(rest) if rest.starts_with("//") => return text.to_owned(),
        Some(rest) => rest,
        None if has_scheme(text) || text.is_empty() => return text.to_owned(),
        None => text,
    };
    let path = normal(&base.join(path));
    Url::from_file_path(&path).map_or_else(|()| text.to_owned(), |url| url.to_string())
}

fn make_absolute(spec: &mut RunSpec, base: &Path) {
    let locations = spec.corpus.sources.iter_mut().chain(spec.reference.checkpoint.as_mut());
    let tokenizer = match &mut spec.corpus.tokenizer {
        TokenizerSpec::Uri(uri) => Some(uri),
        TokenizerSpec::Reference | TokenizerSpec::Train { .. } => None,
    };
    for location in locations.chain(tokenizer).chain(spec.evaluation.benchmark_data.as_mut()) {
        *location = absolute_location(location, base);
    }
}

fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

/// Without `.` and `..`, as far as that can be done without asking the file system.
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

#[cfg(test)]
mod tests;
