//! The command line: arguments, output and exit codes. Needs no server.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory as _;
use expect_test::expect_file;
use inheritune_cli::args::Cli;
use unicode_width::UnicodeWidthStr as _;

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

/// The help text on a terminal of 80 columns.
fn help(args: &[&str]) -> String {
    let mut command = Cli::command().term_width(80);
    let refused = command.try_get_matches_from_mut([&["inheritune"], args].concat()).unwrap_err();
    let text = refused.render().to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn u9_help_begins_with_the_command_s_own_options() {
    expect_file!["golden/help.txt"].assert_eq(&help(&["--help"]));
    expect_file!["golden/help-run-create-short.txt"].assert_eq(&help(&["run", "create", "-h"]));
    expect_file!["golden/help-run-create.txt"].assert_eq(&help(&["run", "create", "--help"]));
    expect_file!["golden/help-eval-run-short.txt"].assert_eq(&help(&["eval", "run", "-h"]));
}

#[test]
fn u9_every_help_has_the_global_options_last_and_short_texts_first() {
    let mut cli = Cli::command();
    cli.build();
    let mut walk: Vec<(Vec<String>, clap::Command)> = vec![(Vec::new(), cli)];
    while let Some((path, command)) = walk.pop() {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            walk.push(([path.clone(), vec![sub.get_name().to_owned()]].concat(), sub.clone()));
        }
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("-h");
        let short = help(&args);
        args[path.len()] = "--help";
        let long = help(&args);
        for text in [&short, &long] {
            let global = text.find("\nGlobal options:").unwrap_or_else(|| panic!("{path:?}: {text}"));
            let own = text.find("\nOptions:").unwrap_or_else(|| panic!("{path:?}: {text}"));
            assert!(own < global && text.find("--server").unwrap() > global, "{path:?}: {text}");
            // clap does not wrap the usage line.
            let fits = |line: &str| line.width() <= 80 || line.starts_with("Usage: ");
            assert!(text.lines().all(fits), "{path:?}: {text}");
        }
        // One short sentence each; `--help` has the rest.
        for arg in command.get_arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.chars().count() <= 80, "{path:?} {}: {help}", arg.get_id());
        }
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
    // Nothing listens on port 9 of the loopback.
    for args in [
        &["run", "list"][..],
        &["run", "watch", ID],
        &["run", "create", "deploy/recipes/demo-full-data.toml", "--corpus", "s3://bucket/corpus.jsonl"],
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
