//! The program itself: what it accepts, what it prints, and its exit codes. No server is needed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory as _;
use inheritune_cli::args::Cli;

fn inheritune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inheritune"))
        .args(args)
        .env_remove("INHERITUNE_SERVER")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const ID: &str = "01900000-0000-7000-8000-000000000000";

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_names_the_exit_codes() {
    let output = inheritune(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for needle in [
        "Exit codes:",
        "130",
        "run",
        "job",
        "artifact",
        "slice",
        "train",
        "eval",
        "recipe",
        "certs",
        "INHERITUNE_SERVER",
    ] {
        assert!(help.contains(needle), "no {needle} in:\n{help}");
    }
}

#[test]
fn bad_usage_is_2() {
    for args in [
        &[][..],
        &["cook"],
        &["run", "get"],
        &["run", "get", "seven"],
        &["run", "list", "--limit", "0"],
        &["run", "create", "x.toml", "--request-id", ID, "--request-id-from-recipe"],
        &["run", "create", "does-not-exist.toml"],
        &["run", "watch", ID, "--force"],
        &["--server", "ftp://x", "run", "list"],
        &["slice", "plan", "models/x"],
        &["slice", "plan", "models/x", "--layers", "1", "--inherit", "atention"],
        &["slice", "plan", "models/x", "--layers", "1", "--inherit", "blocks,head"],
        &["artifact", "import", "models/x", "--max-shard-size", "5Gb"],
        &["job", "submit", "Cargo.toml"],
    ] {
        let output = inheritune(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn no_server_is_3() {
    // Port 9 of the loopback: nobody discards there.
    for args in [
        &["run", "list"][..],
        &["run", "watch", ID],
        &["run", "create", "deploy/recipes/demo-full-data.toml"],
        &["job", "watch", ID],
        &["artifact", "export", ID, "--to", "/tmp/never"],
        &["artifact", "pin", ID],
        &["artifact", "import", "models/x", "--watch", "--max-shard-size", "2GB"],
        &["slice", "plan", "models/x", "--layers", "1", "--inherit", "attention,norms"],
        &["eval", "tasks"],
    ] {
        let output = inheritune(&[&["--server", "http://127.0.0.1:9"], args].concat());
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("127.0.0.1:9"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_good_recipe_is_0_and_explained() {
    let output = inheritune(&["recipe", "check", "deploy/recipes/gpt2-medium-openwebtext.toml", "--explain"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let explained = text(&output.stdout);
    for needle in ["round 1: 12 layers", "round 3: 16 layers", "100\u{202f}000 steps", "393 K tokens = 39.3 B tokens"] {
        assert!(
            explained.replace('\u{202f}', " ").contains(&needle.replace('\u{202f}', " ")),
            "no {needle} in:\n{explained}"
        );
    }
    let output = inheritune(&["recipe", "check", "deploy/recipes/demo-low-data.toml", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["recipe"]["recipe"], "low-data");
    assert!(json["plan"]["models"].as_array().unwrap().len() >= 2);
}

#[test]
fn a_bad_recipe_is_2_and_every_field_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    let good = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/recipes/gpt2-large-openwebtext.toml"),
    )
    .unwrap();
    let bad = good
        .replace("start_layers = 18", "start_layers = 37\ncolour = 1")
        .replace("lr_max = 2e-4", "lr_max = 0.0")
        .replace("d_model = 1280", "d_model = 1281")
        .replace("steps_factor = 2.0", "steps_factor = 200.0");
    assert_ne!(good, bad);
    std::fs::write(&path, bad).unwrap();
    for command in [&["recipe", "check"][..], &["run", "create"]] {
        let output = inheritune(&[command, &[path.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2));
        let errors = text(&output.stderr);
        for field in [
            "target.colour",
            "target.start_layers",
            "training.lr_max",
            "reference.architecture.d_model",
            "controls[1].steps_factor",
        ] {
            assert!(errors.contains(&format!("\n  {field}: ")), "no {field} in:\n{errors}");
        }
    }
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = inheritune(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("inheritune"));
    }
}
