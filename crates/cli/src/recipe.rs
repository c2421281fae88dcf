//! Recipe files: reading, offline checks and explanations.
//!
//! A recipe is a [`RunSpec`] in TOML. Its paths may be relative: `file:demo/corpus.txt`, or just
//! `demo/corpus.txt`, is resolved against the current folder. It becomes an absolute `file://` URI
//! before it is validated and sent, because the server does not know the client's folder.

pub mod corpus_files;
mod explain;
mod lenient;
pub(crate) mod written;

use std::path::{Path, PathBuf};

use inheritune_domain::spec::{RunSpec, TokenizerSpec};
use inheritune_domain::violation::Violations;

pub use explain::{Plan, explain};
pub use written::absolute_location;

/// Parses the recipe in `text` and resolves its relative paths against `base`.
///
/// # Errors
/// Every invalid field at once: unknown and missing fields, wrong types, and the violations that
/// [`RunSpec::validate`] finds.
pub fn parse(text: &str, base: &Path) -> Result<RunSpec, Violations> {
    read(text, &[], base).map(|read| read.spec)
}

/// A recipe that was read from a file, and the files it names that are not on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadRecipe {
    /// The recipe, with absolute locations.
    pub spec: RunSpec,
    /// Files that it names and that are not on this machine. The server may have them.
    pub missing: Vec<Missing>,
}

/// A file that a recipe names and that is not on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The field that names it.
    pub field: String,
    /// The path of the missing file.
    pub path: PathBuf,
}

/// Like [`parse`], but `corpus` replaces the recipe's sources unless it is empty, and missing files
/// are reported.
///
/// # Errors
/// Those of [`parse`].
pub fn read(text: &str, corpus: &[String], base: &Path) -> Result<ReadRecipe, Violations> {
    let (spec, mut violations) = lenient::parse(text);
    let Some(mut spec) = spec else { return Err(violations) };
    if !corpus.is_empty() {
        spec.corpus.sources = corpus.to_vec();
    }
    let mut missing = Vec::new();
    for (field, location) in locations(&mut spec) {
        if let Some(problem) = written::problem(location, base) {
            violations.add(field, problem);
            continue;
        }
        *location = absolute_location(location, base);
        if let Some(path) = written::local_path(location).filter(|path| !path.exists()) {
            missing.push(Missing { field, path });
        }
    }
    if let Err(found) = spec.validate() {
        // A field that could not be read has a stand-in value, so violations of that field mean
        // nothing.
        let known: Vec<String> = violations.0.iter().map(|v| v.field.clone()).collect();
        let follows = |field: &str| {
            known
                .iter()
                .any(|k| field == k || field.strip_prefix(k.as_str()).is_some_and(|rest| rest.starts_with(['.', '['])))
        };
        violations.0.extend(found.0.into_iter().filter(|v| !follows(&v.field)));
    }
    violations.into_result().map(|()| ReadRecipe { spec, missing })
}

/// Every location in a recipe, with the name of its field.
fn locations(spec: &mut RunSpec) -> Vec<(String, &mut String)> {
    let tokenizer = match &mut spec.corpus.tokenizer {
        TokenizerSpec::Uri(uri) => Some(uri),
        TokenizerSpec::Reference | TokenizerSpec::Train { .. } => None,
    };
    let sources = spec.corpus.sources.iter_mut().enumerate();
    let sources = sources.map(|(i, source)| (format!("corpus.sources[{i}]"), source));
    let others = [
        ("reference.checkpoint", spec.reference.checkpoint.as_mut()),
        ("corpus.tokenizer.uri", tokenizer),
        ("evaluation.benchmark_data", spec.evaluation.benchmark_data.as_mut()),
    ];
    let others = others.into_iter().filter_map(|(field, location)| Some((field.to_owned(), location?)));
    sources.chain(others).collect()
}

#[cfg(test)]
mod tests;
