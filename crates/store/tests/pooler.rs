//! PgBouncer in front of Postgres: it must keep one session per connection.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inheritune_domain::spec::JobKind;
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_store::StoreError;
use inheritune_store::notify::Topic;
use support::submit_and_claim;

/// A running PgBouncer in front of one database.
struct Pooler {
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn program() -> Option<PathBuf> {
    let found = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"].map(Path::new);
    found.into_iter().find(|path| path.exists()).map(Path::to_owned)
}

impl Pooler {
    fn start(program: &Path, database_url: &str, mode: &str, pool_size: u32) -> Self {
        let url = url::Url::parse(database_url).unwrap();
        let parameter = |name: &str| url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
        let (database, password) = (url.path().trim_start_matches('/'), url.password().unwrap());
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        // PgBouncer refuses to run as root. Its account needs access to Postgres's socket.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (config, users) = (dir.path().join("pgbouncer.ini"), dir.path().join("users"));
        std::fs::write(&users, format!("\"{}\" \"{password}\"\n", url.username())).unwrap();
        let text = format!(
            "[databases]\n{database} = host={host} port=5432 dbname={database} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = plain\n\
             auth_file = {users}\npool_mode = {mode}\ndefault_pool_size = {pool_size}\nserver_tls_sslmode = disable\n",
            host = parameter("host"),
            user = url.username(),
            port = address.port(),
            users = users.display(),
        );
        std::fs::write(&config, text).unwrap();
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
        let mut command = if is_root { Command::new("setpriv") } else { Command::new(program) };
        if is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        }
        let process = command.arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { process, address, _dir: dir };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "pgbouncer does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        pooler
    }

    /// Returns the URL of the database through the pooler.
    fn url(&self, database_url: &str) -> String {
        let url = url::Url::parse(database_url).unwrap();
        let (user, password) = (url.username(), url.password().unwrap());
        format!("postgres://{user}:{password}@{}{}?sslmode=disable", self.address, url.path())
    }
}

fn memory() -> ObjectsConfig {
    ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: Vec::new() }
}

#[tokio::test]
async fn u12_a_pooler_of_transactions_is_refused_and_one_of_sessions_works() {
    let Some(program) = program() else {
        return println!("skipped: pgbouncer is not installed (apt-get install pgbouncer)");
    };
    let database_url = support::database().await;
    let direct = support::connect(&database_url, memory()).await;
    direct.migrate().await.unwrap();
    direct.check_schema().await.unwrap();

    for (mode, pool_size) in [("transaction", 20), ("transaction", 1), ("statement", 20)] {
        let pooler = Pooler::start(&program, &database_url, mode, pool_size);
        let store = support::connect(&pooler.url(&database_url), memory()).await;
        for refused in [store.check_schema().await, store.migrate().await] {
            let error = refused.unwrap_err();
            let told = error.to_string();
            match mode {
                // PgBouncer itself rejects transactions in this mode.
                "statement" => assert!(told.contains("transaction"), "{told}"),
                _ => {
                    assert!(matches!(error, StoreError::WrongState(_)), "{told}");
                    assert!(told.contains("pool_mode = session"), "{told}");
                }
            }
        }
    }

    let pooler = Pooler::start(&program, &database_url, "session", 20);
    let store = support::connect(&pooler.url(&database_url), memory()).await;
    store.migrate().await.unwrap();
    store.check_schema().await.unwrap();
    let mut wakeups = store.listen().await.unwrap();
    let lease = submit_and_claim(&store, JobKind::Slice).await;
    let began = Instant::now();
    wakeups.changed(Topic::Jobs, Duration::from_secs(20)).await;
    assert!(began.elapsed() < Duration::from_secs(15), "nothing was announced");
    store.release_job(lease.key, "enough").await.unwrap();
    let setting: String =
        sqlx::query_scalar("SELECT current_setting('plan_cache_mode')").fetch_one(store.pool()).await.unwrap();
    assert_eq!(setting, "force_generic_plan");
}
