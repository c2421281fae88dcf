//! Checks that every shipped recipe is valid and plans what it promises.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use expect_test::expect_file;
use inheritune_cli::recipe;

fn shipped() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/recipes");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

#[test]
fn every_shipped_recipe_is_good() {
    let paths = shipped();
    assert!(paths.len() >= 10, "{paths:?}");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let spec = recipe::parse(&text, Path::new("/here")).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(
            Some(spec.name.as_str()),
            path.file_stem().and_then(|stem| stem.to_str()),
            "name and file name differ"
        );
        assert!(spec.corpus.sources.iter().all(|source| source.starts_with("file:///here/")), "{}", path.display());
    }
}

#[test]
fn the_papers_recipes_say_what_the_paper_says() {
    let mut text = String::new();
    for path in shipped() {
        // Skip the demos, whose sizes are tuned to the machine at hand.
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("demo")) {
            let spec = recipe::parse(&std::fs::read_to_string(&path).unwrap(), Path::new("/here")).unwrap();
            text.push_str(&recipe::explain(&spec).text());
            text.push_str("\n\n");
        }
    }
    expect_file!["golden/recipes.txt"].assert_eq(&text);
}
