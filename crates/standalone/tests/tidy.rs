//! Checks the conventions of this repository that a machine can check.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The crates that each crate may depend on; see ARCHITECTURE.md. Any other edge fails.
const EDGES: [(&str, &[&str]); 17] = [
    ("ids", &[]),
    ("checkpoint", &["ids"]),
    ("domain", &["ids", "checkpoint"]),
    ("data", &[]),
    ("objects", &["domain"]),
    ("postgres", &["ids"]),
    ("report", &["domain", "checkpoint"]),
    ("api", &["domain", "checkpoint"]),
    ("store", &["domain", "checkpoint", "objects", "postgres"]),
    ("runtime", &["domain", "checkpoint", "api", "objects", "store", "postgres"]),
    ("lm", &["domain", "checkpoint"]),
    ("slicer", &["domain", "checkpoint", "api", "objects", "store", "runtime", "postgres"]),
    ("trainer", &["domain", "checkpoint", "data", "api", "objects", "store", "runtime", "lm", "postgres"]),
    ("evaluator", &["domain", "checkpoint", "data", "api", "objects", "store", "runtime", "lm", "postgres"]),
    ("scheduler", &["domain", "api", "objects", "store", "runtime", "postgres"]),
    ("cli", &["domain", "checkpoint", "data", "api", "report"]),
    (
        "standalone",
        &[
            "domain",
            "checkpoint",
            "api",
            "objects",
            "store",
            "runtime",
            "slicer",
            "trainer",
            "evaluator",
            "scheduler",
            "postgres",
        ],
    ),
];
/// Dependencies that are only allowed in tests. Outside of tests, only standalone starts a private
/// Postgres.
const ONLY_IN_TESTS: [(&str, &str); 6] = [
    ("store", "postgres"),
    ("runtime", "postgres"),
    ("slicer", "postgres"),
    ("trainer", "postgres"),
    ("evaluator", "postgres"),
    ("scheduler", "postgres"),
];

/// Hard limit; 400 is the soft one.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn crate_sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&root().join("crates"), &mut found);
    assert!(found.len() > 50, "the sources were not found");
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn dependencies_point_one_way() {
    let mut actual = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let manifest: toml::Table = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(format!("inheritune-{name}").as_str()));
        let edges: BTreeSet<String> = ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .filter_map(|table| manifest.get(*table)?.as_table())
            .flat_map(|table| table.keys())
            .filter_map(|dependency| dependency.strip_prefix("inheritune-").map(str::to_owned))
            .collect();
        actual.insert(name, edges);
    }
    let allowed: BTreeMap<String, BTreeSet<String>> =
        EDGES.iter().map(|(name, edges)| (name.to_string(), edges.iter().map(|e| e.to_string()).collect())).collect();
    assert_eq!(actual.keys().collect::<Vec<_>>(), allowed.keys().collect::<Vec<_>>(), "a crate was added or removed");
    for (name, edges) in &actual {
        let extra: Vec<_> = edges.difference(&allowed[name]).collect();
        assert!(extra.is_empty(), "inheritune-{name} may not depend on {extra:?}");
    }
}

#[test]
fn files_are_short() {
    let long: Vec<_> = crate_sources()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {MAX_LINES} lines: {long:#?}");
}

#[test]
fn only_lm_may_hold_unsafe_code() {
    for (path, text) in crate_sources() {
        if path.components().any(|c| c.as_os_str() == "lm") || path.ends_with("tests/tidy.rs") {
            continue;
        }
        assert!(!text.contains("allow(unsafe_code)"), "{}: unsafe code belongs in lm", path.display());
    }
}

/// Libraries that only some crates may use outside their tests, and why.
const LIBRARIES: [(&str, &[&str], &str); 5] = [
    ("sqlx", &["store", "postgres"], "SQL belongs in store"),
    ("object_store", &["objects", "store"], "objects are read and written by objects"),
    ("tch", &["lm", "trainer", "evaluator"], "tensors belong in lm, trainer and evaluator"),
    ("prost", &["api", "checkpoint", "cli", "scheduler"], "messages belong in api"),
    ("axum", &["runtime"], "HTTP belongs in runtime"),
];

#[test]
fn libraries_stay_in_their_crates() {
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_str().unwrap();
        let manifest: toml::Table = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap().parse().unwrap();
        let depends = |on: &str| manifest.get("dependencies").and_then(|t| t.get(on)).is_some();
        for (library, crates, why) in LIBRARIES {
            assert!(!depends(library) || crates.contains(&name), "inheritune-{name} may not use {library}: {why}");
        }
        for (crate_, test_only) in ONLY_IN_TESTS {
            let is_used = name == crate_ && depends(&format!("inheritune-{test_only}"));
            assert!(!is_used, "inheritune-{crate_} may use {test_only} only in its tests");
        }
    }
}

/// What a pure crate must not use: the clock, the environment, files, sockets and random numbers.
const IMPURE: [&str; 9] = [
    "std::fs::",
    "std::net::",
    "std::env::",
    "std::thread::",
    "std::process::",
    "SystemTime::now",
    "Instant::now",
    "OffsetDateTime::now",
    "Uuid::new_v4",
];

#[test]
fn pure_crates_are_pure() {
    for (path, text) in crate_sources() {
        let inside = path.strip_prefix(root().join("crates")).unwrap();
        let is_pure =
            ["ids", "checkpoint", "domain"].iter().any(|name| inside.starts_with(Path::new(name).join("src")));
        if !is_pure || inside.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in IMPURE {
            assert!(!code.contains(word), "{}: `{word}` has no place in a pure crate", path.display());
        }
    }
}

/// Columns of prose; tables and code may be wider, and a link cannot be broken.
const MAX_COLUMNS: usize = 100;

#[test]
fn prose_is_wrapped() {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/adr", "docs/extending", "docs/guides", "docs/concepts", ".github"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    }
    assert!(pages.len() > 20, "the pages were not found");
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            let longest = line.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
            let is_prose = !in_code && !line.starts_with('|') && longest < MAX_COLUMNS;
            let place = format!("{}:{}", page.display(), number + 1);
            assert!(!is_prose || line.chars().count() <= MAX_COLUMNS, "{place}: wrap it at {MAX_COLUMNS} columns");
        }
    }
}

#[test]
fn every_crate_says_what_it_owns() {
    for (name, _) in EDGES {
        let path = root().join("crates").join(name).join("src/lib.rs");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} has no crate documentation", path.display());
        for phrase in ["Owns:", "Must never:"] {
            assert!(text.contains(phrase), "{} does not say `{phrase}`", path.display());
        }
    }
}

#[test]
fn migrations_are_numbered_and_commented() {
    let mut names: Vec<_> = std::fs::read_dir(root().join("migrations"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for (i, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}_", i + 1)) && name.ends_with(".sql"), "{name} is out of order");
        let sql = std::fs::read_to_string(root().join("migrations").join(name)).unwrap();
        let created: BTreeSet<&str> = sql
            .lines()
            .filter_map(|line| line.trim().strip_prefix("CREATE TABLE "))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        for table in created {
            let table = table.trim_end_matches('(');
            assert!(sql.contains(&format!("COMMENT ON TABLE {table}")), "{name}: table {table} has no comment");
        }
    }
}
