//! A deployment: the services as separate processes, on one private Postgres and one object store.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_objects::{ObjectsConfig, StorageConfig};
use inheritune_postgres::LocalPostgres;
use inheritune_store::{Store, StoreConfig};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::support::{LIMIT, free_address, program, root, show, tail, write_recipe};

/// The expected result of the runs of all tests.
static CALM: OnceCell<Finished> = OnceCell::const_new();

/// The result of the same recipe without faults. It is computed once, on a folder.
pub async fn calm() -> &'static Finished {
    CALM.get_or_init(async || {
        let mut cluster = Cluster::start(Setup::default()).await;
        let run = cluster.create_run().await;
        cluster.finish(run).await
    })
    .await
}

/// A deployment. Its processes are killed on drop.
pub struct Cluster {
    services: BTreeMap<String, Service>,
    /// A separate connection to the same database and object store, for the tests.
    pub store: Store,
    postgres: Option<LocalPostgres>,
    pub objects: PathBuf,
    pub dir: TempDir,
}

/// Settings that differ between tests.
pub struct Setup {
    /// `NAME`, or `NAME-N` if there are several.
    pub services: Vec<&'static str>,
    /// `[objects.storage]`, and the folder with its files. A local folder if absent.
    pub storage: Option<(String, PathBuf)>,
    pub env: Vec<(&'static str, String)>,
    /// Additional lines of `[worker]`.
    pub worker: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        let services = vec!["scheduler", "slicer", "trainer", "evaluator"];
        Self { services, storage: None, env: Vec::new(), worker: "" }
    }
}

/// A process that can be restarted.
pub struct Service {
    command: Vec<String>,
    env: Vec<(&'static str, String)>,
    log: PathBuf,
    /// Address of its gRPC server.
    address: String,
    child: Option<Child>,
}

impl Cluster {
    pub async fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // For root, Postgres runs as `nobody`, which must be able to access the folder.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let postgres = LocalPostgres::start(&dir.path().join("postgres"), None).await.unwrap();
        let (storage, objects) = setup.storage.unwrap_or_else(|| {
            let path = dir.path().join("objects");
            (format!("kind = \"folder\"\npath = \"{}\"", path.display()), path)
        });
        let config = ObjectsConfig { storage: StorageConfig::folder(&objects), allowed_uris: Vec::new() };
        let store = StoreConfig { database_url: postgres.url().to_owned(), max_connections: 4, objects: config };
        let store = Store::connect(&store).await.unwrap();
        store.migrate().await.unwrap();
        let mut cluster = Self { services: BTreeMap::new(), store, postgres: Some(postgres), objects, dir };
        for name in setup.services {
            let service = cluster.configure(name, (&storage, setup.worker), &setup.env);
            cluster.services.insert(name.to_owned(), service);
            cluster.start_service(name);
        }
        cluster
    }

