//! The demo with a model that is small enough for a test: real server process, real client, real
//! Postgres.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{LIMIT, Server, root, show, write_recipe};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_full_data_run_grows_and_ends_with_a_report_and_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "end-to-end");
    let (report, export) = (dir.path().join("report"), dir.path().join("model"));
    let server = Server::start(dir.path());
    let create = [
        "run",
        "create",
        text(&recipe),
        "--request-id-from-recipe",
        "--watch",
        "--report",
        text(&report),
        "--export",
        text(&export),
    ];
    let output = server.inheritune(&create);
    assert!(output.status.success(), "{}\n{}", show(&output), support::tail(&dir.path().join("server.log")));

    let runs = server.json(&["run", "list"]);
    let run = &runs["runs"][0];
    assert_eq!(run["status"], "SUCCEEDED", "{run:#}");
    let id = run["id"].as_str().unwrap().to_owned();

    // There were three rounds, each deeper than the last, and the control has the winner's depth.
    let markdown = std::fs::read_to_string(report.join("report.md")).unwrap();
    for row in ["reference", "round 1: 1 layers inherited", "round 3: 3 layers inherited", "random init, same depth"] {
        assert!(markdown.contains(row), "{row} is missing:\n{markdown}");
    }
    let html = std::fs::read_to_string(report.join("index.html")).unwrap();
    assert!(
        html.contains("<svg") && html.contains("transformer.h.0.attn.c_attn.weight"),
        "no plot or no tensor origins"
    );

    // An ordinary Hugging Face folder of the winner's depth.
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(export.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["n_layer"], 3);
    for file in ["model.safetensors", "tokenizer.json", "inheritance.json"] {
        assert!(export.join(file).exists(), "{file} is missing");
    }

    // Repeating the command finds the finished run and creates no other.
    std::fs::remove_dir_all(&export).unwrap();
    server.ok(&create);
    assert_eq!(server.json(&["run", "list"])["runs"].as_array().unwrap().len(), 1);

    // The curves of a training, as a table, as JSON and for TensorBoard.
    let jobs = server.json(&["job", "list", "--run", &id, "--kind", "train"]);
    let job = jobs["jobs"][0]["id"].as_str().unwrap();
    let curves = dir.path().join("curves");
    let shown = server.ok(&["job", "metrics", job, "--tensorboard", text(&curves)]);
    assert!(shown.contains("train_loss") && shown.contains("model_flops_utilization"), "{shown}");
    let events = std::fs::read_dir(&curves).unwrap().next().unwrap().unwrap();
    assert!(events.file_name().to_str().unwrap().starts_with("events.out.tfevents."));
    let points = server.json(&["job", "metrics", job]);
    let points = points["metric_points"].as_array().unwrap();
    // After the event that opens the file, there is one event per point, which contains its name.
    let bytes = std::fs::read(events.path()).unwrap();
    let losses = points.iter().filter(|point| point["name"] == "train_loss").count();
    assert!(losses > 0 && bytes.windows(10).filter(|window| *window == b"train_loss").count() == losses);

    // A finished run cannot be cancelled; an unknown one is not found.
    assert_eq!(server.inheritune(&["run", "cancel", &id]).status.code(), Some(5));
    assert_eq!(server.inheritune(&["run", "get", "00000000-0000-7000-8000-000000000000"]).status.code(), Some(4));
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
}

#[test]
fn kill_9_at_any_moment_changes_nothing() {
    let calm = tempfile::tempdir().unwrap();
    let recipe = write_recipe(calm.path(), "killed");
    let expected = {
        let server = Server::start(calm.path());
        let export = calm.path().join("model");
        server.ok(&["run", "create", text(&recipe), "--watch", "--export", text(&export)]);
        std::fs::read(export.join("model.safetensors")).unwrap()
    };

    let stormy = tempfile::tempdir().unwrap();
    let export = stormy.path().join("model");
    // Kills at fixed intervals, so that a failure can be reproduced.
    for wait_ms in [300, 700, 1500, 2600, 900, 3300] {
        let server = Server::start(stormy.path());
        server.ok(&["run", "create", text(&recipe), "--request-id-from-recipe"]);
        std::thread::sleep(Duration::from_millis(wait_ms));
        server.kill_9();
    }
    // One graceful stop: the server saves, releases its jobs and ends in time.
    let server = Server::start(stormy.path());
    std::thread::sleep(Duration::from_millis(800));
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
    let server = Server::start(stormy.path());
    server.ok(&["run", "create", text(&recipe), "--request-id-from-recipe", "--watch", "--export", text(&export)]);
    assert!(std::fs::read(export.join("model.safetensors")).unwrap() == expected, "the winner's weights differ");
    assert_eq!(server.json(&["run", "list"])["runs"].as_array().unwrap().len(), 1);
}

#[test]
fn pause_and_resume_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "paused");
    let server = Server::start(dir.path());
    let run = server.json(&["run", "create", text(&recipe)]);
    let id = run["id"].as_str().unwrap();
    server.ok(&["run", "pause", id]);
    let started = Instant::now();
    let busy = |status: &str| ["QUEUED", "RUNNING", "PAUSING"].contains(&status);
    let running = |server: &Server| {
        let list = server.json(&["job", "list", "--run", id]);
        list["jobs"].as_array().unwrap().iter().any(|job| busy(job["status"].as_str().unwrap()))
    };
    while running(&server) {
        assert!(started.elapsed() < LIMIT, "the run's jobs do not pause");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.json(&["run", "get", id])["status"], "PAUSED");
    server.ok(&["run", "resume", id]);
    server.ok(&["run", "watch", id]);
    assert_eq!(server.json(&["run", "get", id])["status"], "SUCCEEDED");
}

#[test]
fn a_bad_recipe_names_every_bad_field() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "bad");
    let bad = std::fs::read_to_string(&recipe)
        .unwrap()
        .replace("start_layers = 1", "start_layers = 9")
        .replace("lr_max = 1e-7", "lr_max = -1.0");
    std::fs::write(&recipe, bad).unwrap();
    let server = Server::start(dir.path());
    let output = server.inheritune(&["run", "create", text(&recipe)]);
    assert_eq!(output.status.code(), Some(2), "{}", show(&output));
    for field in ["target.start_layers", "training.lr_max"] {
        assert!(show(&output).contains(field), "{field} is not named: {}", show(&output));
    }
}

#[test]
fn an_empty_corpus_fails_the_run_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "empty");
    std::fs::write(dir.path().join("corpus.txt"), "").unwrap();
    let server = Server::start(dir.path());
    let output = server.inheritune(&["run", "create", text(&recipe), "--watch"]);
    assert_eq!(output.status.code(), Some(1), "{}", show(&output));
    assert!(show(&output).contains("corpus.txt"), "{}", show(&output));
}

#[test]
fn a_python_client_submits_and_watches_a_run() {
    let packages = root().join(".deps/python");
    let can = |arguments: &[&str]| {
        Command::new("python3")
            .args(arguments)
            .env("PYTHONPATH", &packages)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !can(&["-c", "import grpc, grpc_tools, grpc_reflection, tomllib"]) {
        eprintln!(
            "skipped: python3 with grpcio, grpcio-tools and grpcio-reflection is missing; `make test` sets it up"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "python");
    let server = Server::start(dir.path());
    let output = Command::new("python3")
        .arg(root().join("examples/python/inheritune_client.py"))
        .args(["--address", server.address.trim_start_matches("http://"), "submit", text(&recipe), "--watch"])
        .env("PYTHONPATH", &packages)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", show(&output));
    assert!(show(&output).contains("SUCCEEDED"), "{}", show(&output));
}
