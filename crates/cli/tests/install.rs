//! `make install` installs programs that run even after the folder is moved, and `--uninstall`
//! removes them.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn install(arguments: &[&str], from: &Path) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let libtorch = from.join("libtorch");
    Command::new("sh")
        .arg(root.join("scripts/setup/install.sh"))
        .args(arguments)
        .env("INSTALL_FROM", from)
        .env("LIBTORCH", libtorch)
        .env_remove("DESTDIR")
        .output()
        .unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn u14_what_is_installed_runs_from_the_path_and_is_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (from, first, moved) = (dir.path().join("built"), dir.path().join("a prefix"), dir.path().join("moved"));
    std::fs::create_dir_all(from.join("libtorch/lib")).unwrap();
    std::fs::write(from.join("libtorch/lib/libc10.so"), "a library").unwrap();
    // The installation does not depend on the program, so one binary stands in for both.
    for name in ["inheritune", "inheritune-standalone"] {
        std::fs::copy(env!("CARGO_BIN_EXE_inheritune"), from.join(name)).unwrap();
    }
    let said = install(&[first.to_str().unwrap()], &from);
    assert!(said.status.success(), "{said:?}");
    let line = String::from_utf8(said.stdout).unwrap();
    assert!(line.contains("inheritune inheritune-standalone; it is not on the PATH: export PATH="), "{line}");
    std::fs::rename(&first, &moved).unwrap();
    for name in ["inheritune", "inheritune-standalone"] {
        let path = format!("{}:/usr/bin:/bin", moved.join("bin").display());
        let run =
            Command::new("/bin/sh").args(["-c", &format!("{name} --version")]).env("PATH", path).output().unwrap();
        assert!(run.status.success() && run.stdout.starts_with(b"inheritune "), "{run:?}");
    }
    assert!(moved.join("lib/inheritune/lib/libc10.so").exists());
    for completion in [
        "share/bash-completion/completions/inheritune",
        "share/zsh/site-functions/_inheritune",
        "share/fish/vendor_completions.d/inheritune.fish",
    ] {
        assert!(std::fs::read_to_string(moved.join(completion)).unwrap().contains("inheritune"), "{completion}");
    }
    // Install over the existing installation, then uninstall.
    assert!(install(&[moved.to_str().unwrap()], &from).status.success());
    assert!(install(&["--uninstall", moved.to_str().unwrap()], &from).status.success());
    assert_eq!(files(&moved), Vec::<String>::new());
    assert_eq!(install(&["relative"], &from).status.code(), Some(2));
}
