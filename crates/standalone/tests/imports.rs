//! Imports checkpoints from other tools as artifacts: real server process, real client, real
//! Postgres.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use support::{Server, root, show};

#[test]
fn a_checkpoint_is_imported_and_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    // A path relative to the current folder, which is the repository.
    let golden = "crates/slicer/tests/golden/llama-bf16-sharded";
    let artifact = server.json(&["artifact", "import", golden, "--watch"]);
    assert_eq!(artifact["kind"], "CHECKPOINT", "{artifact:#}");
    let id = artifact["id"].as_str().unwrap();
    let inspected = server.json(&["slice", "inspect", &format!("artifact://{id}")]);
    assert_eq!((&inspected["config"]["n_layers"], &inspected["config"]["family"]), (&2.into(), &"LLAMA".into()));
    let from: Vec<_> = inspected["tensors"].as_array().unwrap().iter().map(|tensor| &tensor["file"]).collect();
    assert!(from.iter().all(|file| *file == "model.safetensors"), "{from:?}");

    let export = dir.path().join("exported");
    server.ok(&["artifact", "export", id, "--to", export.to_str().unwrap()]);
    for file in ["config.json", "inheritance.json", "model.safetensors"] {
        assert!(export.join(file).exists(), "{file} is missing");
    }

    let pinned = server.json(&["artifact", "pin", id]);
    assert_eq!((&pinned["id"], &pinned["pinned"]), (&id.into(), &true.into()));
    assert!(server.ok(&["artifact", "list"]).contains(" pinned "));
    let kept = server.inheritune(&["artifact", "delete", id]);
    assert_eq!(kept.status.code(), Some(5), "{}", show(&kept));
    assert!(show(&kept).contains(&format!("artifact {id} is pinned; unpin it first")), "{}", show(&kept));
    assert!(server.json(&["artifact", "unpin", id])["pinned"] != true);
    server.ok(&["artifact", "delete", id]);
    assert!(show(&server.inheritune(&["artifact", "get", id])).contains("(deleted) does not exist"));

    let unwatched = server.ok(&["artifact", "import", root().join(golden).to_str().unwrap()]);
    assert!(unwatched.contains("Follow it with: inheritune job watch "), "{unwatched}");
    let output = server.inheritune(&["artifact", "import", "crates/slicer/tests/golden/not-read", "--watch"]);
    assert_eq!(output.status.code(), Some(2), "{}", show(&output));
    assert!(show(&output).contains("config.json is missing"), "{}", show(&output));
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
}

/// Evaluates a baseline that exists only as a pickle, and compares its score with that of
/// transformers.
#[test]
fn an_imported_baseline_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let golden = root().join("crates/slicer/tests/golden/pythia");
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("evaluation.json")).unwrap()).unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, expected["text"].as_str().unwrap()).unwrap();
    let server = Server::start(dir.path());
    let artifact = server.json(&["artifact", "import", golden.to_str().unwrap(), "--watch"]);
    let job = dir.path().join("evaluate.toml");
    let spec = format!(
        "kind = \"evaluate\"\ncheckpoint = \"artifact://{}\"\nbatch_size = 4\n\
         [[tasks]]\ntask = \"rolling_perplexity\"\nsource = \"{}\"\n",
        artifact["id"].as_str().unwrap(),
        text.display()
    );
    std::fs::write(&job, spec).unwrap();
    let done = server.json(&["job", "submit", job.to_str().unwrap(), "--watch"]);
    let scores = done["outcome"]["evaluated"]["scores"].as_array().unwrap();
    let loss = scores.iter().find(|score| score["metric"] == "loss_nats").unwrap()["value"].as_f64().unwrap();
    let wanted = expected["nats"].as_f64().unwrap() / expected["tokens"].as_f64().unwrap();
    assert!((loss - wanted).abs() < 1e-5 * wanted, "{loss}, transformers says {wanted}");
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
}
