//! The configuration file of `inheritune-scheduler`.

use std::net::SocketAddr;

use inheritune_objects::ObjectsConfig;
use inheritune_runtime::config::DatabaseConfig;
use inheritune_runtime::listen::ListenLimits;
use inheritune_runtime::security::SecurityConfig;
use inheritune_runtime::telemetry::TelemetryConfig;
use serde::Deserialize;

use crate::SchedulerConfig;

/// The configuration file of the service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Who may call, and whether over TLS.
    #[serde(default)]
    pub security: SecurityConfig,
    /// Connection limits.
    #[serde(default)]
    pub limits: ListenLimits,
    /// The database.
    pub database: DatabaseConfig,
    /// The object store.
    pub objects: ObjectsConfig,
    /// The run driver and the reaper.
    #[serde(default)]
    pub scheduler: SchedulerConfig,
    /// Logs, metrics and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_sample_parses() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/scheduler.toml");
        let config: ServiceConfig = inheritune_runtime::config::load(sample.as_ref()).unwrap();
        assert_eq!(config.scheduler, SchedulerConfig::default());
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = "[scheduler]\nsweep_seconds = 1\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scheduler.toml");
        std::fs::write(&path, text).unwrap();
        let error = inheritune_runtime::config::load::<ServiceConfig>(&path).unwrap_err().to_string();
        assert!(error.contains("sweep_seconds"), "{error}");
    }
}
