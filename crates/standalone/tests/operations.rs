//! What operators rely on: metrics, readiness, traces, TLS, tokens, and no leaked secrets.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{Server, free_address, program, show, write_recipe};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the status line and body of an HTTP response.
fn http(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A real OTLP endpoint: OpenTelemetry's published service definition, which stores the received
/// spans.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let service = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
            let service = format!("{:?}", service.value);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[test]
fn one_trace_leads_from_the_submit_to_the_last_job() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "traced");
    let server = Server::start_with(dir.path(), |command| command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint));
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let create = ["run", "create", text(&recipe), "--watch"];
    let output = server.client(&create).env("TRACEPARENT", format!("00-{trace}-{caller}-01")).output().unwrap();
    assert!(output.status.success(), "{}", show(&output));
    let jobs = server.json(&["job", "list", "--limit", "100"])["jobs"].as_array().unwrap().len();
    assert!(server.terminate(), "SIGTERM did not end it in 10 s");

    let spans = collector.spans.lock().unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let in_trace: Vec<&Span> = spans.iter().map(|(_, span)| span).filter(|span| hex(&span.trace_id) == trace).collect();
    let created = in_trace.iter().find(|span| span.name == "inheritune.v1.RunService/CreateRun").unwrap();
    assert_eq!(hex(&created.parent_span_id), caller);
    let attempts: Vec<_> = in_trace.iter().filter(|span| span.parent_span_id == created.span_id).collect();
    for kind in ["tokenize ", "train ", "slice ", "evaluate "] {
        assert!(attempts.iter().any(|span| span.name.starts_with(kind)), "no {kind} in {:?}", names(&attempts));
    }
    // Every job of the run was attempted once, as a child of the call that created the run.
    assert_eq!(attempts.iter().filter(|span| !span.name.contains('/')).count(), jobs, "{:?}", names(&attempts));
    assert!(spans.iter().all(|(service, _)| service.contains("inheritune-standalone")));
}

fn names<'a>(spans: &[&&'a Span]) -> Vec<&'a str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

