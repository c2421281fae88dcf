//! The services accept the configuration files in `deploy/compose`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use inheritune_runtime::config::load;
use inheritune_runtime::service::ServiceConfig;
use inheritune_scheduler::config::ServiceConfig as SchedulerConfig;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn compose_file(name: &str) -> PathBuf {
    root().join("deploy/compose").join(name)
}

#[test]
fn the_configuration_of_compose_is_understood() {
    load::<SchedulerConfig>(&compose_file("scheduler.toml")).unwrap();
    for name in ["slicer.toml", "trainer.toml", "evaluator.toml"] {
        let config: ServiceConfig = load(&compose_file(name)).unwrap();
        assert!(config.telemetry.metrics_listen.is_some(), "{name}: its health check needs it");
    }
}

#[test]
fn compose_waits_for_a_worker_that_saves() {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let grace = text.lines().find_map(|line| line.strip_prefix("  stop_grace_period: ")?.strip_suffix('s')).unwrap();
    let grace = Duration::from_secs(grace.parse().unwrap());
    for name in ["slicer.toml", "trainer.toml", "evaluator.toml"] {
        let config: ServiceConfig = load(&compose_file(name)).unwrap();
        assert!(Duration::from_millis(config.worker.shutdown_grace_ms) < grace, "{name}");
    }
}

#[test]
fn s5_the_listeners_of_compose_are_allowed() {
    let scheduler: SchedulerConfig = load(&compose_file("scheduler.toml")).unwrap();
    let mut listeners = vec![("scheduler.toml", scheduler.listen, scheduler.security)];
    for name in ["slicer.toml", "trainer.toml", "evaluator.toml"] {
        let config: ServiceConfig = load(&compose_file(name)).unwrap();
        listeners.push((name, config.listen, config.security));
    }
    for (name, listen, security) in listeners {
        let allowed = security.load().unwrap().check_grpc(listen);
        assert!(allowed.is_ok(), "{name}: {allowed:?}");
    }
}
