//! Properties of every command: JSON on request, including errors; no panic on any kind of output;
//! and tables that fit the terminal.
#![allow(clippy::unwrap_used)]

#[path = "../../report/tests/fixtures/mod.rs"]
mod fixtures;
mod served;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Output, Stdio};

use clap::CommandFactory as _;
use inheritune_api::v1::JobStatus;
use inheritune_cli::args::Cli;
use served::{ID, Replies};
use tokio::process::Command;
use unicode_width::UnicodeWidthStr as _;

/// The arguments of each command; `{dir}` is a temporary folder. A new command needs a line here.
const ARGUMENTS: &[(&str, &str)] = &[
    ("run create", "deploy/recipes/demo-full-data.toml --corpus s3://bucket/corpus.jsonl --watch"),
    ("run get", ID),
    ("run list", ""),
    ("run watch", ID),
    ("run cancel", ID),
    ("run pause", ID),
    ("run resume", ID),
    ("run retry", ID),
    ("run report", "01900000-0000-7000-8000-000000000000 --output-dir {dir}/report"),
    ("job submit", "{dir}/job.toml --watch"),
    ("job get", ID),
    ("job list", ""),
    ("job watch", ID),
    ("job metrics", ID),
    ("job cancel", ID),
    ("job pause", ID),
    ("job resume", ID),
    ("job retry", ID),
    ("artifact register", "checkpoint models/x"),
    ("artifact import", "models/x"),
    ("artifact get", ID),
    ("artifact list", ""),
    ("artifact export", "01900000-0000-7000-8000-000000000000 --to {dir}/never"),
    ("artifact pin", ID),
    ("artifact unpin", ID),
    ("artifact delete", ID),
    ("slice inspect", "models/x"),
    ("slice plan", "models/x --layers 2"),
    ("train estimate", "models/x --recipe deploy/recipes/demo-full-data.toml --train-tokens 1000000"),
    ("eval tasks", ""),
    ("eval run", "models/x --data data --tasks piqa --watch"),
    ("eval scores", ID),
    ("eval compare", "01900000-0000-7000-8000-000000000000 01900000-0000-7000-8000-000000000000"),
    ("eval leaderboard", ""),
    ("eval export", "01900000-0000-7000-8000-000000000000 --to {dir}/never"),
    ("recipe check", "deploy/recipes/demo-full-data.toml --explain"),
    ("certs init", "{dir}/certs --host localhost --force"),
    ("completions", "bash"),
];

/// Commands that fail here, because the files of their artifact do not exist.
const FAILS: [&str; 2] = ["artifact export", "eval export"];
/// Commands that do not use a server.
const OFFLINE: [&str; 3] = ["recipe check", "certs init", "completions"];

/// Every command of the program.
fn commands() -> Vec<String> {
    let mut found = Vec::new();
    let cli = Cli::command();
    for group in cli.get_subcommands() {
        match group.get_subcommands().map(|command| format!("{} {}", group.get_name(), command.get_name())) {
            own if group.has_subcommands() => found.extend(own),
            _ => found.push(group.get_name().to_owned()),
        }
    }
    found
}

fn arguments(command: &str, dir: &Path) -> Vec<String> {
    let rest = ARGUMENTS.iter().find(|(known, _)| *known == command).map(|(_, arguments)| *arguments);
    let rest = rest.unwrap_or_else(|| panic!("`{command}` is new: add its arguments to ARGUMENTS"));
    let rest = rest.replace("{dir}", dir.to_str().unwrap());
    command.split(' ').chain(rest.split_whitespace()).map(str::to_owned).collect()
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let job = format!(
        "kind = \"evaluate\"\ncheckpoint = \"artifact://{ID}\"\n[[tasks]]\ntask = \"rolling_perplexity\"\nsource = \"file:x.txt\"\n"
    );
    std::fs::write(dir.path().join("job.toml"), job).unwrap();
    dir
}

