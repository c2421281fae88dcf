//! Checkpoints made elsewhere become artifacts of this system: real server process, real client, real Postgres.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use support::{Server, root, show};

#[test]
fn a_checkpoint_is_imported_and_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    // A path from the current folder, which is the repository.
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

    let unwatched = server.ok(&["artifact", "import", root().join(golden).to_str().unwrap()]);
    assert!(unwatched.contains("Follow it with: inheritune job watch "), "{unwatched}");
    let output = server.inheritune(&["artifact", "import", "crates/slicer/tests/golden/not-read", "--watch"]);
    assert_eq!(output.status.code(), Some(2), "{}", show(&output));
    assert!(show(&output).contains("config.json is missing"), "{}", show(&output));
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
}