#[test]
fn metrics_and_readiness_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = free_address();
    let recipe = write_recipe(dir.path(), "counted");
    let server = Server::start_with(dir.path(), |command| command.args(["--metrics-listen", &metrics.to_string()]));
    assert!(http(metrics, "/livez").0.contains("200"));
    assert_eq!(http(metrics, "/readyz"), ("HTTP/1.0 200 OK".to_owned(), "ready\n".to_owned()));
    assert!(http(metrics, "/secrets").0.contains("404"));
    server.ok(&["run", "create", text(&recipe), "--watch"]);
    server.inheritune(&["run", "get", "00000000-0000-7000-8000-000000000000"]);

    let (_, page) = http(metrics, "/metrics");
    let value = |line_start: &str| {
        let line = page.lines().find(|line| line.starts_with(line_start));
        line.unwrap_or_else(|| panic!("no {line_start} in:\n{page}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    // A real run trains on at least 80 steps of 8 sequences of 32 tokens.
    assert!(value("inheritune_training_tokens_total ") >= 80.0 * 8.0 * 32.0);
    assert!(value("inheritune_job_attempts_total{kind=\"train\",ended=\"succeeded\"}") >= 3.0);
    assert_eq!(value("inheritune_jobs_running{kind=\"train\"}"), 0.0);
    assert_eq!(value("inheritune_grpc_requests_total{method=\"inheritune.v1.RunService/CreateRun\",code=\"OK\"}"), 1.0);
    assert_eq!(
        value("inheritune_grpc_requests_total{method=\"inheritune.v1.RunService/GetRun\",code=\"NotFound\"}"),
        1.0
    );
    assert!(value("inheritune_run_steps_total ") >= 8.0);
    assert!(value("inheritune_published_bytes_total{kind=\"checkpoint\"}") > 0.0);
    assert!(value("inheritune_build_info{version=") == 1.0);
    // Prometheus's own rules: every sample has a type, and every metric has a description.
    for (name, help) in inheritune_runtime::telemetry::metric::METRICS {
        if page.contains(&format!("# TYPE {name} ")) {
            assert!(page.contains(&format!("# HELP {name} {help}")), "{name} has no description:\n{page}");
        }
    }
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let known = inheritune_runtime::telemetry::metric::METRICS.iter().any(|(known, _)| {
            name == *known || ["_bucket", "_sum", "_count"].iter().any(|part| name == format!("{known}{part}"))
        });
        assert!(known, "{name} is not in METRICS");
    }
}

#[test]
fn tls_and_a_token_guard_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let certificates = |arguments: &[&str]| {
        Command::new(program("inheritune")).args(["certs", "init", text(&certs)]).args(arguments).output().unwrap()
    };
    let made = certificates(&["--host", "localhost", "--host", "127.0.0.1"]);
    assert!(made.status.success(), "{}", show(&made));
    let again = certificates(&["--host", "localhost"]);
    assert!(again.status.code() == Some(2) && show(&again).contains("--force"), "{}", show(&again));
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(certs.join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("server.key"), mode("ca.key"), mode("server.pem")), (0o600, 0o600, 0o644));

    let (token, wrong) = (dir.path().join("token"), dir.path().join("wrong"));
    std::fs::write(&token, "canary-token-1f0e\n").unwrap();
    std::fs::write(&wrong, "another\n").unwrap();
    let (ca, certificate, key) = (certs.join("ca.pem"), certs.join("server.pem"), certs.join("server.key"));
    let guard =
        ["--certificate-file", text(&certificate), "--key-file", text(&key), "--bearer-token-file", text(&token)];
    let server = Server::start_with(dir.path(), |command| command.args(guard));
    assert!(server.address.starts_with("https://"), "{}", server.address);
    let list = |arguments: &[&str]| server.inheritune(&[&["run", "list"], arguments].concat());

    let good = list(&["--ca-file", text(&ca), "--token-file", text(&token)]);
    assert!(good.status.success(), "{}", show(&good));
    // Also by host name, and with a new certificate from the same authority.
    assert!(certificates(&["--host", "localhost", "--force"]).status.success());
    let named = server.address.replace("127.0.0.1", "localhost");
    let named = list(&["--server", &named, "--ca-file", text(&ca), "--token-file", text(&token)]);
    assert!(named.status.success(), "{}", show(&named));

    let no_token = list(&["--ca-file", text(&ca)]);
    assert!(no_token.status.code() == Some(5) && show(&no_token).contains("requires a token"), "{}", show(&no_token));
    let wrong_token = list(&["--ca-file", text(&ca), "--token-file", text(&wrong)]);
    assert_eq!(wrong_token.status.code(), Some(5), "{}", show(&wrong_token));
    let unknown_authority = list(&["--token-file", text(&token)]);
    assert_eq!(unknown_authority.status.code(), Some(3), "{}", show(&unknown_authority));
    let plaintext = list(&["--server", &server.address.replace("https", "http")]);
    assert!(plaintext.status.code() == Some(3) && show(&plaintext).contains("https://"), "{}", show(&plaintext));
    let sent_in_plaintext = list(&["--server", "http://192.0.2.1:7600", "--token-file", text(&token)]);
    assert_eq!(sent_in_plaintext.status.code(), Some(2), "{}", show(&sent_in_plaintext));
    for output in [&good, &no_token, &wrong_token, &unknown_authority, &plaintext, &sent_in_plaintext] {
        assert!(!show(output).contains("canary-token"), "{}", show(output));
    }
    let log = std::fs::read_to_string(dir.path().join("server.log")).unwrap();
    assert!(!log.contains("canary-token"), "{log}");
}

#[test]
fn plaintext_on_other_interfaces_needs_words() {
    let dir = tempfile::tempdir().unwrap();
    let started = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_inheritune-standalone"))
            .args(["--data-dir", text(&dir.path().join("data"))])
            .args(arguments)
            .env_remove("DATABASE_URL")
            .output()
            .unwrap()
    };
    let refused = started(&["--listen", "0.0.0.0:0"]);
    assert!(!refused.status.success() && show(&refused).contains("not encrypted"), "{}", show(&refused));
    let refused = started(&["--listen", "127.0.0.1:0", "--metrics-listen", "0.0.0.0:0"]);
    assert!(!refused.status.success() && show(&refused).contains("--metrics-listen"), "{}", show(&refused));
}

/// Secrets as they would be given, each recognizable.
const DATABASE_PASSWORD: &str = "canary-database-5d1c";
const S3_SECRET: &str = "canary-s3-secret-77ab";
const API_TOKEN: &str = "canary-api-token-93fe";
const CANARY: &str = "canary-";

