//! Helpers for tests with a private Postgres.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses only some of the helpers

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Returns the folder of the server's programs from `INHERITUNE_PG_BIN`, if it is set.
pub fn pg_bin() -> Option<PathBuf> {
    std::env::var_os("INHERITUNE_PG_BIN").map(PathBuf::from)
}

/// Stops the servers below a folder and removes the folder when this process exits for any reason.
pub struct Sweeper(Child);

impl Sweeper {
    pub fn new(dir: &Path) -> Self {
        let script = r#"
            trap '' INT TERM HUP
            cat > /dev/null
            for pid in $(head -q -n 1 "$1"/*/cluster/postmaster.pid 2>/dev/null); do
                kill -INT "$pid" 2>/dev/null
                for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
            done
            rm -rf "$1"
        "#;
        let mut sweeper = Command::new("sh");
        sweeper
            .args(["-c", script, "sweeper"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(sweeper.spawn().unwrap())
    }
}