fn inheritune(server: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inheritune"));
    command
        .args(["--server", server])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn output(server: &str, arguments: &[String]) -> Output {
    inheritune(server, arguments).output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The JSON error on the last line of standard error.
fn error(output: &Output) -> serde_json::Value {
    let log = text(&output.stderr);
    let last = log.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {log}"))
}

#[tokio::test]
async fn u4_every_command_prints_json_and_so_do_its_errors() {
    let dir = folder();
    let server = Replies::new(served::all(JobStatus::Succeeded)).served().await;
    for command in commands() {
        let arguments = [arguments(&command, dir.path()), vec!["--output".to_owned(), "json".to_owned()]].concat();
        let replied = output(&server, &arguments).await;
        if FAILS.contains(&command.as_str()) {
            assert_eq!(replied.status.code(), Some(6), "{command}: {}", text(&replied.stderr));
            assert_eq!(error(&replied)["code"], "LOCAL");
        } else {
            assert_eq!(replied.status.code(), Some(0), "{command}: {}", text(&replied.stderr));
            let json: serde_json::Value = serde_json::from_slice(&replied.stdout)
                .unwrap_or_else(|e| panic!("{command}: {e}: {}", text(&replied.stdout)));
            assert!(json.is_object(), "{command}: {json}");
        }
        if !OFFLINE.contains(&command.as_str()) {
            // Nothing listens on port 9 of the loopback.
            let refused = output("http://127.0.0.1:9", &arguments).await;
            let error = error(&refused);
            assert_eq!(refused.status.code(), Some(3), "{command}: {error}");
            assert_eq!((&error["code"], &error["exit_code"]), (&"UNAVAILABLE".into(), &3.into()), "{command}");
            assert!(refused.stdout.is_empty() && !error["hints"].as_array().unwrap().is_empty(), "{command}: {error}");
        }
        // Arguments that clap rejects also give a JSON error.
        let mut bad = command.split(' ').map(str::to_owned).collect::<Vec<_>>();
        bad.extend(["--no-such-option".to_owned(), "--output=json".to_owned()]);
        let refused = output(&server, &bad).await;
        assert_eq!((refused.status.code(), error(&refused)["code"].as_str()), (Some(2), Some("INVALID_ARGUMENT")));
    }
}

#[tokio::test]
async fn u4_bad_fields_are_json() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("bad.toml");
    std::fs::write(&recipe, "name = \"\"\ncolour = 1\n").unwrap();
    let arguments = ["recipe", "check", recipe.to_str().unwrap(), "--output", "json"].map(str::to_owned);
    let refused = output("http://127.0.0.1:9", &arguments).await;
    let error = error(&refused);
    assert_eq!(refused.status.code(), Some(2));
    let fields: Vec<&str> =
        error["violations"].as_array().unwrap().iter().map(|v| v["field"].as_str().unwrap()).collect();
    assert!(fields.contains(&"colour"), "{error}");
    assert!(error["violations"].as_array().unwrap().iter().all(|v| v["description"].is_string()), "{error}");
    assert_eq!(text(&refused.stderr).lines().count(), 1);
}

#[tokio::test]
async fn u4_a_pause_is_waited_for_until_it_shows() {
    // The reply to PauseRun still has the status from before the request.
    let mut replies = served::all(JobStatus::Running);
    let paused = prost::Message::encode_to_vec(&inheritune_api::v1::GetRunResponse {
        run: Some(served::run(JobStatus::Pausing)),
    });
    replies.insert("GetRun", vec![paused]);
    let server = Replies::new(replies).served().await;
    let said = output(&server, &["run", "pause", ID, "--output", "json"].map(str::to_owned)).await;
    let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(json["status"], "PAUSING", "{}", text(&said.stderr));
    // A run that has ended is printed at once.
    let server = Replies::new(served::all(JobStatus::Failed)).served().await;
    for command in ["cancel", "pause", "resume"] {
        let begun = std::time::Instant::now();
        let said = output(&server, &["run", command, ID].map(str::to_owned)).await;
        assert!(text(&said.stdout).contains("FAILED") && begun.elapsed().as_secs() < 5, "{}", text(&said.stdout));
    }
}

/// Runs a command and returns its exit code and, if `stderr` is not given, its standard error.
async fn ended(mut command: Command, stdout: Stdio, stderr: Option<Stdio>) -> (Option<i32>, String) {
    let child = command.stdout(stdout).stderr(stderr.unwrap_or_else(Stdio::piped)).spawn().unwrap();
    // The command keeps its ends of the pipes open until it is dropped.
    drop(command);
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), text(&output.stderr))
}

/// A full disk.
fn full_disk() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    OwnedFd::from(writer).into()
}

#[tokio::test]
async fn u3_no_command_panics_on_a_closed_pipe_or_a_full_disk() {
    let dir = folder();
    let server = Replies::new(served::all(JobStatus::Succeeded)).served().await;
    let help = [vec!["--help".to_owned()], vec!["run".to_owned(), "create".to_owned(), "--help".to_owned()]];
    let all = commands().into_iter().map(|command| arguments(&command, dir.path())).chain(help);
    for arguments in all {
        for format in ["table", "json"] {
            let arguments = [arguments.clone(), vec!["--output".to_owned(), format.to_owned()]].concat();
            let fails = FAILS.contains(&arguments[..2].join(" ").as_str());
            let code = Some(if fails { 6 } else { 141 });
            let command = || inheritune(&server, &arguments);
            let closed = ended(command(), closed_pipe(), None).await;
            assert_eq!(closed.0, code, "{arguments:?}: {}", closed.1);
            assert!(!closed.1.contains("panicked"), "{arguments:?}: {}", closed.1);
            // If both streams are closed, only the exit code remains. A watch ends at its first
            // line.
            let both = ended(command(), closed_pipe(), Some(closed_pipe())).await;
            assert_eq!(both.0, code, "{arguments:?}");
            let full = ended(command(), full_disk(), None).await;
            assert_eq!(full.0, Some(6), "{arguments:?}: {}", full.1);
            assert!(fails || full.1.contains("cannot write to standard output"), "{arguments:?}: {}", full.1);
            // Errors and progress that cannot be written do not change the outcome.
            let silent = ended(command(), Stdio::null(), Some(full_disk())).await;
            assert_eq!(silent.0, Some(if fails { 6 } else { 0 }), "{arguments:?}");
        }
    }
}