    fn configure(&self, name: &str, (storage, worker): (&str, &str), env: &[(&'static str, String)]) -> Service {
        let kind = name.split('-').next().unwrap();
        // It is very unlikely that another process takes this port before the service does.
        let address = free_address();
        let worker = match kind {
            "scheduler" => String::new(),
            _ => format!("[worker]\ncache_dir = \"{}\"\nthreads = 1\n{worker}\n", self.cache_dir(name).display()),
        };
        let config = format!(
            "listen = \"{address}\"\n\n[database]\nurl = \"{url}\"\nmax_connections = 6\n\n\
             [objects]\nallowed_uris = [\"file:///\"]\n\n[objects.storage]\n{storage}\n\n{worker}\n\
             [telemetry]\nformat = \"json\"\n",
            url = self.database_url(),
        );
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, config).unwrap();
        let program = program(&format!("inheritune-{kind}"));
        Service {
            command: vec![program.display().to_string(), "--config".to_owned(), path.display().to_string()],
            env: env.to_vec(),
            log: self.dir.path().join(format!("{name}.log")),
            address: format!("http://{address}"),
            child: None,
        }
    }

    pub fn cache_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("cache-{name}"))
    }

    pub fn database_url(&self) -> &str {
        self.postgres.as_ref().unwrap().url()
    }

    pub fn database_password(&self) -> &str {
        self.database_url().split('@').next().and_then(|start| start.rsplit(':').next()).unwrap()
    }

    /// The socket on which Postgres listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("postgres/socket/.s.PGSQL.5432")
    }

    pub fn start_service(&mut self, name: &str) {
        self.start_within(name, &[]);
    }

    /// Starts a service through a wrapper command, which gets the service's command as arguments.
    pub fn start_within(&mut self, name: &str, wrapper: &[&str]) {
        let service = self.services.get_mut(name).unwrap();
        service.start(wrapper);
        if name.starts_with("scheduler") {
            service.wait_until_it_listens();
        }
    }

    pub fn kill_9(&mut self, name: &str) {
        let mut child = self.services.get_mut(name).unwrap().child.take().expect("the service is running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The process id of a running service.
    pub fn pid(&self, name: &str) -> u32 {
        self.services[name].child.as_ref().expect("the service is running").id()
    }

    /// Inserts lines after a line of a service's configuration, for its next start.
    pub fn add_to_config(&self, name: &str, after: &str, lines: &str) {
        let path = self.dir.path().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(after), "{text}");
        std::fs::write(&path, text.replacen(after, &format!("{after}{lines}"), 1)).unwrap();
    }

    pub fn add_argument(&mut self, name: &str, argument: &str) {
        self.services.get_mut(name).unwrap().command.push(argument.to_owned());
    }

    /// The peak size of the address space of a service's job processes so far, in KiB. `None` if
    /// there are none, or if the system does not report it.
    pub fn peak_addresses_kib(&self, name: &str) -> Option<u64> {
        let peak = |pid: u32| -> Option<u64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok())
        };
        below(self.pid(name)).into_iter().filter_map(peak).max()
    }

    /// The log of a service.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(&self.services[name].log).unwrap()
    }

    /// Panics if a process has ended that was not killed by the test.
    pub fn check_all_run(&mut self) {
        for (name, service) in &mut self.services {
            if let Some(child) = &mut service.child {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{name} ended with {ended:?}:\n{}", tail(&service.log));
            }
        }
    }

    /// Kills the database with SIGKILL (`KILL`) or stops it immediately (`QUIT`). Waits until all
    /// its processes are gone.
    pub async fn kill_postgres(&mut self, signal: &str) {
        let pid_file = self.dir.path().join("postgres/cluster/postmaster.pid");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        send(pid.lines().next().unwrap().trim().parse().unwrap(), signal);
        let started = Instant::now();
        while tokio::net::UnixStream::connect(self.socket()).await.is_ok() {
            assert!(started.elapsed() < LIMIT, "Postgres does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(self.postgres.take());
    }

    /// Restarts Postgres on the same folder.
    pub async fn start_postgres(&mut self) {
        self.postgres = Some(LocalPostgres::start(&self.dir.path().join("postgres"), None).await.unwrap());
    }

    /// Runs the client against any running scheduler until it succeeds, and returns its JSON
    /// output.
    pub async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let started = Instant::now();
        loop {
            let schedulers =
                self.services.iter().filter(|(name, service)| name.starts_with("scheduler") && service.child.is_some());
            let mut shown = String::from("no scheduler");
            for (_, scheduler) in schedulers {
                let mut client = Command::new(program("inheritune"));
                client.args(["--output", "json"]).args(arguments).env("INHERITUNE_SERVER", &scheduler.address);
                let output = client.current_dir(root()).stdin(Stdio::null()).output().unwrap();
                if output.status.success() {
                    return serde_json::from_slice(&output.stdout).unwrap();
                }
                shown = show(&output);
            }
            assert!(started.elapsed() < LIMIT, "{arguments:?}: {shown}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Starts a run of the small recipe.
    pub async fn create_run(&self) -> Uuid {
        let (recipe, request_id) = (write_recipe(self.dir.path(), "small"), Uuid::new_v4().to_string());
        let run = self.json(&["run", "create", recipe.to_str().unwrap(), "--request-id", &request_id]).await;
        run["id"].as_str().unwrap().parse().unwrap()
    }

    /// The status of a run. `None` while the database does not answer.
    pub async fn status(&self, run: Uuid) -> Option<String> {
        let found = sqlx::query_scalar("SELECT status FROM runs WHERE id = $1").bind(run).fetch_one(self.store.pool());
        tokio::time::timeout(Duration::from_secs(2), found).await.ok()?.ok()
    }

    /// Waits until a run has succeeded, and returns its result.
    pub async fn finish(&mut self, run: Uuid) -> Finished {
        let started = Instant::now();
        loop {
            match self.status(run).await.as_deref() {
                Some("SUCCEEDED") => break,
                None | Some("RUNNING" | "QUEUED") if started.elapsed() < 2 * LIMIT => {}
                status => panic!("the run is {status:?}\n{}", self.story(run).await),
            }
            self.check_all_run();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let got = self.json(&["run", "get", &run.to_string()]).await;
        let winner = got["winner"]["checkpoint"].as_str().unwrap().strip_prefix("artifact://").unwrap();
        let winner = Location::Artifact(ArtifactId(winner.parse().unwrap()));
        let weights =
            self.store.open(&winner).await.unwrap().read("model.safetensors", 1 << 30).await.unwrap().to_vec();
        let query = "SELECT label FROM jobs WHERE run_id = $1 ORDER BY label";
        let jobs = sqlx::query_scalar(query).bind(run).fetch_all(self.store.pool()).await.unwrap();
        Finished { weights, jobs }
    }

    /// The history of a run's jobs, for messages.
    async fn story(&self, run: Uuid) -> String {
        let query = "SELECT format('%s attempt %s %s %s', j.label, a.attempt, a.ended, a.error)
                     FROM job_attempts a JOIN jobs j ON j.id = a.job_id WHERE j.run_id = $1 ORDER BY a.started_at";
        let lines: Vec<String> =
            sqlx::query_scalar(query).bind(run).fetch_all(self.store.pool()).await.unwrap_or_default();
        lines.join("\n")
    }

    /// Waits until no jobs are left. Then checks that no job has two accepted results, that every
    /// artifact of a row exists and is intact, and that a sweep removes all other files.
    pub async fn check_nothing_is_lost_or_left(&self) {
        let started = Instant::now();
        while self.count("SELECT count(*) FROM job_queue").await > 0 {
            assert!(started.elapsed() < LIMIT, "jobs are left");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let twice = "SELECT count(*) FROM (SELECT job_id FROM job_attempts WHERE ended = 'succeeded'
                                           GROUP BY job_id HAVING count(*) > 1) twice";
        assert_eq!(self.count(twice).await, 0, "a job has two accepted results");
        let without = "SELECT count(*) FROM jobs j WHERE final_status = 'SUCCEEDED' AND NOT EXISTS
                       (SELECT FROM job_attempts a WHERE a.job_id = j.id AND a.ended = 'succeeded')";
        assert_eq!(self.count(without).await, 0, "a job has a result without a successful attempt");

        let rows = "SELECT id, location FROM artifacts WHERE deleted_at IS NULL AND job_id IS NOT NULL";
        let rows: Vec<(Uuid, String)> = sqlx::query_as(rows).fetch_all(self.store.pool()).await.unwrap();
        let mut named = BTreeSet::new();
        for (id, location) in &rows {
            // Read the manifest, and each file with its digest.
            let folder = self.store.open(&Location::Artifact(ArtifactId(*id))).await.unwrap();
            named.insert(format!("{location}/manifest.json"));
            for file in folder.files() {
                folder.read(&file.name, 1 << 30).await.unwrap();
                named.insert(format!("{location}/{}", file.name));
            }
        }
        let swept = self.store.sweep_orphans(Duration::ZERO).await.unwrap();
        let mut found = BTreeSet::new();
        walk(&self.objects, &self.objects, &mut found);
        assert_eq!(found, named, "files without a row (left), or rows without a file (right)");
        eprintln!("{} artifacts, {} files, all intact; {swept} orphans swept", rows.len(), named.len());
    }

    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(self.store.pool()).await.unwrap()
    }
}

/// The result of a run.
#[derive(PartialEq)]
pub struct Finished {
    /// The winner's weights file.
    pub weights: Vec<u8>,
    /// The labels of the run's jobs.
    pub jobs: Vec<String>,
}

impl Finished {
    pub async fn check_equals_calm(&self) {
        let calm = calm().await;
        assert_eq!(self.jobs, calm.jobs, "the jobs differ from those of a run without faults");
        assert!(self.weights == calm.weights, "the winner's weights differ");
    }
}

impl Service {
    fn start(&mut self, wrapper: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut words = wrapper.iter().copied().chain(self.command.iter().map(String::as_str));
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_remove("DATABASE_URL").envs(self.env.iter().map(|(name, value)| (*name, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        assert!(self.child.replace(child).is_none(), "the service is already running");
    }

    fn wait_until_it_listens(&self) {
        let started = Instant::now();
        while std::net::TcpStream::connect(self.address.trim_start_matches("http://")).is_err() {
            assert!(started.elapsed() < LIMIT, "the service does not listen:\n{}", tail(&self.log));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All descendants of a process.
pub fn below(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let children: Vec<u32> =
        tasks.flat_map(|task| of_task(task).split_whitespace().flat_map(str::parse).collect::<Vec<u32>>()).collect();
    children.iter().copied().chain(children.iter().flat_map(|child| below(*child))).collect()
}

/// Sends a signal with `kill -SIGNAL`.
pub fn send(pid: u32, signal: &str) {
    let told = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(told.success());
}

/// Seconds since 1970. The database runs on this machine and has the same clock.
pub fn now_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn walk(top: &Path, dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(top, &path, found);
        } else {
            found.insert(path.strip_prefix(top).unwrap().display().to_string());
        }
    }
}
