//! kill -9 once in every phase of a run: `make test-slow`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::{LIMIT, Server, write_recipe};

#[test]
#[ignore = "minutes long; run by make test-slow"]
fn kill_9_once_in_every_phase_changes_nothing() {
    let calm = tempfile::tempdir().unwrap();
    let recipe = write_recipe(calm.path(), "every-phase");
    let recipe = recipe.to_str().unwrap();
    let model = |server: &Server, dir: &std::path::Path| {
        let export = dir.join("model");
        server.ok(&[
            "run",
            "create",
            recipe,
            "--request-id-from-recipe",
            "--watch",
            "--export",
            export.to_str().unwrap(),
        ]);
        std::fs::read(export.join("model.safetensors")).unwrap()
    };
    let expected = model(&Server::start(calm.path()), calm.path());

    let stormy = tempfile::tempdir().unwrap();
    let mut server = Server::start(stormy.path());
    let run = server.json(&["run", "create", recipe, "--request-id-from-recipe"]);
    let id = run["id"].as_str().unwrap().to_owned();
    let mut killed_in = BTreeSet::new();
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < 3 * LIMIT, "the run does not end; killed in {killed_in:?}");
        let run = server.json(&["run", "get", &id]);
        if run["status"] == "SUCCEEDED" {
            break;
        }
        assert_eq!(run["status"], "RUNNING", "{run:#}");
        if killed_in.insert(run["state"].as_str().unwrap().to_owned()) {
            server.kill_9();
            server = Server::start(stormy.path());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("killed in {killed_in:#?}");
    assert!(killed_in.len() >= 8, "too few phases were seen: {killed_in:?}");
    assert!(model(&server, stormy.path()) == expected, "the winner's weights differ");
}
