//! A real server process, the real command-line client, and a recipe that is small enough for a
//! test.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Much longer than any of these tests take: only a hanging test reaches it.
pub const LIMIT: Duration = Duration::from_secs(300);

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the path of a program of another package, which is built into the same folder.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_inheritune-standalone")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}

/// `inheritune-standalone` on a folder, killed on drop.
pub struct Server {
    child: Child,
    pub address: String,
}

/// Returns a local address that no process listens on.
pub fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Server {
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, |command| command)
    }

    /// Starts a server with additional arguments or variables. Jobs may read every file, because
    /// tests put their recipes anywhere.
    pub fn start_with(dir: &Path, set_up: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        Self::start_as_users_do(dir, |command| set_up(command.args(["--allow-uri", "file:///"])))
    }

    /// Starts a server with only the arguments of `set_up`, as users do.
    pub fn start_as_users_do(dir: &Path, set_up: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        Self::start_on(dir, "127.0.0.1:0", set_up)
    }

    pub fn start_on(dir: &Path, listen: &str, set_up: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let address_file = dir.join("address");
        let _ = std::fs::remove_file(&address_file);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("server.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_inheritune-standalone"));
        command
            .args(["--listen", listen, "--threads", "1", "--data-dir"])
            .arg(dir.join("data"))
            .arg("--address-file")
            .arg(&address_file)
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut child = set_up(&mut command).spawn().unwrap();
        let started = Instant::now();
        loop {
            if let Ok(address) = std::fs::read_to_string(&address_file) {
                return Self { child, address };
            }
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && started.elapsed() < LIMIT,
                "no server ({ended:?}):\n{}",
                tail(&dir.join("server.log"))
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGKILL, which looks like a power failure to everyone else.
    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server ends by itself.
    pub fn wait(mut self, limit: Duration) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < limit, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM. Returns whether the server ended within 10 s.
    pub fn terminate(mut self) -> bool {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(told.success());
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn inheritune(&self, arguments: &[&str]) -> Output {
        self.client(arguments).output().unwrap()
    }

    /// Returns a client command that is not started yet.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("inheritune"));
        command.args(arguments).env("INHERITUNE_SERVER", &self.address).current_dir(root()).stdin(Stdio::null());
        command
    }

    /// Runs the client, which must exit with code 0, and returns its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.inheritune(arguments);
        assert!(output.status.success(), "{arguments:?}: {}\n{}", output.status, show(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the client with `--output json`, and returns the parsed output.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[&["--output", "json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{text}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn show(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Writes a corpus of files of this repository that never change, so that runs on it have fixed
/// results.
pub fn write_corpus(dir: &Path) -> PathBuf {
    let path = dir.join("corpus.txt");
    let migrations = ["0001_create_schema", "0002_create_ops_views", "0003_describe_metrics", "0004_share_evaluations"];
    let mut text = std::fs::read_to_string(root().join("LICENSE")).unwrap();
    for name in migrations {
        text += &std::fs::read_to_string(root().join(format!("migrations/{name}.sql"))).unwrap();
    }
    std::fs::write(&path, text).unwrap();
    path
}

/// Writes a full-data recipe for a three-layer GPT-2, which runs for seconds. Its loss cannot
/// match, so it grows to the reference's depth.
pub fn write_recipe(dir: &Path, name: &str) -> PathBuf {
    let corpus = write_corpus(dir);
    let recipe = format!(
        r#"
name = "{name}"
recipe = "full-data"
seed = 7

[corpus]
sources = ["file://{corpus}"]
validation_fraction = 0.1
tokenizer = {{ train = {{ vocab_size = 400 }} }}

[reference.architecture]
family = "gpt2"
n_layers = 3
d_model = 32
n_heads = 2
max_positions = 64

[reference.training]
block_size = 32
micro_batch = 8
steps = 250
lr_max = 2e-2
warmup_steps = 5
evaluate_every_steps = 20
checkpoint_every_steps = 15

[target]
start_layers = 1
grow_by = 1

[training]
block_size = 32
micro_batch = 8
steps = 30
# Too low for a candidate to match the reference, so that the target must grow.
lr_max = 1e-7
evaluate_every_steps = 10
checkpoint_every_steps = 10

[[controls]]
name = "random init, same depth"
"#,
        corpus = corpus.display()
    );
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, recipe).unwrap();
    path
}
