//! The standalone server: its database, its data folder, what jobs may read, and its errors at
//! startup.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{LIMIT, Server, free_address, root, show, tail, write_corpus};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Starts a server that must fail, and returns its output.
fn refused(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inheritune-standalone"));
    command.env_remove("DATABASE_URL").env("RUST_BACKTRACE", "1").current_dir(dir).args(arguments);
    let output: Output = command.stdin(Stdio::null()).output().unwrap();
    let said = show(&output);
    assert_eq!(
        output.status.code(),
        Some(if said.contains("Usage:") || said.contains("--help") { 2 } else { 1 }),
        "{said}"
    );
    assert!(!said.contains("stack backtrace") && !said.contains("Caused by"), "{said}");
    said
}

/// Returns the lines that are not log lines.
fn plain(said: &str) -> Vec<&str> {
    said.lines().filter(|line| !line.is_empty() && !line.contains(" INFO ") && !line.contains(" WARN ")).collect()
}

fn postmaster(data: &Path) -> Option<u32> {
    std::fs::read_to_string(data.join("postgres/cluster/postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn r4_a_postgres_that_dies_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let server = Server::start(dir.path());
    for round in 0..2 {
        let dead = postmaster(&dir.path().join("data")).unwrap();
        kill(dead);
        let started = Instant::now();
        // Calls fail until Postgres is back, and then succeed again.
        while !server.inheritune(&["job", "list"]).status.success() {
            assert!(started.elapsed() < Duration::from_secs(60), "{}", tail(&dir.path().join("server.log")));
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!("round {round}: {:.1} s until calls work again", started.elapsed().as_secs_f64());
        assert_ne!(postmaster(&dir.path().join("data")), Some(dead));
    }
    // Workers recover too.
    let recipe = support::write_recipe(dir.path(), "after");
    assert!(corpus.exists());
    server.ok(&["run", "create", text(&recipe), "--watch"]);
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");
}

#[test]
fn r4_a_postgres_that_cannot_be_started_again_ends_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let data = dir.path().join("data");
    // It dies, and files that it needs are gone, so it cannot be restarted.
    std::fs::rename(data.join("postgres/cluster/global"), data.join("postgres/cluster/global-moved")).unwrap();
    kill(postmaster(&data).unwrap());
    let status = server.wait(LIMIT);
    let log = tail(&dir.path().join("server.log"));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("error: Postgres did not start"), "{log}");
}

#[test]
fn s5_jobs_read_the_folder_of_the_start_and_no_other() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let here = dir.path().join("here");
    std::fs::create_dir(&here).unwrap();
    std::fs::write(here.join("text.txt"), "some text\n".repeat(200)).unwrap();
    std::fs::write(elsewhere.path().join("text.txt"), "secret text\n".repeat(200)).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("text.txt"), here.join("link.txt")).unwrap();
    let server = Server::start_as_users_do(dir.path(), |command| command.current_dir(&here));
    let submit = |path: &Path, name: &str| {
        let job = dir.path().join(format!("{name}.json"));
        let spec = serde_json::json!({
            "kind": "tokenize", "sources": [format!("file://{}", path.display())],
            "tokenizer": {"train": {"vocab_size": 300}}, "validation_fraction": 0.1,
        });
        std::fs::write(&job, spec.to_string()).unwrap();
        server.inheritune(&["job", "submit", text(&job), "--watch"])
    };
    let allowed = submit(&here.join("text.txt"), "allowed");
    assert!(allowed.status.success(), "{}", show(&allowed));
    for (path, name) in [
        (elsewhere.path().join("text.txt"), "outside"),
        (here.join("link.txt"), "link"),
        (Path::new("/etc/shadow").to_owned(), "shadow"),
        (here.join("../../../etc/passwd"), "dots"),
    ] {
        let output = submit(&path, name);
        let said = show(&output);
        assert!(!output.status.success() && said.contains("--allow-uri"), "{name}: {said}");
        assert!(!said.contains("secret text"), "{said}");
    }
    let mode = std::fs::metadata(dir.path().join("data")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "other users can access the data folder: {mode:o}");
}

#[test]
fn s5_others_may_call_only_with_a_token_or_where_words_say_so() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["--listen", "0.0.0.0:0"][..], &["--listen", "0.0.0.0:0", "--plaintext-anywhere"]] {
        let said = refused(dir.path(), arguments);
        assert_eq!(plain(&said).len(), 1, "{said}");
        assert!(said.contains("--listen 0.0.0.0:0 is not a loopback address"), "{said}");
        assert!(said.contains("--callers-anyone") || said.contains("--plaintext-anywhere"), "{said}");
        assert!(!said.contains("security."), "{said}");
    }
    assert!(
        !dir.path().join("inheritune-data/postgres/cluster").exists(),
        "a database was created before the options were rejected"
    );
    let open = ["--plaintext-anywhere", "--callers-anyone"];
    drop(Server::start_on(dir.path(), "0.0.0.0:0", |command| command.args(open)));
    let token = dir.path().join("token");
    std::fs::write(&token, "a-token-of-its-own").unwrap();
    let with_token = ["--plaintext-anywhere", "--bearer-token-file", text(&token)];
    drop(Server::start_on(dir.path(), "0.0.0.0:0", |command| command.args(with_token)));
}

#[test]
fn u4_a_second_server_on_a_folder_says_which_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let data = dir.path().join("data");
    let said = refused(dir.path(), &["--listen", "127.0.0.1:0", "--data-dir", text(&data)]);
    assert_eq!(plain(&said).len(), 1, "{said}");
    assert!(said.contains(&format!("(pid {})", server.pid())) && said.contains("--data-dir"), "{said}");
}

#[test]
fn u4_what_is_wrong_with_the_options_is_said_by_their_names_before_a_database_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let file = root().join("LICENSE");
    let (free, none) = (free_address().to_string(), "no-such-file");
    let cases: [(&[&str], &str); 11] = [
        (&["--listen", &taken], &format!("--listen {taken}")),
        (&["--listen", &free, "--metrics-listen", &taken], &format!("--metrics-listen {taken}")),
        (&["--listen", &free, "--metrics-listen", "0.0.0.0:0"], "--metrics-listen 0.0.0.0:0"),
        (&["--listen", &free, "--data-dir", text(&file)], "--data-dir"),
        (&["--listen", &free, "--allow-uri", "http://x/"], "--allow-uri"),
        (&["--listen", &free, "--threads", "0"], "--threads"),
        (&["--listen", &free, "--job-memory-max-bytes", "5"], "--job-memory-max-bytes"),
        (&["--listen", &free, "--bearer-token-file", none], "--bearer-token-file"),
        (&["--listen", &free, "--certificate-file", none, "--key-file", none], "--certificate-file"),
        (&["--listen", &free, "--pg-bin", none], "--pg-bin"),
        (&["--listen", &free, "--database-url", "nonsense"], "--database-url"),
    ];
    for (arguments, expected) in cases {
        let said = refused(dir.path(), arguments);
        eprintln!("{}", said.trim());
        assert!(said.contains(expected), "{arguments:?}: {said}");
        for field in ["`listen`", "security.", "telemetry.", "worker.", "allowed_uris", "objects."] {
            assert!(!said.contains(field), "{arguments:?}: {said}");
        }
        assert!(!dir.path().join("inheritune-data/postgres/cluster").exists(), "{arguments:?}: a database was created");
    }
}