#[test]
fn no_secret_is_in_logs_errors_or_rows() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let postgres = runtime.block_on(inheritune_postgres::LocalPostgres::start(&dir.path().join("pg"), None)).unwrap();
    let url = postgres.url().to_owned();
    let password =
        url.split('@').next().and_then(|start| start.strip_prefix("postgres://inheritune:")).unwrap().to_owned();
    assert!(password.len() >= 32, "{url}");
    std::fs::write(dir.path().join("url"), &url).unwrap();
    std::fs::write(dir.path().join("token"), API_TOKEN).unwrap();
    let (nowhere, closed_store) = (free_address(), store_that_refuses());
    let (scheduler, trainer) = (free_address(), free_address());
    let config = |name: &str, listen: SocketAddr, url_file: &str, rest: &str| {
        let path = dir.path().join(name);
        let text = format!(
            "listen = \"{listen}\"\n[security]\nbearer_token_file = \"{dir}/token\"\n[database]\nurl_file = \"{dir}/{url_file}\"\n\
             [objects]\nallowed_uris = [\"s3://elsewhere/\"]\n[objects.storage]\nkind = \"s3\"\nbucket = \"ours\"\n\
             endpoint = \"http://{closed_store}\"\nregion = \"r\"\nallow_http = true\n[telemetry]\nfilter = \"debug\"\n{rest}",
            dir = dir.path().display()
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let start = |name: &str, config: &Path| {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).unwrap();
        let mut command = Command::new(program(name));
        command
            .arg("--config")
            .arg(config)
            .env("AWS_ACCESS_KEY_ID", "AKIACANARY")
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET);
        command.env_remove("RUST_LOG").stderr(log);
        command
    };
    let scheduler_config = config("scheduler.toml", scheduler, "url", "");
    assert!(start("inheritune-scheduler", &scheduler_config).arg("migrate").status().unwrap().success());
    let worker = format!("[worker]\ncache_dir = \"{}/cache\"\n", dir.path().display());
    let mut services = [
        start("inheritune-scheduler", &scheduler_config).spawn().unwrap(),
        start("inheritune-trainer", &config("trainer.toml", trainer, "url", &worker)).spawn().unwrap(),
    ];

    // A run whose corpus the object store denies access to.
    let recipe = write_recipe(dir.path(), "canary");
    let recipe_text = std::fs::read_to_string(&recipe).unwrap();
    let (before, after) = recipe_text.split_once("sources = [").unwrap();
    let after = after.split_once('\n').unwrap().1;
    std::fs::write(&recipe, format!("{before}sources = [\"s3://elsewhere/corpus.txt\"]\n{after}")).unwrap();
    let client = |arguments: &[&str]| {
        let mut command = Command::new(program("inheritune"));
        command.args(["--server", &format!("http://{scheduler}"), "--token-file", text(&dir.path().join("token"))]);
        command.args(arguments).output().unwrap()
    };
    let started = std::time::Instant::now();
    while !client(&["run", "create", text(&recipe), "--request-id-from-recipe"]).status.success() {
        assert!(started.elapsed() < support::LIMIT, "the scheduler does not answer");
    }
    let mut shown = String::new();
    while !shown.contains("AccessDenied") {
        assert!(started.elapsed() < support::LIMIT, "the job does not fail: {shown}");
        shown = show(&client(&["--output", "json", "job", "list"]));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for service in &mut services {
        service.kill().unwrap();
        service.wait().unwrap();
    }
    // Databases that cannot be reached, and URLs that are not valid.
    for (name, bad) in [
        ("unreachable", format!("postgres://inheritune:{DATABASE_PASSWORD}@{nowhere}/x")),
        ("no-port", format!("postgres://inheritune:{DATABASE_PASSWORD}@127.0.0.1:port/x")),
        ("no-url", DATABASE_PASSWORD.to_owned()),
    ] {
        std::fs::write(dir.path().join(name), bad).unwrap();
        let failed = start("inheritune-scheduler", &config("bad.toml", scheduler, name, "")).status().unwrap();
        assert!(!failed.success(), "{name}");
    }
    runtime.block_on(postgres.stop()).unwrap();

    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("AccessDenied"), "{log}");
    for place in [&log, &shown] {
        assert!(!place.contains(CANARY), "{}", place.lines().find(|line| line.contains(CANARY)).unwrap());
        assert!(!place.contains(&password), "{}", place.lines().find(|line| line.contains(&password)).unwrap());
    }
    // Committed rows are readable in the files of the database: text this short is never
    // compressed.
    assert!(holds(&dir.path().join("pg"), b"s3://elsewhere/corpus.txt"), "the rows were not found");
    assert!(!holds(&dir.path().join("pg"), CANARY.as_bytes()), "a row contains a secret");
}

/// Starts an object store that denies all requests.
fn store_that_refuses() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read(&mut chunk) {
                    Ok(1..) => request.extend_from_slice(&chunk),
                    Ok(0) | Err(_) => break,
                }
            }
            let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
            let _ = write!(
                stream,
                "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    address
}

/// Returns whether any file below `dir` contains `bytes`.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return holds(&path, bytes);
        }
        let first = bytes[0];
        std::fs::read(&path)
            .is_ok_and(|content| content.windows(bytes.len()).any(|window| window[0] == first && window == bytes))
    })
}