#[tokio::test]
async fn u3_a_watch_ends_when_nobody_reads_its_progress() {
    let server = Replies::new(served::all(JobStatus::Running)).served().await;
    let arguments = ["run", "watch", ID].map(str::to_owned);
    let closed = ended(inheritune(&server, &arguments), Stdio::null(), Some(closed_pipe())).await;
    assert_eq!(closed.0, Some(141));
}

#[tokio::test]
async fn u11_every_table_fits_the_terminal() {
    let dir = folder();
    let server = Replies::new(served::all(JobStatus::Succeeded)).served().await;
    for command in commands() {
        if command == "completions" || FAILS.contains(&command.as_str()) {
            continue;
        }
        let arguments = arguments(&command, dir.path());
        for columns in [40, 80, 120] {
            let printed = inheritune(&server, &arguments).env("COLUMNS", columns.to_string()).output().await.unwrap();
            assert_eq!(printed.status.code(), Some(0), "{command}: {}", text(&printed.stderr));
            for line in text(&printed.stdout).lines() {
                // A single longer path or id stays whole, so that it can be copied.
                let is_one_word = line.split_whitespace().count() <= 2;
                assert!(line.width() <= columns || is_one_word, "{command}: {} of {columns}: {line}", line.width());
            }
        }
        // In a pipe, every row of a table is one line.
        if command == "run list" {
            let piped = text(&output(&server, &arguments).await.stdout);
            let rows = piped.lines().filter(|line| line.starts_with(ID)).collect::<Vec<_>>();
            assert!(rows.len() == 40 && rows[0].contains("that were inherited"), "{piped}");
        }
    }
}

#[tokio::test]
async fn u11_one_task_is_shown_in_full() {
    let server = Replies::new(served::all(JobStatus::Succeeded)).served().await;
    let list = text(&output(&server, &["eval", "tasks"].map(str::to_owned)).await.stdout);
    assert!(list.contains("mmlu_anatomy") && !list.contains("rows of"), "{list}");
    let one = text(&output(&server, &["eval", "tasks", "piqa"].map(str::to_owned)).await.stdout);
    assert!(one.contains("needs     piqa/validation: rows of baber/piqa") && !one.contains("boolq"), "{one}");
    let unknown = output(&server, &["eval", "tasks", "piqua"].map(str::to_owned)).await;
    assert_eq!(text(&unknown.stderr), "error: there is no benchmark `piqua`; did you mean `piqa`?\n");
    assert_eq!(unknown.status.code(), Some(2));
}

/// Runs a command on a pseudo-terminal of the given width and prints its output.
const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
written = b""
try:
    while chunk := os.read(terminal, 65536):
        written += chunk
except OSError:
    pass
sys.stdout.buffer.write(written)
"#;

#[tokio::test]
async fn u1_a_bar_on_a_terminal_shows_what_matters() {
    let server = Replies::new(served::all(JobStatus::Running)).served().await;
    for (columns, needles) in [
        ("40", &["25%", "12h05m", "step 25120/100000"][..]),
        ("80", &["モデル名", "25%", "12h05m left", "step 25120/100000 loss 10.831"]),
        ("200", &["twice", "25%", "12 h 05 min left", "step 25120/100000 loss 10.831", "tokens/s"]),
    ] {
        let binary = env!("CARGO_BIN_EXE_inheritune");
        let shown = Command::new("python3")
            .args(["-c", ON_A_TERMINAL, columns, "/bin/sh", "-c"])
            // Wait, because the width is set after the start.
            .arg(format!("sleep 0.3; exec {binary} --server {server} run watch {ID}"))
            .env_remove("COLUMNS")
            .output()
            .await
            .unwrap();
        let shown = text(&shown.stdout);
        let line = shown.split(['\r', '\n']).find(|line| line.contains("25%")).unwrap_or_default();
        for needle in needles {
            assert!(line.contains(needle), "{columns}: no {needle} in {line:?}, all of it: {shown:?}");
        }
    }
}
